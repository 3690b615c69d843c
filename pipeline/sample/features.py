"""Draws the parts of a face. The centre of the head is (0, 0); y grows downwards (`Pen`)."""

from PIL import Image

from pipeline.sample.expressions import Expression
from pipeline.sample.pen import INK, SCALE, WHITE, Colour, Pen, arch, mix

EYE_X, EYE_Y, EYE_RX, EYE_RY = 78, -28, 44, 42
MOUTH_Y = 128
LIPS: Colour = (168, 66, 66)
THROAT: Colour = (104, 26, 38)
TONGUE: Colour = (232, 108, 114)
WATER: Colour = (96, 178, 240)
IRIS: Colour = (84, 62, 52)


def draw_eyes(pen: Pen, expression: Expression, skin: Colour, *, blink: bool) -> None:
    for side in (-1, 1):
        x = side * EYE_X
        if expression.eyes == "laughing":
            pen.stroke(arch(x, EYE_Y + 14, 40, 38), INK, 13)
        elif blink:
            pen.stroke(arch(x, EYE_Y + 8, 40, -14), INK, 11)
        else:
            _draw_open_eye(pen, x, side, expression, skin)


def _draw_open_eye(pen: Pen, x: float, side: int, expression: Expression, skin: Colour) -> None:
    """Draws the eyeball as a small picture of its own: lids and rim hide parts of the iris."""
    width, height = 2 * EYE_RX + 24, 3 * EYE_RY + 24
    rx = EYE_RX * (1.12 if expression.eye_opening > 1.2 else 1)
    ry = EYE_RY * expression.eye_opening
    mask = Image.new("L", (width * SCALE, height * SCALE), 0)
    Pen(mask, (width / 2, height / 2)).ellipse(0, 0, rx, ry, 255)
    ball = Image.new("RGBA", mask.size, (*WHITE, 255))
    inner = Pen(ball, (width / 2, height / 2))
    gaze_x, gaze_y = expression.gaze
    inner.ellipse(gaze_x, gaze_y, 27 * expression.iris, 27 * expression.iris, IRIS)
    inner.ellipse(gaze_x, gaze_y, 14 * expression.iris, 14 * expression.iris, INK)
    inner.ellipse(gaze_x - 9 * expression.iris, gaze_y - 10 * expression.iris, 7, 7, WHITE)
    _draw_lids(inner, expression.eyes, side, ry, mix(skin, INK, 0.14))
    x0, y0 = pen.centre
    corner = ((x + x0 - width / 2) * SCALE, (EYE_Y + y0 - height / 2) * SCALE)
    pen.image.paste(ball, (round(corner[0]), round(corner[1])), mask)
    pen.ring(x, EYE_Y, rx + 3, ry + 3, INK, 7)


def _draw_lids(pen: Pen, eyes: str, side: int, ry: float, lid: Colour) -> None:
    """Draws lids: lower at the nose in anger, at the outer ends in sadness, both in disgust."""
    if eyes == "open":
        return
    fall = {"glaring": 26, "drooping": -24}.get(eyes, 0) * side
    edge = -0.5 * ry
    pen.polygon([(-90, -120), (90, -120), (90, edge - fall), (-90, edge + fall)], lid)
    if eyes == "squinting":
        pen.polygon([(-90, 120), (90, 120), (90, 0.55 * ry), (-90, 0.55 * ry)], lid)


def draw_brows(pen: Pen, expression: Expression, ink: Colour) -> None:
    y = -98 - expression.brow_raise
    slant = expression.brow_slant
    for side in (-1, 1):
        inner, outer = (side * 36, y + slant), (side * 124, y - slant * 0.7 + 8)
        middle = (side * 80, y - 8 + slant * 0.1)
        if expression.eyes == "squinting" and side > 0:
            middle, outer = (side * 80, y - 34), (side * 124, y - 22)
        pen.stroke([inner, middle, outer], ink, expression.brow_weight)


