"""Utterance + media root to a located clip, or a recorded absence."""

import os
from pathlib import Path

from pipeline.errors import InputError
from pipeline.schema import LocatedClip, Split, Utterance

# As MELD.Raw unpacks, as its split archives unpack one folder down, and a plain folder.
_SPLIT_FOLDERS: dict[Split, tuple[str, ...]] = {
    "train": ("train_splits", "train/train_splits", "train"),
    "dev": ("dev_splits_complete", "dev/dev_splits_complete", "dev"),
    "test": ("output_repeated_splits_test", "test/output_repeated_splits_test", "test"),
}
# In order of preference, where one utterance has several files.
_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".wav", ".flac", ".mp3", ".ogg")


def locate_clips(data: Path, split: Split, utterances: list[Utterance]) -> list[LocatedClip]:
    """One located clip per utterance, in order.

    Of the test clips, 132 exist twice: `final_videos_testdiaX_uttY.mp4` is the corrected cut
    of a clip that is mis-cut under its plain name, and is taken where it is there.
    Files whose name starts with a dot are macOS AppleDouble leftovers and never clips.

    Raises:
        InputError: a folder of clips cannot be listed.
    """
    roots = (data, data / "MELD.Raw")
    folders = [root / name for root in roots for name in _SPLIT_FOLDERS[split]]
    files = _index_files([folder for folder in folders if folder.is_dir()])
    return [_locate(utterance, files, data) for utterance in utterances]


def _index_files(folders: list[Path]) -> dict[str, Path]:
    """Stem to path; the first folder and the preferred extension win."""
    files: dict[str, Path] = {}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:  # MELD's folders hold 10,000 files: one listing
                names = [entry.name for entry in entries if not entry.name.startswith(".")]
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
        for extension in _EXTENSIONS:
            for name in sorted(name for name in names if name.lower().endswith(extension)):
                files.setdefault(name[: -len(extension)], folder / name)
    return files


def _locate(utterance: Utterance, files: dict[str, Path], data: Path) -> LocatedClip:
    stem = f"dia{utterance.key.dialogue_id}_utt{utterance.key.utterance_id}"
    path = files.get(f"final_videos_test{stem}") if utterance.key.split == "test" else None
    path = path or files.get(stem)
    if path is None:
        folder = _SPLIT_FOLDERS[utterance.key.split][0]
        return LocatedClip(utterance=utterance, missing=f"no {stem}.mp4 in {folder} under {data}")
    return LocatedClip(utterance=utterance, path=path.absolute())
