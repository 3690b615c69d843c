"""Finds the clip of each utterance, or records that it is missing.

If an utterance has several files, the first of these rules that distinguishes them decides: the
first folder that has one, a file before a folder of that name, the earlier extension in
`EXTENSIONS` (video before sound alone), MELD's spelling of the name, the alphabet.
"""

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.corpus.layout import (
    CORRECTED_PREFIX,
    MEDIA_FOLDERS,
    clip_stem,
    find_media_folders,
    plain_stem,
    resembled_stem,
)
from pipeline.errors import InputError
from pipeline.recipe import TestClips
from pipeline.schema import LocatedClip, Split, Utterance

_PICTURES = (
    ".mp4 .m4v .mov .qt .mkv .webm .avi .divx .ts .m2ts .mts .m2t .tod .mpg .mpeg .mpe .mod .m2p "
    ".vob .flv .f4v .wmv .asf .3gp .3gpp .3g2 .ogv .ogm"
)
_SOUND = (
    ".m4a .m4b .wav .wave .bwf .rf64 .w64 .flac .mp3 .mp2 .mpga .ogg .oga .opus .spx .aac .adts "
    ".loas .latm .wma .mka .weba .3ga .amr .awb .caf .aif .aiff .aifc .au .snd"
)
# Reading one tells how to convert it.
_NOT_READ = (
    ".mxf .rm .rmvb .dv .h264 .264 .avc .h265 .265 .hevc .ivf .y4m .m1v .m2v .mpv .ape .wv .tta "
    ".mpc .ac3 .eac3 .ec3 .dts .dsf"
)
# In order of preference.
EXTENSIONS = tuple(f"{_PICTURES} {_SOUND} {_NOT_READ}".split())
_RANK = {extension: rank for rank, extension in enumerate(EXTENSIONS)}
_UNFINISHED = frozenset(".part .crdownload .download .filepart .partial .tmp .aria2 .ytdl".split())
# Files that lie beside clips and are never clips.
_NOTES = frozenset(
    ".txt .srt .vtt .ass .sub .json .csv .tsv .xml .yaml .yml .textgrid .lab .log .md5 .sha256 "
    ".npy .npz .pkl .pt .h5 .jpg .jpeg .png .bmp .gif .webp .html .htm .pdf .nfo .lnk".split()
)


@dataclass(frozen=True, kw_only=True)
class ClipIndex:
    """The media files of a split.

    read:    by the clip's name as MELD spells it (`clip_stem`, a corrected cut with its prefix), or
             by a file's own name where that tells no clip; without extension
    spare:   further files of a clip in the same folder, best first; not read
    strange: files with similar names that are not read, by the clip that they may be meant for
    """

    read: Mapping[str, Path] = field(default_factory=dict)
    spare: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    strange: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)


def locate_clips(
    data: Path, split: Split, utterances: Sequence[Utterance], test_clips: TestClips
) -> list[LocatedClip]:
    """One located clip per utterance, in order.

    Of the test clips, 132 exist twice: `final_videos_testdiaX_uttY.mp4` is the corrected cut of
    a clip that is mis-cut under its plain name. "fixed" takes it if it exists, "legacy" never.

    Raises:
        InputError: a folder of clips cannot be listed.
    """
    files = look_for_clips(data, split)
    corrected = CORRECTED_PREFIX if split == "test" and test_clips == "fixed" else None
    return [_locate(utterance, files, corrected) for utterance in utterances]


def index_clips(data: Path, split: Split) -> dict[str, Path]:
    """`ClipIndex.read` of a split.

    Files whose name starts with a dot are macOS AppleDouble leftovers and never clips.

    Raises:
        InputError: a folder of clips cannot be listed.
    """
    return dict(look_for_clips(data, split).read)


def look_for_clips(data: Path, split: Split) -> ClipIndex:
    """Every media file of a split. Raises InputError where a folder of clips cannot be listed."""
    return _index(find_media_folders(data, split))


def index_files(folders: Sequence[Path]) -> dict[str, Path]:
    """`index_clips` of these folders alone."""
    return dict(_index(folders).read)


def _index(folders: Sequence[Path]) -> ClipIndex:
    read: dict[str, Path] = {}
    spare: dict[str, tuple[Path, ...]] = {}
    strange: dict[str, tuple[Path, ...]] = {}
    for folder in folders:
        try:
            with os.scandir(folder) as entries:  # MELD's folders hold 10,000 files: one listing
                seen = [entry for entry in entries if not entry.name.startswith(".")]
                is_folder = {entry.name: _is_folder(entry) for entry in seen}
        except OSError as error:
            raise InputError(f"{folder}: cannot be listed: {error.strerror}") from error
        files = []
        for name in is_folder:
            stem, extension = os.path.splitext(name)  # noqa: PTH122 (10,000 of them)
            rank = _RANK.get(extension.lower())
            plain = plain_stem(stem)
            if rank is not None:
                # A folder with a clip's name comes last, so that it is named only if no file has
                # that name.
                files.append((is_folder[name], rank, stem != plain, name, plain or stem))
            meant = resembled_stem(name)
            if meant is not None and (rank is None or plain is None) and not is_folder[name]:
                strange[meant] = (*strange.get(meant, ()), folder / name)
        for is_last, _, _, name, stem in sorted(files):
            path = folder / name
            if read.setdefault(stem, path) != path and not is_last and read[stem].parent == folder:
                spare[stem] = (*spare.get(stem, ()), path)
    return ClipIndex(
        read=read,
        spare=spare,
        strange={stem: tuple(sorted(paths)) for stem, paths in strange.items()},
    )


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself: told of later, by its clip's name
        return False


def _locate(utterance: Utterance, files: ClipIndex, corrected: str | None) -> LocatedClip:
    stem, split = clip_stem(utterance.key), utterance.key.split
    path = files.read.get(f"{corrected}{stem}") if corrected else None
    path = path or files.read.get(stem)
    if path is not None:
        return LocatedClip(utterance=utterance, path=path.absolute())
    missing = why_not_taken(files.strange.get(stem, ()), stem)
    where = f"{MEDIA_FOLDERS[split]} or {split}"
    missing = missing or f"no {stem}.mp4, or of another format, in {where}"
    return LocatedClip(utterance=utterance, missing=missing)


def why_not_taken(files: Iterable[Path], stem: str) -> str:
    """Of the first of these files that somebody may take for the clip; "" where there is none."""
    for path in files:
        ending = path.suffix.lower()
        if ending in _NOTES:
            continue
        if ending in _UNFINISHED:
            return f"{path.name}: an unfinished download"
        if ending in _RANK:
            return f"{path.name}: not named like a clip; rename it to {stem}{ending}"
        what = f"{ending} is no extension that is read" if ending else "it has no extension"
        return (
            f"{path.name}: {what}; rename it to {stem} with the extension of its format, or "
            f"convert it: {shlex.join(['ffmpeg', '-i', path.name, f'{stem}.mp4'])}"
        )
    return ""
