"""Uses an unpacked copy of MELD in its place: `out` gets links to it."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.corpus.clips import index_files
from pipeline.corpus.layout import (
    MEDIA_FOLDERS,
    annotations_name,
    find_annotations,
    find_media_folders,
    parse_clip_stem,
)
from pipeline.errors import InputError, StorageError
from pipeline.schema import Split


def is_unpacked(source: Path, split: Split) -> bool:
    """Whether the split's CSV and clips lie there, in any layout that is known."""
    return find_annotations(source, split) is not None and _find_clips(source, split) is not None


def is_linked(out: Path, split: Split) -> bool:
    """Whether `adopt_splits` left the split here earlier, and what it links to is still there."""
    return (out / MEDIA_FOLDERS[split]).is_symlink() and is_unpacked(out, split)


def adopt_splits(source: Path, splits: Sequence[Split], out: Path) -> None:
    """Links each split's CSV and its folder of clips; nothing is copied. Where `out` is `source`
    and the layout is ours, there is nothing to do.

    Raises:
        InputError: something else has the name of a link; then none was made.
        StorageError: the disk.
    """
    links = {name: target for split in splits for name, target in _links(source, split, out)}
    try:
        for name, target in links.items():
            _check_name(name, target)
        for name, target in links.items():
            _link(name, target)
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error


def _links(source: Path, split: Split, out: Path) -> tuple[tuple[Path, Path], ...]:
    annotations = find_annotations(source, split)
    clips = _find_clips(source, split)
    if annotations is None or clips is None:
        raise InputError(f"{source}: no {annotations_name(split)} with a folder of its clips")
    return (out / annotations_name(split), annotations), (out / MEDIA_FOLDERS[split], clips)


def _find_clips(source: Path, split: Split) -> Path | None:
    """The folder with the most clips: of several copies, some may be empty or half there."""
    num_clips = {
        folder: sum(parse_clip_stem(stem, split) is not None for stem in index_files([folder]))
        for folder in find_media_folders(source, split)
    }
    fullest = max(num_clips, key=lambda folder: num_clips[folder], default=None)
    return fullest if fullest is not None and num_clips[fullest] else None


def _is_there(name: Path, target: Path) -> bool:
    return name.exists() and name.samefile(target)


def _check_name(name: Path, target: Path) -> None:
    if name.exists() and not name.is_symlink() and not _is_there(name, target):
        raise InputError(f"{name}: already exists; move it away or choose another --out")


def _link(name: Path, target: Path) -> None:
    if _is_there(name, target):
        return
    name.unlink(missing_ok=True)  # a link, as was checked, of an earlier copy that was used
    name.symlink_to(target.absolute(), target_is_directory=target.is_dir())
