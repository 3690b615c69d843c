"""Draws haircuts in two layers: behind the face and in front of it."""

from pipeline.sample.pen import INK, Colour, Pen, Point, arch, egg, mix

HAIRCUTS = ("short", "long", "bun", "curls", "quiff")


def draw_behind(pen: Pen, colour: Colour, haircut: str) -> None:
    dark = mix(colour, INK, 0.18)
    if haircut == "long":
        pen.polygon(egg(214, 252, 120), dark)
        pen.box(-222, -70, 222, 268, dark, 60)
    elif haircut == "bun":
        pen.ellipse(0, -262, 76, 62, dark)
        pen.polygon(egg(208, 250, 120), dark)
    elif haircut == "curls":
        for x, y in ((190, -90), (210, -10), (202, 62), (176, 128)):
            for side in (-1, 1):
                pen.ellipse(side * x, y, 58, 58, dark)
    else:
        pen.polygon(egg(204, 250, 60), dark)


def draw_in_front(pen: Pen, colour: Colour, haircut: str) -> None:
    light = mix(colour, (255, 255, 255), 0.12)
    if haircut == "curls":
        for x in range(-160, 161, 64):
            pen.ellipse(x, -206 + abs(x) * 0.42, 56, 52, colour)
    elif haircut == "quiff":
        _cap(pen, colour, arch(0, -128, 190, 52))
        for x, y, rx, ry in ((-96, -224, 74, 54), (4, -244, 112, 64), (96, -220, 84, 54)):
            pen.ellipse(x, y, rx, ry, colour)
        pen.stroke(arch(10, -238, 84, 34), light, 10)
    elif haircut == "long":
        _cap(pen, colour, [*arch(-112, -96, 88, 44), *arch(78, -110, 112, 62)])
    else:
        _cap(pen, colour, arch(0, -130, 190, 56))
        pen.stroke(arch(-60, -206, 74, 16), light, 10)


def _cap(pen: Pen, colour: Colour, hairline: list[Point]) -> None:
    """Draws hair from the crown to the hairline, whose points go from left to right."""
    crown = sorted(point for point in egg(200, 250, 236) if point[1] < -128)
    pen.polygon([*crown, *reversed(hairline)], colour)