def draw_glasses(pen: Pen) -> None:
    frame: Colour = (70, 60, 80)
    for x in (-EYE_X, EYE_X):
        pen.ring(x, EYE_Y, 66, 66, frame, 6)
    pen.stroke(arch(0, EYE_Y - 4, 13, 6, points=5), frame, 6)


def draw_mouth(pen: Pen, shape: str, opening: float) -> None:
    """opening: from 0 (between words) to 1 (the loudest sound)."""
    _MOUTHS[shape](pen, opening)


def _plain(pen: Pen, opening: float) -> None:
    if opening < 0.1:
        pen.stroke(arch(0, MOUTH_Y, 52, -5), LIPS, 11)
        return
    height = 6 + 30 * opening
    pen.ellipse(0, MOUTH_Y + 4, 48, height + 7, LIPS)
    pen.ellipse(0, MOUTH_Y + 4, 40, height, THROAT)
    pen.ellipse(0, MOUTH_Y + 4 + height * 0.6, 24, height * 0.38, TONGUE)


def _laugh(pen: Pen, opening: float) -> None:
    depth = 62 + 44 * opening
    y = MOUTH_Y - 32
    shape = arch(0, y, 104, -depth, points=25)
    pen.polygon(shape, THROAT)
    pen.polygon(arch(0, y, 104, -depth * 0.34, points=25), WHITE)
    pen.ellipse(0, y + depth * 0.8, 36, depth * 0.17, TONGUE)
    pen.stroke([*shape, (-104, y), (104, y)], LIPS, 9)


def _round(pen: Pen, opening: float) -> None:
    height = 58 + 20 * opening
    pen.ellipse(0, MOUTH_Y + 16, 61, height + 9, LIPS)
    pen.ellipse(0, MOUTH_Y + 16, 52, height, THROAT)
    pen.ellipse(0, MOUTH_Y + 16 + height * 0.62, 26, height * 0.3, TONGUE)


def _wavering(pen: Pen, opening: float) -> None:
    half = 14 + 14 * opening
    xs = range(-84, 85, 14)
    top = [(x, MOUTH_Y + 4 - half + (9 if i % 2 else -6)) for i, x in enumerate(xs)]
    bottom = [(x, MOUTH_Y + 4 + half + (9 if i % 2 else -6)) for i, x in enumerate(xs)]
    pen.polygon([*top, *reversed(bottom)], WHITE)
    for (x, y), (_, low) in zip(top[1:-1], bottom[1:-1], strict=True):
        pen.stroke([(x, y), (x, low)], (150, 150, 160), 3)
    pen.stroke([*top, *reversed(bottom), top[0]], THROAT, 9)


def _frown(pen: Pen, opening: float) -> None:
    y = MOUTH_Y + 34
    if opening >= 0.1:
        rise = 44 + 16 * opening
        pen.polygon(arch(0, y, 70, rise, points=21), THROAT)
        pen.stroke([*arch(0, y, 70, rise), (-70, y), (70, y)], LIPS, 10)
    else:
        pen.stroke(arch(0, y, 76, 42), LIPS, 13)
    pen.stroke(arch(0, y + 26, 24, 7, points=7), LIPS, 5)


def _tongue(pen: Pen, opening: float) -> None:
    y = MOUTH_Y + 2
    reach = 66 + 22 * opening
    pen.polygon(
        [(-82, y + 16), (-40, y - 16), (30, y - 8), (86, y - 34), (66, y + 34), (-50, y + 40)],
        THROAT,
    )
    pen.box(-22, y + 4, 46, y + reach, TONGUE, 34)
    pen.stroke([(12, y + 14), (12, y + reach - 30)], (198, 76, 88), 5)
    pen.stroke([(-90, y + 18), (-40, y - 18), (30, y - 10), (90, y - 38)], LIPS, 12)


