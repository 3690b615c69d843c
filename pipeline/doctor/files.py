"""Which media files there are for a split: those of its rows, and those that no row asks for."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.corpus.clips import index_clips, locate_clips
from pipeline.corpus.layout import CORRECTED_PREFIX, clip_stem, find_media_folders, parse_clip_stem
from pipeline.recipe import TestClips
from pipeline.schema import ClipKey, LocatedClip, Split, Utterance

APPLE_DOUBLE_PREFIX = "._"


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Media files of one split.

    clips:        one per row, in the CSV's order; without a path where there is no file
    twins:        of rows whose clip exists twice, the cut that is not read
    corrected:    rows that have a corrected cut
    unannotated:  clips of utterances that no row tells of
    foreign:      media files whose names tell no utterance
    apple_double: files that macOS left beside real ones; nobody reads them
    """

    split: Split
    folders: tuple[Path, ...]
    clips: tuple[LocatedClip, ...]
    twins: tuple[LocatedClip, ...]
    corrected: frozenset[ClipKey]
    unannotated: tuple[LocatedClip, ...]
    foreign: tuple[Path, ...]
    apple_double: int

    @property
    def is_empty(self) -> bool:
        return not (self.found or self.twins or self.unannotated or self.foreign)

    @property
    def found(self) -> tuple[LocatedClip, ...]:
        return tuple(clip for clip in self.clips if clip.path is not None)

    @property
    def to_inspect(self) -> tuple[LocatedClip, ...]:
        return (*self.found, *self.twins, *self.unannotated)


def find_files(
    data: Path, split: Split, rows: Sequence[Utterance], test_clips: TestClips
) -> SplitFiles:
    """Raises InputError where a folder of clips cannot be listed."""
    files = index_clips(data, split)
    clips = locate_clips(data, split, rows, test_clips)
    keys = {row.key for row in rows}
    told = {stem: parse_clip_stem(stem, split) for stem in files}
    others = {each[0] for each in told.values() if each is not None} - keys
    folders = tuple(find_media_folders(data, split))
    return SplitFiles(
        split=split,
        folders=folders,
        clips=tuple(clips),
        twins=tuple(twin for clip in clips if (twin := _twin(clip, files)) is not None),
        corrected=frozenset(key for key in keys if _corrected_stem(key) in files),
        unannotated=tuple(_unannotated(key, files) for key in sorted(others)),
        foreign=tuple(sorted(files[stem] for stem, each in told.items() if each is None)),
        apple_double=sum(_count_apple_doubles(folder) for folder in folders),
    )


def _corrected_stem(key: ClipKey) -> str:
    return f"{CORRECTED_PREFIX}{clip_stem(key)}"


def _twin(clip: LocatedClip, files: dict[str, Path]) -> LocatedClip | None:
    key = clip.utterance.key
    if clip.path is None or key.split != "test":
        return None
    plain, corrected = files.get(clip_stem(key)), files.get(_corrected_stem(key))
    if plain is None or corrected is None:
        return None
    other = plain if clip.path == corrected.absolute() else corrected
    return LocatedClip(utterance=clip.utterance, path=other.absolute())


def _unannotated(key: ClipKey, files: dict[str, Path]) -> LocatedClip:
    path = files.get(clip_stem(key)) or files[_corrected_stem(key)]
    return LocatedClip(utterance=Utterance(key=key, text=""), path=path.absolute())


def _count_apple_doubles(folder: Path) -> int:
    return sum(path.name.startswith(APPLE_DOUBLE_PREFIX) for path in folder.iterdir())
