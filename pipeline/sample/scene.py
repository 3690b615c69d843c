"""Draws rooms and clothes, which are independent of the emotion."""

import math
import random

from PIL import Image

from pipeline.sample.face import Look
from pipeline.sample.pen import INK, SCALE, WHITE, Colour, Pen, arch, mix

WIDTH, HEIGHT = 1280, 720

# wall, lower wall or floor, accent
PALETTES: tuple[tuple[Colour, Colour, Colour], ...] = (
    ((196, 214, 208), (150, 176, 172), (222, 142, 96)),
    ((232, 214, 186), (198, 166, 132), (92, 132, 140)),
    ((190, 200, 222), (146, 158, 190), (232, 186, 104)),
    ((226, 200, 198), (188, 150, 154), (108, 138, 116)),
    ((206, 214, 190), (158, 172, 140), (176, 110, 102)),
    ((214, 206, 224), (168, 156, 186), (226, 156, 118)),
)


def draw_scene(look: Look, *, room: int, head_x: int, head_y: int) -> Image.Image:
    """Draws the room and the shoulders, RGB [HEIGHT, WIDTH]; the head is added later."""
    picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE))
    rng = random.Random(room)
    wall, floor, accent = rng.choice(PALETTES)
    pen = Pen(picture, (0, 0))
    pen.box(0, 0, WIDTH, HEIGHT, wall)
    pen.box(0, 560, WIDTH, HEIGHT, floor)
    pen.box(0, 552, WIDTH, 562, mix(floor, INK, 0.15))
    left, right = rng.sample(_FURNITURE, 2)
    left(pen, 150, accent, rng)
    right(pen, 1130, accent, rng)
    _draw_body(Pen(picture, (head_x, head_y)), look)
    return picture.reduce(SCALE)


def _draw_body(pen: Pen, look: Look) -> None:
    shade = mix(look.shirt, INK, 0.2)
    pen.ellipse(0, 520, 372, 262, look.shirt)
    pen.box(-78, 150, 78, 296, mix(look.skin, INK, 0.12), 60)
    pen.polygon([(-104, 266), (0, 350), (-34, 392), (-150, 286)], shade)
    pen.polygon([(104, 266), (0, 350), (34, 392), (150, 286)], shade)


def _window(pen: Pen, x: float, accent: Colour, rng: random.Random) -> None:
    sky = rng.choice(((168, 212, 236), (250, 206, 158), (84, 98, 142)))
    pen.box(x - 130, 70, x + 130, 430, WHITE, 10)
    pen.box(x - 114, 86, x + 114, 414, sky)
    pen.ellipse(x + 40, 160, 34, 34, (255, 246, 210))
    pen.polygon(arch(x, 414, 114, 84), mix(sky, (96, 146, 110), 0.6))
    pen.box(x - 114, 400, x + 114, 414, WHITE)
    pen.box(x - 6, 86, x + 6, 414, WHITE)
    pen.box(x - 146, 430, x + 146, 448, mix(accent, WHITE, 0.5), 6)


def _picture(pen: Pen, x: float, accent: Colour, rng: random.Random) -> None:
    pen.box(x - 110, 110, x + 110, 380, mix(accent, INK, 0.3), 6)
    pen.box(x - 92, 128, x + 92, 362, WHITE)
    pen.ellipse(x + rng.uniform(-30, 30), 220, 50, 50, accent)
    pen.polygon(
        [(x - 92, 362), (x - 20, 262), (x + 40, 320), (x + 92, 280), (x + 92, 362)],
        mix(accent, WHITE, 0.45),
    )


def _plant(pen: Pen, x: float, accent: Colour, rng: random.Random) -> None:
    green: Colour = (92, 142, 96)
    for lean in (-116, 116, -62, 62, 0):
        tip = 250 + abs(lean) * 0.9 + rng.uniform(-20, 20)
        leaf = [
            (x + lean * t * t + 30 * math.sin(math.pi * t) * side, 540 + (tip - 540) * t)
            for side, steps in ((-1, range(13)), (1, range(12, -1, -1)))
            for t in (step / 12 for step in steps)
        ]
        pen.polygon(leaf, mix(green, WHITE, abs(lean) / 400))
    pen.polygon([(x - 76, 530), (x + 76, 530), (x + 56, 660), (x - 56, 660)], accent)
    pen.box(x - 84, 514, x + 84, 544, mix(accent, INK, 0.12), 6)


def _shelf(pen: Pen, x: float, accent: Colour, rng: random.Random) -> None:
    wood = mix(accent, (120, 84, 60), 0.6)
    for y in (230, 420):
        pen.box(x - 140, y, x + 140, y + 16, wood, 4)
        left = x - 128
        while left < x + 96:
            width = rng.uniform(18, 34)
            cover = mix(
                rng.choice((accent, (86, 120, 140), (210, 160, 90), (150, 90, 96))), WHITE, 0.15
            )
            pen.box(left, y - rng.uniform(84, 130), left + width, y, cover, 3)
            left += width + 4


def _lamp(pen: Pen, x: float, accent: Colour, rng: random.Random) -> None:
    pen.box(x - 7, 280, x + 7, 640, mix(accent, INK, 0.45))
    pen.ellipse(x, 640, 70, 18, mix(accent, INK, 0.45))
    top = rng.uniform(50, 70)
    pen.polygon(
        [(x - top, 140), (x + top, 140), (x + 116, 300), (x - 116, 300)], mix(accent, WHITE, 0.35)
    )


_FURNITURE = (_window, _picture, _plant, _shelf, _lamp)