def _clenched(pen: Pen, opening: float) -> None:
    half = 24 + 18 * opening
    y = MOUTH_Y + 10
    outline = [(-66, y - half), (66, y - half), (96, y + half), (-96, y + half)]
    pen.polygon(outline, WHITE)
    for x in range(-66, 67, 22):
        pen.stroke([(x * 0.85, y - half), (x * 1.15, y + half)], (120, 110, 116), 4)
    pen.stroke([(-82, y), (82, y)], (120, 110, 116), 4)
    pen.stroke([*outline, outline[0]], THROAT, 11)


_MOUTHS = {
    "plain": _plain,
    "laugh": _laugh,
    "round": _round,
    "wavering": _wavering,
    "frown": _frown,
    "tongue": _tongue,
    "clenched": _clenched,
}


def draw_mark_behind(pen: Pen, mark: str) -> None:
    """Draws comic marks behind the head."""
    if mark == "burst":
        for x, y in ((-250, -150), (-180, -262), (-64, -312), (64, -312), (180, -262), (250, -150)):
            pen.stroke([(x, y), (x * 1.2, y * 1.2 if y > -300 else -336)], (255, 222, 72), 30)
    elif mark == "steam":
        for side in (-1, 1):
            for x, y, r in ((242, -30, 34), (274, -62, 40), (300, -20, 30), (268, -8, 26)):
                pen.ellipse(side * x, y, r, r, (240, 236, 232))
    elif mark == "stench":
        for x in (-292, -250, 262, 304):
            wave = [(x + (14 if i % 2 else -14), -150 + 44 * i) for i in range(7)]
            pen.stroke(wave, (124, 178, 62), 20)


def draw_mark_in_front(pen: Pen, mark: str) -> None:
    if mark == "sparkles":
        for x, y, r in ((-262, -190, 54), (270, -150, 62), (-288, 40, 34), (250, 110, 36)):
            _star(pen, x, y, r)
    elif mark == "tears":
        for side in (-1, 1):
            pen.box(side * 86 - 31, 6, side * 86 + 31, 178, WATER, 28)
            pen.box(side * 86 - 14, 20, side * 86 - 5, 124, (190, 228, 252), 3)
            pen.ellipse(side * 100, 200, 46, 26, WATER)
    elif mark == "cold sweat":
        for x in range(-110, 111, 31):
            pen.stroke([(x, -176), (x, -128 + abs(x) * 0.1)], (70, 90, 190), 10)
        _drop(pen, 176, -104, 44)
        _drop(pen, -184, 30, 36)
        _drop(pen, 228, 26, 32)
    elif mark == "steam":
        _vein(pen, 128, -168)


def _star(pen: Pen, x: float, y: float, r: float) -> None:
    thin = r * 0.26
    pen.polygon(
        [
            (x, y - r),
            (x + thin, y - thin),
            (x + r, y),
            (x + thin, y + thin),
            (x, y + r),
            (x - thin, y + thin),
            (x - r, y),
            (x - thin, y - thin),
        ],
        (255, 214, 74),
    )


def _drop(pen: Pen, x: float, y: float, r: float) -> None:
    pen.polygon(
        [(x, y - 1.9 * r), (x + 0.86 * r, y - 0.45 * r), (x - 0.86 * r, y - 0.45 * r)], WATER
    )
    pen.ellipse(x, y, r, r, WATER)
    pen.ellipse(x - r * 0.35, y + r * 0.1, r * 0.2, r * 0.36, (206, 234, 252))


def _vein(pen: Pen, x: float, y: float) -> None:
    red: Colour = (172, 16, 26)
    for dx, dy in ((-1, -1), (1, -1), (-1, 1), (1, 1)):
        pen.stroke(
            [(x + dx * 10, y + dy * 44), (x + dx * 15, y + dy * 15), (x + dx * 44, y + dy * 10)],
            red,
            12,
        )
