"""A small imitation of the real archive, and what is on disk once it was unpacked."""

import hashlib
import io
import random
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.corpus.layout import MEDIA_FOLDERS
from pipeline.download.config import DownloadConfig
from pipeline.download.download import DownloadReport, download
from pipeline.schema import SPLITS, Split


@dataclass(frozen=True)
class Packed:
    """An archive in the shape of MELD.Raw.tar.gz, and what has to become of it."""

    path: Path
    sha256: str
    files: Mapping[str, bytes]  # by their path under --out
    apple_double: int
    others: int

    def of(self, *splits: Split) -> dict[str, bytes]:
        begins = tuple(name for split in splits for name in (MEDIA_FOLDERS[split], f"{split}_sent"))
        return {name: each for name, each in self.files.items() if name.startswith(begins)}


def pack(files: Mapping[str, bytes | None]) -> bytes:
    """A .tar.gz; None is a folder."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz", compresslevel=1) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            member.size = len(content or b"")
            archive.addfile(member, io.BytesIO(content or b""))
    return buffer.getvalue()


def imitate_meld(path: Path) -> Packed:
    """Nested archives, the train CSV inside train.tar.gz, corrected cuts beside plain ones,
    AppleDouble files and folders, .DS_Store, a README; scaled down."""
    rng = random.Random(1)
    names = {
        "train": [f"dia{d}_utt{u}" for d in range(24) for u in range(5)],
        "dev": [f"dia{d}_utt{u}" for d in range(4) for u in range(3)],
        "test": [f"dia{d}_utt{u}" for d in range(8) for u in range(4)],
    }
    names["test"] += [f"final_videos_test{name}" for name in names["test"][:5]]
    wanted: dict[str, bytes] = {}
    outer: dict[str, bytes | None] = {"MELD.Raw/": None, "MELD.Raw/README.txt": b"Read me"}
    apple_double, others = 0, 1
    for split in SPLITS:
        folder = MEDIA_FOLDERS[split]
        packed: dict[str, bytes | None] = {f"{folder}/": None, f"._{folder}": b"\0\5\x16\7"}
        for name in names[split]:
            content = rng.randbytes(rng.randrange(1, 10_000))
            packed[f"{folder}/{name}.mp4"] = wanted[f"{folder}/{name}.mp4"] = content
        doubled = names[split][::7]
        packed |= {f"{folder}/._{name}.mp4": b"\0\5\x16\7" for name in doubled}
        apple_double += 1 + len(doubled)
        packed |= {f"{folder}/.DS_Store": b"Bud1", f"{folder}/dia1_utt1 copy.mp4": b"no clip"}
        others += 2
        csv_name, csv = f"{split}_sent_emo.csv", f"Dialogue_ID,{split}\r\n".encode()
        wanted[csv_name] = csv
        if split == "train":
            packed[csv_name] = csv
        else:
            outer[f"MELD.Raw/{csv_name}"] = csv
        outer[f"MELD.Raw/{split}.tar.gz"] = pack(packed)
    path.write_bytes(pack(outer))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    return Packed(path, sha256, wanted, apple_double, others)


def tree(out: Path) -> dict[str, bytes]:
    """Every file under `out`, but for our own notes."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.rglob("*"))
        if path.is_file() and path.name != "meld.json" and ".download" not in path.parts
    }


def left_behind(out: Path) -> list[str]:
    return [path.name for path in (out / ".download").iterdir() if path.name != "lock"]


def get(out: Path, source: Path | None = None, **options: Any) -> DownloadReport:
    return download(DownloadConfig(out=out, source=source, **options))


def unpack_outer(packed: Packed, to: Path) -> Path:
    with tarfile.open(packed.path) as archive:
        for member in archive.getmembers():
            file = archive.extractfile(member) if member.isreg() else None
            if file is not None:
                path = to / member.name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(file.read())
    return to / "MELD.Raw"


def write_tree(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root
