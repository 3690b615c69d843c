"""Archives made to do harm: nothing outside the folder, nothing beyond the budget, one line."""

import gzip
import tarfile
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.download.archive import ArchiveError
from pipeline.download.config import DownloadConfig
from pipeline.download.download import download

FOLDER = "train_splits"
GOOD = f"{FOLDER}/dia0_utt0.mp4"
CSV = "train_sent_emo.csv"
END = bytes(1024)


def entry(name: str, content: bytes = b"", **fields: object) -> bytes:
    """A member as its bytes: header and padded content. `size` may lie."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    padded = content + bytes(-len(content) % 512)
    return member.tobuf(tarfile.GNU_FORMAT) + padded


def pax(records: dict[str, str], **fields: object) -> bytes:
    body = b""
    for name, value in records.items():
        record = f" {name}={value}\n".encode()
        length = len(record)
        while len(f"{length}") + len(record) != length:
            length = len(f"{length}") + len(record)
        body += f"{length}".encode() + record
    return entry("pax", body, type=tarfile.XHDTYPE, **fields)


def packed(*entries: bytes) -> bytes:
    return gzip.compress(b"".join(entries) + END, compresslevel=1)


GOOD_ENTRIES = entry(CSV, b"Dialogue_ID\r\n") + entry(GOOD, b"a clip")


def sparse_by_header() -> bytes:
    """GNU's old form: a header that says it stands for a terabyte."""
    header = bytearray(entry(GOOD, b"", type=tarfile.GNUTYPE_SPARSE))
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # the real size, in base 256
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    return packed(bytes(header))


def sparse_by_map() -> bytes:
    """GNU's newest form, with a map that never ends."""
    records = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": GOOD}
    return packed(pax(records), entry(GOOD, b"999999999\n" + b"1\n" * 4_000_000))


def many_entries() -> bytes:
    """60,000, of which 50,000 are the most."""
    squeeze = zlib.compressobj(1, wbits=31)
    block = entry(f"{FOLDER}/x.mp4") * 1000
    return b"".join([*(squeeze.compress(block) for _ in range(60)), squeeze.flush()])


def bomb(num_bytes: int) -> bytes:
    return packed(entry(GOOD, bytes(num_bytes)))


def nested_for_ever(depth: int) -> bytes:
    inner = packed(GOOD_ENTRIES)
    for _ in range(depth):
        inner = packed(entry("train.tar.gz", inner))
    return inner


def nested_bombs() -> bytes:
    """Each is allowed, the two together are not."""
    return packed(*(entry(f"{split}.tar.gz", bomb(60_000_000)) for split in ("train", "dev")))


