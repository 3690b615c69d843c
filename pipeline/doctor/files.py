"""The media files of a split: those of its rows, and those without a row."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.corpus.clips import ClipIndex, locate_clips, look_for_clips, why_not_taken
from pipeline.corpus.layout import CORRECTED_PREFIX, clip_stem, find_media_folders, parse_clip_stem
from pipeline.recipe import TestClips
from pipeline.schema import ClipKey, LocatedClip, Split, Utterance

APPLE_DOUBLE_PREFIX = "._"


class ForeignFile(NamedTuple):
    path: Path
    message: str


@dataclass(frozen=True, kw_only=True)
class SplitFiles:
    """Media files of one split.

    clips:        one per row, in the CSV's order; without a path where there is no file
    twins:        of rows whose clip exists twice, the cut that is not read
    corrected:    rows that have a corrected cut
    unannotated:  clips of utterances that no row tells of
    spare:        of rows and `unannotated` that have several files, those that are not read
    foreign:      files that no row asks for, whose names tell no utterance or that are not read
    misnamed:     rows without a clip that have a file whose name is like one; `missing` tells of it
    apple_double: files that macOS left beside real ones; nobody reads them
    """

    split: Split
    folders: tuple[Path, ...]
    clips: tuple[LocatedClip, ...]
    twins: tuple[LocatedClip, ...]
    corrected: frozenset[ClipKey]
    unannotated: tuple[LocatedClip, ...]
    spare: tuple[LocatedClip, ...]
    foreign: tuple[ForeignFile, ...]
    misnamed: frozenset[ClipKey]
    apple_double: int

    @property
    def is_empty(self) -> bool:
        return not (self.found or self.twins or self.unannotated or self.foreign or self.misnamed)

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
    index = look_for_clips(data, split)
    files = index.read
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
        spare=tuple(_spare(index, split)),
        foreign=tuple(sorted(_foreign(index, split, keys))),
        misnamed=frozenset(
            clip.utterance.key
            for clip in clips
            if clip.path is None and _why_strange(index, clip.utterance.key)
        ),
        apple_double=sum(_count_apple_doubles(folder) for folder in folders),
    )


def _spare(index: ClipIndex, split: Split) -> Iterator[LocatedClip]:
    for stem, paths in sorted(index.spare.items()):
        told = parse_clip_stem(stem, split)
        if told is None:
            continue
        row = Utterance(key=told[0], text="")
        message = f"{index.read[stem].name} is read in its place"
        for path in paths:
            yield LocatedClip(utterance=row, path=path.absolute(), missing=message)


def _foreign(index: ClipIndex, split: Split, keys: Collection[ClipKey]) -> Iterator[ForeignFile]:
    """Media that tell no utterance, and what is like a clip of which there is neither row nor
    file."""
    for stem, path in index.read.items():
        if parse_clip_stem(stem, split) is None:
            message = "not named like a clip (dia1_utt2.mp4); no row asks for it"
            yield ForeignFile(path, message)
    read = set(index.read.values())
    for stem, paths in index.strange.items():
        told = parse_clip_stem(stem, split)
        if stem in index.read or (told is not None and told[0] in keys):
            continue
        for path in paths:
            if path not in read and why_not_taken([path], stem):
                yield ForeignFile(path, f"{why_not_taken([path], stem)}; no row asks for it")


def _why_strange(index: ClipIndex, key: ClipKey) -> str:
    return why_not_taken(index.strange.get(clip_stem(key), ()), clip_stem(key))


def _corrected_stem(key: ClipKey) -> str:
    return f"{CORRECTED_PREFIX}{clip_stem(key)}"


def _twin(clip: LocatedClip, files: Mapping[str, Path]) -> LocatedClip | None:
    key = clip.utterance.key
    if clip.path is None or key.split != "test":
        return None
    plain, corrected = files.get(clip_stem(key)), files.get(_corrected_stem(key))
    if plain is None or corrected is None:
        return None
    other = plain if clip.path == corrected.absolute() else corrected
    return LocatedClip(utterance=clip.utterance, path=other.absolute())


def _unannotated(key: ClipKey, files: Mapping[str, Path]) -> LocatedClip:
    path = files.get(clip_stem(key)) or files[_corrected_stem(key)]
    return LocatedClip(utterance=Utterance(key=key, text=""), path=path.absolute())


def _count_apple_doubles(folder: Path) -> int:
    return sum(path.name.startswith(APPLE_DOUBLE_PREFIX) for path in folder.iterdir())
