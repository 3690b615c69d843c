"""The formats of a timeline: one function per file extension."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.parse import quote

from fusion.inference.timeline import Timeline
from fusion.prediction.page import embed, render_page
from fusion.prediction.timeline_files import to_csv, to_srt, to_vtt
from pipeline.errors import StorageError, UsageError

PAGE = "html"
_TEXTS: Mapping[str, Callable[[Timeline], str]] = {
    "json": Timeline.to_json,
    "csv": to_csv,
    "srt": to_srt,
    "vtt": to_vtt,
}
FORMATS = (*_TEXTS, PAGE)
# A page holds it as base64, a third larger, and a browser holds all of the page.
MOST_EMBEDDED_BYTES = 200 * 2**20


def write_as(name: str, timeline: Timeline, *, media_url: str | None = None) -> str:
    """A timeline in one of `FORMATS`; media_url: where a page finds the media (`render_page`)."""
    if name == PAGE:
        return render_page(timeline.to_dict(), media_url=media_url)
    return _TEXTS[name](timeline)


def address_media(path: Path, *, folder: Path | None, embedded: bool) -> str:
    """The URL by which a page in `folder` refers to the media file at `path`.

    Args:
        folder: None where the place of the page is unknown
        embedded: the page holds the media itself

    Raises:
        UsageError: the file is too large for a page.
        StorageError: it cannot be read.
    """
    if not embedded:
        # The page and the file may move together.
        there = path.resolve()
        if folder is None:
            return there.as_uri()
        return quote(os.fsencode(os.path.relpath(there, folder.resolve())))
    check_embedded(path)
    try:
        return embed(path)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def check_embedded(path: Path) -> None:
    """Raises UsageError where a file is too large for a page, StorageError where it is not there.

    Called before minutes of work.
    """
    try:
        size = path.stat().st_size
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if size > MOST_EMBEDDED_BYTES:
        raise UsageError(
            f"--embed: {path} has {size / 2**20:.0f} MiB, and a page holds up to "
            f"{MOST_EMBEDDED_BYTES // 2**20}; without --embed the page plays the file from where "
            "it is"
        )
