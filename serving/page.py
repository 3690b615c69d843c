"""The pages at `/` and `/live`: their markup from templates, their scripts and style as separate
files, so that their policy can forbid every other script. All their texts are in texts.json, which
the templates read here and the scripts as texts.js."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

from pipeline.html.page import page_environment
from pipeline.schema import MEDIA
from serving.config import Limits, LiveLimits

_PACKAGE, _FOLDER = "serving", "page_parts"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
# Name -> package, folder, file, type.
_FILES: Mapping[str, tuple[str, str, str, str]] = {
    "start.js": (_PACKAGE, _FOLDER, "start.js", "text/javascript"),
    "shown.js": (_PACKAGE, _FOLDER, "shown.js", "text/javascript"),
    "live.js": (_PACKAGE, _FOLDER, "live.js", "text/javascript"),
    "live-sound.js": (_PACKAGE, _FOLDER, "live-sound.js", "text/javascript"),
    "resample.js": (_PACKAGE, _FOLDER, "resample.js", "text/javascript"),
    "start.css": (_PACKAGE, _FOLDER, "start.css", "text/css"),
    "sample.mp4": ("pipeline", "sample", "talk.mp4", "video/mp4"),
    "style.css": ("pipeline.html", "page_frame", "style.css", "text/css"),
}


def read_texts() -> Mapping[str, Mapping[str, str]]:
    """The texts of both pages by page and name; `shared` are those that both show."""
    content = resources.files(_PACKAGE).joinpath(_FOLDER, "texts.json").read_bytes()
    texts: Mapping[str, Mapping[str, str]] = json.loads(content)
    return texts


def render_start(*, model: Mapping[str, Any], notice: str, limits: Limits, needs_key: bool) -> str:
    environment = page_environment(_PACKAGE, _FOLDER)
    return environment.get_template("start.html.jinja").render(
        texts=read_texts(),
        model=model,
        notice=notice,
        kept=_duration(limits.retention_hours),
        most_bytes=limits.max_bytes,
        most_mib=limits.max_bytes // 2**20,
        longest=_duration(limits.max_media_s / 3600),
        needs_key=needs_key,
    )


def render_live(
    *, model: Mapping[str, Any], notice: str, limits: Limits, live: LiveLimits, needs_key: bool
) -> str:
    environment = page_environment(_PACKAGE, _FOLDER)
    return environment.get_template("live.html.jinja").render(
        texts=read_texts(),
        model=model,
        notice=notice,
        kept=_duration(limits.retention_hours),
        longest=_duration(live.session_s / 3600),
        sees=any(name in MEDIA for name in model["modalities"]),
        needs_key=needs_key,
    )


def page_file(name: str) -> tuple[bytes, str] | None:
    """Content and type of a file that the pages load; None for every other name."""
    if name == "texts.js":
        return f"const TEXTS = {json.dumps(read_texts())};\n".encode(), "text/javascript"
    if name not in _FILES:
        return None
    package, folder, file, media_type = _FILES[name]
    return resources.files(package).joinpath(folder, file).read_bytes(), media_type


def _duration(hours: float) -> str:
    """ "3 days", "1.5 hours", "1 minute"."""
    number: float
    if hours >= 48:
        number, unit = round(hours / 24), "day"
    elif hours >= 1:
        number, unit = round(hours, 1), "hour"
    else:
        number, unit = round(hours * 60), "minute"
    return f"{number:g} {unit}" if number == 1 else f"{number:g} {unit}s"
