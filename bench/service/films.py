"""Makes a long video of many utterances: joined clips with their words as subtitles."""

from dataclasses import dataclass
from pathlib import Path

import av
import pysubs2

from bench.long_file import join_looped
from bench.service.client import head
from bench.service.inputs import Clip

_CUE_MS = 2_000
_BOUNDARY = "a-part-begins-here"


@dataclass(frozen=True, kw_only=True)
class Film:
    media: Path
    subtitles: Path
    num_utterances: int


def make_film(work: Path, clips: list[Clip], *, minutes: float, cue_ms: int = _CUE_MS) -> Film:
    """Makes a video with a cue every `cue_ms`: the words of a clip and the number of the cue."""
    folder = work / "clips"
    folder.mkdir(exist_ok=True)
    for clip in clips:
        (folder / clip.name).write_bytes(clip.content)
    paths = [folder / clip.name for clip in clips]
    # Clips can be joined without re-encoding if they have the same encoder settings.
    alike = [path for path in paths if _layout(path) == _layout(paths[0])]
    media = join_looped(alike, work / f"film-{minutes:g}.mp4", minutes=minutes)
    number = round(minutes * 60_000 / cue_ms)
    cues = pysubs2.SSAFile()
    for at in range(number):
        words = f"{clips[at % len(clips)].text} That was number {at}."
        cues.append(pysubs2.SSAEvent(at * cue_ms, at * cue_ms + cue_ms * 9 // 10, words))
    subtitles = work / f"film-{minutes:g}-{cue_ms}.srt"
    cues.save(str(subtitles))
    return Film(media=media, subtitles=subtitles, num_utterances=number)


def _layout(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.audio[0].layout.name


def film_upload(film: Film, **headers: str) -> bytes:
    """A form."""
    parts = [
        _part("subtitles", film.subtitles.name, "application/x-subrip"),
        film.subtitles.read_bytes(),
        _part("media", film.media.name, "video/mp4"),
        film.media.read_bytes(),
        f"\r\n--{_BOUNDARY}--\r\n".encode(),
    ]
    body = b"".join(parts)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    about = {
        "Content-Type": f"multipart/form-data; boundary={_BOUNDARY}",
        "Content-Length": str(len(body)),
        "Connection": "close",
        **named,
    }
    return head("POST", "/v1/jobs", about) + body


def _part(name: str, file: str, kind: str) -> bytes:
    return (
        f"\r\n--{_BOUNDARY}\r\nContent-Disposition: form-data; "
        f'name="{name}"; filename="{file}"\r\nContent-Type: {kind}\r\n\r\n'
    ).encode()
