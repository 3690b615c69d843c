"""The uploads: clips of the generated corpus with their words."""

import json
import struct
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.sample.corpus import SETTINGS_FILE, SampleConfig, make_sample

_DIALOGUES = 4


@dataclass(frozen=True, kw_only=True)
class Clip:
    name: str
    content: bytes
    text: str


def make_clips(work: Path) -> list[Clip]:
    """About twenty clips of 2 to 6 s, with video and audio."""
    data = work / "data"
    config = SampleConfig(out=data, dialogues=_DIALOGUES)
    wanted = {"settings": config.settings, "complete": True}
    made = data / SETTINGS_FILE
    if not made.is_file() or not wanted.items() <= json.loads(made.read_text()).items():
        make_sample(config)
    found = []
    for split, rows in read_corpus(data, None).items():
        for clip in locate_clips(data, split, rows, "fixed"):
            assert clip.path is not None
            name = f"{split}-{clip.path.name}"
            found.append(Clip(name=name, content=clip.path.read_bytes(), text=clip.utterance.text))
    return found


def own(clip: Clip, number: int) -> Clip:
    """A copy with other bytes but the same video and audio, whose words contain the number."""
    said = f"client {number}".encode()
    unused = struct.pack(">I4s", 8 + len(said), b"free") + said  # a box that players ignore
    return replace(
        clip,
        name=f"client-{number}.mp4",
        content=clip.content + unused,
        text=f"{clip.text} That was number {number}.",
    )
