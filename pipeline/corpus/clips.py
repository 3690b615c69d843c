"""Utterance + media root to a located clip, or a recorded absence."""

import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.corpus.layout import CORRECTED_PREFIX, MEDIA_FOLDERS, clip_stem, find_media_folders
from pipeline.errors import InputError
from pipeline.recipe import TestClips
from pipeline.schema import LocatedClip, Split, Utterance

# In order of preference, where one utterance has several files.
_EXTENSIONS = tuple(
    ".mp4 .m4v .mov .mkv .webm .avi .ts .m2ts .mts .mpg .mpeg .vob .flv .wmv .asf "
    ".m4a .wav .flac .mp3 .ogg .oga .opus .aac .wma".split()
)


def locate_clips(
    data: Path, split: Split, utterances: Sequence[Utterance], test_clips: TestClips
) -> list[LocatedClip]:
    """One located clip per utterance, in order.

    Of the test clips, 132 exist twice: `final_videos_testdiaX_uttY.mp4` is the corrected cut of
    a clip that is mis-cut under its plain name. "fixed" takes it where it is there, "legacy" never.

    Raises:
        InputError: a folder of clips cannot be listed.
    """
    files = index_clips(data, split)
    corrected = CORRECTED_PREFIX if split == "test" and test_clips == "fixed" else None
    return [_locate(utterance, files, corrected) for utterance in utterances]


def index_clips(data: Path, split: Split) -> dict[str, Path]:
    """Every media file of a split, by its name without extension; where there are several, the
    first folder and the preferred extension win.

    Files whose name starts with a dot are macOS AppleDouble leftovers and never clips.

    Raises:
        InputError: a folder of clips cannot be listed.
    """
    return index_files(find_media_folders(data, split))


def index_files(folders: Sequence[Path]) -> dict[str, Path]:
    """`index_clips` of these folders alone."""
    files: dict[str, Path] = {}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:  # MELD's folders hold 10,000 files: one listing
                seen = [entry for entry in entries if not entry.name.startswith(".")]
                is_folder = {entry.name: _is_folder(entry) for entry in seen}
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
        # A folder with a clip's name comes last: it is told of where no file has that name.
        for is_last in (False, True):
            names = sorted(name for name in is_folder if is_folder[name] == is_last)
            for extension in _EXTENSIONS:
                for name in (name for name in names if name.lower().endswith(extension)):
                    files.setdefault(name[: -len(extension)], folder / name)
    return files


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: told of later, by its clip's name
        return False


def _locate(utterance: Utterance, files: dict[str, Path], corrected: str | None) -> LocatedClip:
    stem = clip_stem(utterance.key)
    path = files.get(f"{corrected}{stem}") if corrected else None
    path = path or files.get(stem)
    if path is None:
        folder = MEDIA_FOLDERS[utterance.key.split]
        return LocatedClip(utterance=utterance, missing=f"no {stem}.mp4 in {folder}")
    return LocatedClip(utterance=utterance, path=path.absolute())
