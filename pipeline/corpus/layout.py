"""The layouts of MELD's files: as MELD.Raw unpacks, with one more folder per split, as Kaggle packs
it, or plain. All folder and file names are defined here."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.schema import ClipKey, Split

MEDIA_FOLDERS: dict[Split, str] = {
    "train": "train_splits",
    "dev": "dev_splits_complete",
    "test": "output_repeated_splits_test",
}
# Kaggle's copy of the archive has two folders around it.
_ROOTS = ("", "MELD.Raw", "MELD-RAW/MELD.Raw")
# Of the test clips, 132 exist twice; the corrected cut has this before its plain name.
CORRECTED_PREFIX = "final_videos_test"
# Ids are kept as 64-bit integers.
_ID = r"(0|[1-9]\d{0,17})"
_CLIP_STEM = re.compile(rf"({CORRECTED_PREFIX})?dia{_ID}_utt{_ID}")
# As people write it: any letter case, and ids filled up with zeros.
_ANY_STEM = re.compile(rf"({CORRECTED_PREFIX})?dia0*{_ID}_utt0*{_ID}", re.IGNORECASE | re.ASCII)
# A clip's name with something after it, as tools name what they made of the clip.
_LEADING_STEM = re.compile(
    rf"({CORRECTED_PREFIX})?dia0*{_ID}_utt0*{_ID}(?!\d)(.*)", re.IGNORECASE | re.ASCII | re.DOTALL
)
# Names that resemble a clip's: other separators, and anything before and after.
_RESEMBLING = re.compile(
    rf"(?<![a-z])({CORRECTED_PREFIX})?dia[ _.-]*0*{_ID}[ _.-]*utt[ _.-]*0*{_ID}(?!\d)",
    re.IGNORECASE | re.ASCII,
)


def annotations_name(split: Split) -> str:
    return f"{split}_sent_emo.csv"


def clip_stem(key: ClipKey) -> str:
    return f"dia{key.dialogue_id}_utt{key.utterance_id}"


def parse_clip_stem(stem: str, split: Split) -> tuple[ClipKey, bool] | None:
    """The utterance of a clip by its name without extension, and whether it is a corrected cut
    (test only); None for any other name."""
    match = _CLIP_STEM.fullmatch(stem)
    if match is None or (match[1] and split != "test"):
        return None
    return ClipKey(split, int(match[2]), int(match[3])), bool(match[1])


def plain_stem(stem: str) -> str | None:
    """`clip_stem`, with a corrected cut's prefix, of a name without extension that is a clip's but
    for its letter case and zeros before its ids; None for any other name."""
    return _plain(_ANY_STEM.fullmatch(stem))


def resembled_stem(name: str) -> str | None:
    """`plain_stem` of the clip that a file's name resembles; None if it resembles none."""
    return _plain(_RESEMBLING.search(name))


def _plain(match: re.Match[str] | None) -> str | None:
    if match is None:
        return None
    return f"{CORRECTED_PREFIX if match[1] else ''}dia{match[2]}_utt{match[3]}"


def parse_leading_stem(name: str) -> tuple[int, int, bool, str] | None:
    """Dialogue and utterance of a name that begins as a clip's in any letter case, whether it is a
    corrected cut's, and what follows: "dia0_utt3_rgb" -> (0, 3, False, "_rgb"). None for any other
    name."""
    match = _LEADING_STEM.fullmatch(name)
    return match and (int(match[2]), int(match[3]), bool(match[1]), match[4])


def roots(data: Path) -> list[Path]:
    """The folders under which a copy of the archive may begin, the one that wins first."""
    return [data / root for root in _ROOTS]


def find_annotations(data: Path, split: Split) -> Path | None:
    """The split's CSV: flat beside the folders, or in the split's own folder as unpacked.

    Raises InputError where a folder cannot be looked into.
    """
    name = annotations_name(split)
    folders = [root / part for root in roots(data) for part in ("", split)]
    with _looking():
        return next((folder / name for folder in folders if (folder / name).is_file()), None)


def find_similar_annotations(data: Path, split: Split) -> Path | None:
    """A file that is not the split's CSV and has its name but for letter case and what follows:
    "train_sent_emo.xlsx", "Train_Sent_Emo.csv", "train_sent_emo (1).csv".

    Raises InputError where a folder cannot be looked into.
    """
    start = annotations_name(split).removesuffix(".csv")
    folders = [root / part for root in roots(data) for part in ("", split)]
    with _looking():
        for folder in (folder for folder in folders if folder.is_dir()):
            for path in sorted(folder.iterdir()):
                if path.name.casefold().startswith(start) and path.is_file():
                    return path
    return None


def find_media_folders(data: Path, split: Split) -> list[Path]:
    """The folders there are for a split's clips, the one that wins first.

    Raises InputError where a folder cannot be looked into.
    """
    parts = (MEDIA_FOLDERS[split], f"{split}/{MEDIA_FOLDERS[split]}", split)
    folders = [root / part for root in roots(data) for part in parts]
    with _looking():
        return [folder for folder in folders if folder.is_dir()]


@contextmanager
def _looking() -> Iterator[None]:
    """Asking what a path is fails where a folder is closed or a name too long."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be listed: {error.strerror}") from error
