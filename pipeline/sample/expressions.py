"""The facial expression of each emotion."""

from dataclasses import dataclass

from pipeline.sample.pen import Colour


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One expression.

    mouth, eyes, mark: names of shapes in `features`
    brow_raise, brow_slant: pixels up; inner ends down (angry) or up (sad)
    gaze:  direction of the eyes, right and down, in pixels
    flush: colour of a flush, its strength (0 to 1), and where it is strongest
           (-1 forehead ... 1 chin)
    """

    mouth: str = "plain"
    eyes: str = "open"
    mark: str = "none"
    eye_opening: float = 1.0
    iris: float = 1.0
    brow_raise: float = 0.0
    brow_slant: float = 0.0
    brow_weight: float = 13.0
    gaze: tuple[float, float] = (0.0, 0.0)
    flush: Colour = (255, 120, 110)
    flush_strength: float = 0.0
    flush_at: float = 0.0


EXPRESSIONS = {
    "neutral": Expression(),
    "joy": Expression(
        mouth="laugh",
        eyes="laughing",
        mark="sparkles",
        brow_raise=16,
        flush=(255, 128, 140),
        flush_strength=0.25,
        flush_at=0.3,
    ),
    "surprise": Expression(
        mouth="round",
        mark="burst",
        eye_opening=1.6,
        iris=0.75,
        brow_raise=44,
        brow_slant=-4,
    ),
    "fear": Expression(
        mouth="wavering",
        mark="cold sweat",
        eye_opening=1.35,
        iris=0.45,
        brow_raise=22,
        brow_slant=-22,
        gaze=(9, 0),
        flush=(132, 164, 240),
        flush_strength=0.95,
        flush_at=-0.75,
    ),
    "sadness": Expression(
        mouth="frown",
        eyes="drooping",
        mark="tears",
        eye_opening=0.75,
        brow_raise=4,
        brow_slant=-26,
        gaze=(0, 13),
    ),
    "disgust": Expression(
        mouth="tongue",
        eyes="squinting",
        mark="stench",
        eye_opening=0.5,
        brow_raise=-12,
        brow_slant=12,
        gaze=(-14, 0),
        flush=(120, 176, 66),
        flush_strength=0.92,
        flush_at=0.6,
    ),
    "anger": Expression(
        mouth="clenched",
        eyes="glaring",
        mark="steam",
        eye_opening=0.8,
        iris=0.75,
        brow_raise=-20,
        brow_slant=30,
        brow_weight=22,
        flush=(226, 44, 36),
        flush_strength=0.8,
        flush_at=-0.6,
    ),
}
