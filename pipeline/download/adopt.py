"""A copy of MELD that is unpacked already, used where it lies: `out` gets links to it."""

from pathlib import Path

from pipeline.errors import InputError, StorageError
from pipeline.layout import MEDIA_FOLDERS, annotations_name, find_annotations, find_media_folders
from pipeline.schema import Split


def is_unpacked(source: Path, split: Split) -> bool:
    """Whether the split's CSV and clips lie there, in any layout that is known."""
    return find_annotations(source, split) is not None and bool(find_media_folders(source, split))


def is_linked(out: Path, split: Split) -> bool:
    """Whether `adopt_split` left the split here earlier, and what it links to is still there."""
    return (out / MEDIA_FOLDERS[split]).is_symlink() and is_unpacked(out, split)


def adopt_split(source: Path, split: Split, out: Path) -> None:
    """Links the split's CSV and its folder of clips; nothing is copied. Where `out` is `source`
    and the layout is ours, there is nothing to do.

    Raises:
        InputError: something else has the name of the link.
        StorageError: the disk.
    """
    annotations = find_annotations(source, split)
    folders = find_media_folders(source, split)
    if annotations is None or not folders:
        raise InputError(f"{source}: no {annotations_name(split)} with a folder of its clips")
    try:
        _link(out / annotations_name(split), annotations)
        _link(out / MEDIA_FOLDERS[split], folders[0])
    except OSError as error:
        raise StorageError(f"{error.filename}: {error.strerror}") from error


def _link(name: Path, target: Path) -> None:
    if name.exists() and name.samefile(target):
        return
    if name.is_symlink():  # our own, of an earlier copy that was used
        name.unlink()
    elif name.exists():
        raise InputError(f"{name}: is there already; move it away or choose another --out")
    name.symlink_to(target.absolute(), target_is_directory=target.is_dir())
