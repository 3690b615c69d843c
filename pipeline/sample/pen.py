"""A drawing surface with its origin in the centre, drawn large and scaled down for smooth edges."""

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

Colour = tuple[int, int, int]
Fill = Colour | int  # an integer if the image is a mask
Point = tuple[float, float]

SCALE = 2  # Pillow's shapes have hard edges: they are drawn at twice the size
INK: Colour = (52, 38, 44)
WHITE: Colour = (252, 251, 247)


def mix(first: Colour, second: Colour, share: float) -> Colour:
    """Mixes `share` (0 to 1) of the second colour into the first."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(first, second, strict=True))
    return red, green, blue


class Pen:
    """Draws on `image`; coordinates are pixels of the finished, scaled-down picture.

    (x, y) = (0, 0) is at `centre`; y grows downwards.
    """

    def __init__(self, image: Image.Image, centre: Point) -> None:
        self.image = image
        self.centre = centre
        self._draw = ImageDraw.Draw(image)

    def _at(self, points: Sequence[Point]) -> list[Point]:
        x0, y0 = self.centre
        return [((x + x0) * SCALE, (y + y0) * SCALE) for x, y in points]

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Fill) -> None:
        self._draw.ellipse(self._at([(x - rx, y - ry), (x + rx, y + ry)]), fill=fill)

    def ring(self, x: float, y: float, rx: float, ry: float, ink: Colour, width: float) -> None:
        box = self._at([(x - rx, y - ry), (x + rx, y + ry)])
        self._draw.ellipse(box, outline=ink, width=round(width * SCALE))

    def box(
        self, left: float, top: float, right: float, bottom: float, fill: Colour, r: float = 0
    ) -> None:
        self._draw.rounded_rectangle(
            self._at([(left, top), (right, bottom)]), radius=r * SCALE, fill=fill
        )

    def polygon(self, points: Sequence[Point], fill: Fill) -> None:
        self._draw.polygon(self._at(points), fill=fill)

    def stroke(self, points: Sequence[Point], ink: Colour, width: float) -> None:
        """Draws a line with round ends and joints."""
        placed = self._at(points)
        self._draw.line(placed, fill=ink, width=round(width * SCALE), joint="curve")
        radius = width * SCALE / 2
        for x, y in (placed[0], placed[-1]):
            self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=ink)


def arch(x: float, y: float, rx: float, rise: float, *, points: int = 15) -> list[Point]:
    """Draws a curve from left to right; its middle is `rise` above its ends (negative: below)."""
    steps = [2 * i / (points - 1) - 1 for i in range(points)]
    return [(x + t * rx, y - rise * (1 - t * t)) for t in steps]


def egg(rx: float, top: float, bottom: float, *, taper: float = 0.2) -> list[Point]:
    """The outline of a head around (0, 0): wide at the top, narrow at the chin."""
    outline = []
    for degree in range(0, 360, 4):
        angle = math.radians(degree)
        sine, cosine = math.sin(angle), math.cos(angle)
        height = bottom if sine > 0 else top
        width = rx * (1 - taper * max(0.0, sine) ** 2)
        x = math.copysign(abs(cosine) ** 0.88, cosine) * width
        outline.append((x, math.copysign(abs(sine) ** 0.92, sine) * height))
    return outline