def one_bit_flipped() -> bytes:
    content = bytearray(packed(GOOD_ENTRIES, entry(f"{FOLDER}/dia0_utt1.mp4", bytes(range(256)))))
    content[len(content) // 2] ^= 1
    return bytes(content)


def broken_header() -> bytes:
    """tarfile takes it for the end of the archive, and says nothing."""
    broken = bytearray(entry(f"{FOLDER}/dia0_utt1.mp4", b"lost"))
    broken[0] ^= 1
    return packed(GOOD_ENTRIES, bytes(broken))


HOSTILE: dict[str, tuple[Callable[[], bytes], str]] = {
    "dots": (lambda: packed(entry("../../train_splits/dia0_utt0.mp4", b"x")), "leads out of"),
    "dots inside": (lambda: packed(entry(f"{FOLDER}/../../{GOOD}", b"x")), "leads out of"),
    "absolute": (lambda: packed(entry("/tmp/train_splits/dia0_utt0.mp4", b"x")), "leads out of"),
    "dots in pax": (lambda: packed(pax({"path": f"../{GOOD}"}), entry("a", b"x")), "leads out"),
    "dots inside an inner archive": (
        lambda: packed(entry("train.tar.gz", packed(entry(f"../{GOOD}", b"x")))),
        "leads out of",
    ),
    "symbolic link": (
        lambda: packed(
            entry(FOLDER, type=tarfile.SYMTYPE, linkname="/tmp"), entry(GOOD, b"written through")
        ),
        "a symbolic link",
    ),
    "link under a clip's name": (
        lambda: packed(entry(GOOD, type=tarfile.SYMTYPE, linkname="/etc/passwd")),
        "a symbolic link",
    ),
    "hard link": (
        lambda: packed(entry(GOOD, type=tarfile.LNKTYPE, linkname="/etc/passwd")),
        "a hard link",
    ),
    "character device": (lambda: packed(entry(GOOD, type=tarfile.CHRTYPE)), "a device"),
    "block device": (lambda: packed(entry(GOOD, type=tarfile.BLKTYPE)), "a device"),
    "pipe": (lambda: packed(entry(GOOD, type=tarfile.FIFOTYPE)), "a pipe"),
    "sparse": (sparse_by_header, "a sparse file"),
    "sparse map without end": (sparse_by_map, "a header of more than"),
    "bomb": (lambda: bomb(100_000_000), "far more than its own size"),
    "60,000 entries": (many_entries, "far more entries"),
    "duplicate names": (
        lambda: packed(GOOD_ENTRIES, entry(GOOD, b"another")),
        r"two different files for dia0_utt0\.mp4",
    ),
    "nested for ever": (lambda: nested_for_ever(5), "an archive inside the archive"),
    "nested bombs": (nested_bombs, "far more than its own size"),
    "long name of 8 GB": (
        lambda: packed(entry("x", type=tarfile.GNUTYPE_LONGNAME, size=8 << 30)),
        "a header of more than",
    ),
    "pax header of 8 GB": (lambda: packed(pax({}, size=8 << 30)), "a header of more than"),
    "pax size below zero": (
        lambda: packed(pax({"size": "-100000"}), entry(GOOD, b"x"), GOOD_ENTRIES),
        "damaged",
    ),
    "headers of headers": (lambda: packed(pax({"a": "b"}) * 5000), "nested without end|header of"),
    "a clip of a terabyte": (lambda: packed(entry(GOOD, size=1 << 40)), "no clip is that long"),
    "cut off in its packing": (lambda: packed(GOOD_ENTRIES * 9)[:-30], "ends too early"),
    "cut off before its end mark": (
        lambda: gzip.compress(GOOD_ENTRIES),
        "ends too early",
    ),
    "cut off inside a clip": (
        lambda: gzip.compress(entry(GOOD, size=5000) + b"only this"),
        "ends too early|damaged",
    ),
    "one bit flipped": (one_bit_flipped, "damaged"),
    "broken header": (broken_header, "damaged"),
    "no archive": (lambda: b"<!doctype html><p>Not found", "damaged"),
    "nothing": (lambda: b"", "damaged|ends too early"),
    "packed nothing": (lambda: gzip.compress(b""), "damaged|ends too early"),
}


@pytest.mark.heavy
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_archive_is_refused_in_one_line_and_writes_nothing_else(
    kind: str, tmp_path: Path
) -> None:
    make, words = HOSTILE[kind]
    home = tmp_path / "home"
    home.mkdir()
    archive = home / "MELD.Raw.tar.gz"
    archive.write_bytes(make())
    out = home / "deep" / "data"
    began = time.process_time()
    with pytest.raises(ArchiveError, match=words) as caught:
        download(DownloadConfig(out=out, source=archive, splits=("train", "dev")))
    assert time.process_time() - began < 30
    assert "\n" not in str(caught.value)
    assert str(archive) in str(caught.value)
    written = {path for path in tmp_path.rglob("*") if path.is_file() or path.is_symlink()}
    stage = out / ".download/unpacked"
    clips = {stage / FOLDER / f"dia0_utt{number}.mp4" for number in range(2)}
    assert written - {archive} <= {stage / CSV, *clips, *(out / ".download").iterdir()}
    assert not any(path.is_symlink() for path in written)
    budget = 4 * archive.stat().st_size + (64 << 20)
    assert sum(path.stat().st_size for path in written - {archive}) <= budget


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["long name of 8 GB", "pax header of 8 GB", "bomb"])
def test_a_hostile_archive_does_not_fill_the_memory(kind: str, tmp_path: Path) -> None:
    archive = tmp_path / "MELD.Raw.tar.gz"
    archive.write_bytes(HOSTILE[kind][0]())
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError):
            download(DownloadConfig(out=tmp_path / "data", source=archive, splits=("train",)))
        assert tracemalloc.get_traced_memory()[1] < 64 << 20
    finally:
        tracemalloc.stop()


def test_names_that_are_not_melds_are_dropped_and_counted(tmp_path: Path) -> None:
    names = (
        f"{FOLDER}/dia01_utt0.mp4",
        f"{FOLDER}/dia0_utt0.mp4.exe",
        f"{FOLDER}/final_videos_testdia0_utt0.mp4",
        f"elsewhere/{'x' * 300}.mp4",
        "dia0_utt1.mp4",
        f"{FOLDER}/dia1_utt0.MP4\n\x1b[2J",
        "setup.py",
    )
    archive = tmp_path / "some.tar.gz"
    archive.write_bytes(packed(GOOD_ENTRIES, *(entry(name, b"x") for name in names)))
    out = tmp_path / "data"
    report = download(DownloadConfig(out=out, source=archive, splits=("train",)))
    assert report.found is not None
    assert report.found.others == len(names)
    assert {path.name for path in out.rglob("*.*") if ".download" not in path.parts} == {
        *("meld.json", CSV, "dia0_utt0.mp4")
    }


def test_the_same_file_twice_with_the_same_content_does_no_harm(tmp_path: Path) -> None:
    archive = tmp_path / "some.tar.gz"
    archive.write_bytes(packed(GOOD_ENTRIES, GOOD_ENTRIES))
    report = download(DownloadConfig(out=tmp_path / "data", source=archive, splits=("train",)))
    assert report.clips == {"train": 1}


def test_an_archive_that_is_not_packed_is_read_as_well(tmp_path: Path) -> None:
    archive = tmp_path / "some.tar"
    archive.write_bytes(GOOD_ENTRIES + END)
    report = download(DownloadConfig(out=tmp_path / "data", source=archive, splits=("train",)))
    assert report.clips == {"train": 1}


def test_nothing_of_a_damaged_archive_is_put_in_its_place(tmp_path: Path) -> None:
    """The checksum stands at the end: by then clips of wrong bytes were written, aside."""
    archive = tmp_path / "MELD.Raw.tar.gz"
    archive.write_bytes(one_bit_flipped())
    out = tmp_path / "data"
    with pytest.raises(ArchiveError):
        download(DownloadConfig(out=out, source=archive, splits=("train",)))
    assert [path.name for path in out.iterdir()] == [".download"]
    archive.write_bytes(packed(GOOD_ENTRIES))
    report = download(DownloadConfig(out=out, source=archive, splits=("train",)))
    assert report.clips == {"train": 1}
    assert {path.name for path in (out / FOLDER).iterdir()} == {"dia0_utt0.mp4"}
