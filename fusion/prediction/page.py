"""A timeline as one HTML file: a player, the emotions below it, the words beside it.

    the timeline's JSON -> blocks, lines and rows -> template

What the service shows is this page too, so it is made from the JSON and an address of the media,
and opens no file. All that comes from the media is hostile to a page: the template escapes it, and
the page's policy lets one script run, by its hash, and nothing be loaded but the media.
"""

import base64
import hashlib
import json
import mimetypes
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fusion.prediction.timeline_files import brief_clock
from pipeline.html.page import page_environment
from pipeline.schema import EMOTIONS, SENTIMENTS

_PACKAGE, _FOLDER = "fusion.prediction", "page_parts"
# Rows of the chart from the pleasant to the unpleasant.
LANES = ("joy", "surprise", "neutral", "sadness", "fear", "disgust", "anger")
assert set(LANES) == set(EMOTIONS)
_POSITIVE, _NEGATIVE = SENTIMENTS[1], SENTIMENTS[2]
_MOST_TICKS = 8
_TICK_STEPS_S = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200)


def render_page(told: Mapping[str, Any], *, media_url: str | None) -> str:
    """The page of a timeline.

    Args:
        told: what `Timeline.to_dict` gives, or its JSON read again
        media_url: where the page finds the media: relative to itself, or `data:`; None shows no
            player
    """
    utterances = told["utterances"]
    duration_ms = told["media"]["duration_ms"]
    span_ms = max([duration_ms, 1, *(each["end_ms"] for each in utterances)])
    script = resources.files(_PACKAGE).joinpath(_FOLDER, "timeline.js").read_text("utf-8")
    environment = page_environment(_PACKAGE, _FOLDER)
    environment.filters.update(clock=brief_clock, percent=lambda share: f"{share * 100:.0f}")
    return environment.get_template("timeline.html.jinja").render(
        **{name: told[name] for name in ("media", "model", "segmentation", "summary", "notice")},
        utterances=utterances,
        by_id={each["id"]: each for each in utterances},
        words=_words(told["segmentation"]),
        made=_made(told["segmentation"]["speech"]),
        lanes=LANES,
        span_ms=span_ms,
        blocks=[_block(each) for each in utterances if each["emotion"] is not None],
        gaps=[_gap(each) for each in utterances if each["emotion"] is None],
        mood=_mood(utterances),
        ticks=_ticks(span_ms),
        media_url=media_url,
        data=_as_script_data(told),
        script=Markup(script),
        script_hash=_policy_hash(script),
    )


def embed(path: Path) -> str:
    """A media file as a `data:` address, for a page that needs no other file.

    Raises OSError where it cannot be read.
    """
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _words(segmentation: Mapping[str, Any]) -> str:
    if segmentation["file"] is not None:
        return f"words from {segmentation['file']}"
    return {
        "subtitles": "words from a subtitle track in the file",
        "whole": "one utterance",
        "speech": "words as they were heard",
    }.get(segmentation["source"], segmentation["source"])


def _made(speech: Mapping[str, Any] | None) -> dict[str, str]:
    """Names and values, one level deep: what lies below is in the JSON."""
    plain = (str, int, float)
    return {
        f"{part}: {name}" if name else part: str(value)
        for part, inside in (speech or {}).items()
        for name, value in (inside.items() if isinstance(inside, Mapping) else [("", inside)])
        if isinstance(value, plain) and not isinstance(value, bool)
    }


def _block(each: Mapping[str, Any]) -> dict[str, Any]:
    emotion, sentiment = each["emotion"], each["sentiment"]
    labels = f"{emotion['label']} {emotion['confidence']:.0%}, {sentiment['label']}"
    return {
        **_place(each),
        "emotion": emotion["label"],
        "lane": LANES.index(emotion["label"]),
        "told": f"{brief_clock(each['start_ms'])} {labels}",
        "of": each,
    }


def _gap(each: Mapping[str, Any]) -> dict[str, Any]:
    return {**_place(each), "told": f"{brief_clock(each['start_ms'])} {each['error']}"}


def _place(each: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": each["id"],
        "start_ms": each["start_ms"],
        "length_ms": each["end_ms"] - each["start_ms"],
    }


def _mood(utterances: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """SVG paths of P(positive) - P(negative), 1 at the top: a level for each utterance, and the
    thread through them."""
    levels = []
    for each in utterances:
        if each["sentiment"] is None:
            continue
        probabilities = each["sentiment"]["probabilities"]
        y = round(probabilities[_NEGATIVE] - probabilities[_POSITIVE], 3)
        levels.append((each["start_ms"], each["end_ms"], y))
    corners = " ".join(f"{start_ms},{y} {end_ms},{y}" for start_ms, end_ms, y in levels)
    return {
        "levels": "".join(f"M{start_ms} {y}H{end_ms}" for start_ms, end_ms, y in levels),
        "thread": f"M{corners}" if corners else "",
    }


def _ticks(span_ms: int) -> list[dict[str, float]]:
    wanted_s = span_ms / 1000 / _MOST_TICKS
    step_s = next((step for step in _TICK_STEPS_S if step >= wanted_s), _TICK_STEPS_S[-1])
    return [
        {"at_ms": at_ms, "percent": round(100 * at_ms / span_ms, 3)}
        for at_ms in range(0, span_ms, step_s * 1000)
    ]


def _as_script_data(told: Mapping[str, Any]) -> Markup:
    """JSON that cannot end the element it stands in: no "<" is left in it."""
    return Markup(json.dumps(told, ensure_ascii=False).replace("<", "\\u003c"))


def _policy_hash(script: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}"
