"""Draws a head with one of seven expressions, any mouth opening, and open or closed eyes.

The emotion is visible in the expression: mouth, brows, lids, gaze, tears, flush and comic marks.
`Look` is the person, and is independent of the emotion.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from pipeline.sample import features, hair
from pipeline.sample.expressions import Expression
from pipeline.sample.pen import INK, SCALE, Colour, Pen, arch, egg, mix

HEAD_SIZE = 680  # width and height in pixels; the head is centred
FACE_RX, FACE_TOP, FACE_BOTTOM = 188, 232, 236

SKINS: tuple[Colour, ...] = (
    (250, 214, 186),
    (240, 194, 160),
    (224, 172, 134),
    (198, 144, 108),
    (164, 112, 82),
    (134, 90, 66),
)
HAIRS: tuple[Colour, ...] = (
    (60, 42, 38),
    (104, 66, 44),
    (186, 122, 62),
    (226, 178, 96),
    (150, 64, 46),
    (120, 116, 122),
)
SHIRTS: tuple[Colour, ...] = (
    (214, 92, 82),
    (66, 122, 148),
    (236, 172, 72),
    (96, 142, 104),
    (128, 98, 152),
    (226, 136, 146),
    (74, 84, 112),
    (234, 226, 208),
)


@dataclass(frozen=True, kw_only=True)
class Look:
    """The appearance of one person, the same in every clip: skin, hair, clothes."""

    skin: Colour
    hair: Colour
    haircut: str
    shirt: Colour
    glasses: bool

    @classmethod
    def of(cls, rng: random.Random) -> "Look":
        return cls(
            skin=rng.choice(SKINS),
            hair=rng.choice(HAIRS),
            haircut=rng.choice(hair.HAIRCUTS),
            shirt=rng.choice(SHIRTS),
            glasses=rng.random() < 0.2,
        )


class Head:
    """One head with one expression; the parts that do not move are drawn once.

    still:  RGBA [HEAD_SIZE, HEAD_SIZE], transparent around the head, without eyes and mouth
    MOVING: left, top, right, bottom of the part that `moving` replaces, in even pixels
    """

    MOVING = (
        HEAD_SIZE // 2 - 160,
        HEAD_SIZE // 2 - 170,
        HEAD_SIZE // 2 + 160,
        HEAD_SIZE // 2 + 240,
    )

    def __init__(self, look: Look, expression: Expression) -> None:
        self._look = look
        self._expression = expression
        still = self._draw_still_parts()
        self.still = still.reduce(SCALE)
        left, top, right, bottom = self.MOVING
        self._large = still.crop((left * SCALE, top * SCALE, right * SCALE, bottom * SCALE))

    def moving(self, mouth_opening: float, *, blink: bool) -> Image.Image:
        """Draws the part at `MOVING`, RGBA, with eyes, brows and mouth; opening: 0 to 1."""
        picture, (left, top, _, _) = self._large.copy(), self.MOVING
        pen = Pen(picture, (HEAD_SIZE / 2 - left, HEAD_SIZE / 2 - top))
        features.draw_eyes(pen, self._expression, self._look.skin, blink=blink)
        features.draw_brows(pen, self._expression, mix(self._look.hair, INK, 0.35))
        features.draw_mouth(pen, self._expression.mouth, mouth_opening)
        if self._look.glasses:
            features.draw_glasses(pen)
        return picture.reduce(SCALE)

    def _draw_still_parts(self) -> Image.Image:
        look, expression = self._look, self._expression
        side = HEAD_SIZE * SCALE
        picture = Image.new("RGBA", (side, side), (0, 0, 0, 0))
        pen = Pen(picture, (HEAD_SIZE / 2, HEAD_SIZE / 2))
        features.draw_mark_behind(pen, expression.mark)
        hair.draw_behind(pen, look.hair, look.haircut)
        pen.box(-78, 150, 78, 292, mix(look.skin, INK, 0.16), 56)
        for x in (-FACE_RX, FACE_RX):
            pen.ellipse(x, 4, 32, 44, look.skin)
            pen.ellipse(x, 6, 17, 26, mix(look.skin, INK, 0.16))
        self._draw_skin(picture)
        if expression.mouth == "laugh":
            for x in (-112, 112):
                pen.ellipse(x, 62, 46, 34, mix(look.skin, (255, 96, 118), 0.5))
        pen.stroke(arch(0, 44, 22, -15, points=9), mix(look.skin, INK, 0.3), 8)
        hair.draw_in_front(pen, look.hair, look.haircut)
        features.draw_mark_in_front(pen, expression.mark)
        return picture

    def _draw_skin(self, picture: Image.Image) -> None:
        """Draws the face; the flush fades with the distance from where it is strongest."""
        expression = self._expression
        mask = Image.new("L", picture.size, 0)
        Pen(mask, (HEAD_SIZE / 2, HEAD_SIZE / 2)).polygon(egg(FACE_RX, FACE_TOP, FACE_BOTTOM), 255)
        height = np.linspace(-HEAD_SIZE / 2, HEAD_SIZE / 2, picture.height) / FACE_BOTTOM
        share = np.clip(1.35 - np.abs(height - expression.flush_at), 0, 1)
        skin, flush = np.array(self._look.skin), np.array(expression.flush)
        column = skin + (flush - skin) * expression.flush_strength * share[:, None]
        colours = Image.fromarray(column.round().astype(np.uint8)[:, None, :])
        picture.paste(colours.resize(picture.size, Image.Resampling.NEAREST), (0, 0), mask)
