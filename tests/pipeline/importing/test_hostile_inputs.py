"""A thousand damaged, odd and malicious inputs of `meld import`: each is imported or refused in one
line, none is unpickled, and the caches stay what they were."""

import io
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.schema import ClipKey

Meld = Callable[..., Any]
Clips = dict[ClipKey, NDArray[np.float64]]
Write = Callable[..., Path]
SPLITS = ("train", "dev", "test")
FAST = 50
ALL = 1000


class Trap:
    """Leaves a trace where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.trace,))


def npy_bytes(array: Any) -> bytes:
    written = io.BytesIO()
    np.save(written, array, allow_pickle=True)
    return written.getvalue()


def odd_array(random: np.random.Generator, trace: Path) -> Any:
    """What may stand in a .npy that somebody made."""
    return [
        lambda: np.array([Trap(trace)], dtype=object),
        lambda: np.array({"features": Trap(trace)}, dtype=object),
        lambda: np.array(["a", "text"]),
        lambda: np.array([1 + 2j, 3]),
        lambda: np.zeros((0, 3)),
        lambda: np.zeros((3, 0)),
        lambda: np.array(5.0),
        lambda: np.zeros((1, 2, 3, 4)),
        lambda: np.full((2, 3), np.nan),
        lambda: np.array([[1e308, -1e308, 1e308], [1e308, 1e308, -1e308]]),
        lambda: np.array([1, 2, 3], dtype=">i8"),
        lambda: np.array([True, False, True]),
        lambda: np.array([2**64 - 1] * 3, dtype=np.uint64),
        lambda: np.array([1, 2, 3], dtype="M8[s]"),
        lambda: np.array([(1, 2.0)], dtype=[("a", int), ("b", float)]),
        lambda: np.asfortranarray(random.normal(size=(4, 3))).astype(np.float16),
        lambda: random.normal(size=(2, 3)).astype(np.longdouble),
        lambda: np.array([b"bytes"]),
    ][int(random.integers(18))]()


ODD_TABLES = (
    "",
    "\n",
    "name",
    "name;\n",
    "name;a\n",
    "a;b\n1;2\n",
    "name;a\ndia0_utt0;1;2;3\n",
    "name;a\n'dia0_utt0';1e999\n",
    "name;a\ndia0_utt0;nan\ndia0_utt1;inf\n",
    "name;a;a\ndia0_utt0;1;2\n",
    'name;a\n"dia0_utt0;1\n',
    "dialogue_id,utterance_id,a\n0.5,1,2\n-1,0,2\n1e30,0,1\nx,y,1\n,,\n0,0,1\n",
    "split,name,a\ntrain,dia0_utt0,1\nnowhere,dia0_utt0,1\ndev,dia0_utt0,2\ntest,dia0_utt0,1\n",
    "name,a\ndia0_utt0,0x10\ndia0_utt1,1_000\ndia0_utt2,１\n",
    "name,a\n" + "dia0_utt0,1\n" * 50,
    "name,time,a\n" + "".join(f"dia0_utt{row % 3},{row},{row}\n" for row in range(50)),
    "name,a\ndia99999999999999999999_utt0,1\ndia0_utt999999999999999999,1\n",
    "frame, face_id, success, a\n1, x, yes, 2\n",
    "frame, face_id, success, a\n1, 0, 1, 2\n2, 1, 1, 3\n3, , , \n",
    "name,a\n" + "x" * 100_000 + ",1\n",
    ",".join(f"c{column}" for column in range(5000)) + "\n" + ",".join(["1"] * 5000) + "\n",
    "name,success,a\ndia0_utt0,0,1\n",
    "\ufeffname,a\r\ndia0_utt0,1\r\n",
    "name\ta\ndia0_utt0\t1\n",
    "name,__class__,_\ndia0_utt0,1,2\n",
)
ODD_NAMES = (
    "dia0_utt0 (1)",
    "DIA00_UTT000",
    "dia0_utt0.npy",
    "dia0_utt0\n",
    "..",
    "dia-1_utt0",
    "ｄia0_utt0",
)


def damage(content: bytes, random: np.random.Generator) -> bytes:
    """Bytes that are flipped, cut off, doubled, or put in from elsewhere."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        place = int(random.integers(max(len(changed), 1)))
        kind = int(random.integers(4))
        if kind == 0 and changed:
            changed[place % len(changed)] = int(random.integers(256))
        elif kind == 1:
            del changed[place : place + int(random.integers(1, 200))]
        elif kind == 2:
            changed[place:place] = random.bytes(int(random.integers(1, 40)))
        else:
            changed[place:place] = changed[: int(random.integers(1, 60))]
    return bytes(changed)


def zip_bytes(entries: list[tuple[str, bytes]]) -> bytes:
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries:
            archive.writestr(name, content)
    return written.getvalue()


def parquet_bytes(random: np.random.Generator) -> bytes:
    import pandas as pd

    rows = int(random.integers(0, 9))
    columns: dict[str, Any] = {"dialogue_id": [0] * rows, "utterance_id": [*range(rows)]}
    kind = int(random.integers(6))
    lists = [
        [random.normal(size=3).tolist() for _ in range(rows)],
        [random.normal(size=row % 3).tolist() for row in range(rows)],
        [[[1.0, 2.0], [3.0]] for _ in range(rows)],
        [None if row % 2 else [1.0, None] for row in range(rows)],
        ["text"] * rows,
        [*random.normal(size=rows)],
    ]
    columns["features"] = lists[kind]
    if random.integers(2):
        columns["split"] = [SPLITS[row % 3] for row in range(rows)]
    if random.integers(4) == 0:
        del columns["utterance_id"]
    written = io.BytesIO()
    pd.DataFrame(columns).to_parquet(written)
    return written.getvalue()


def write_case(seed: int, folder: Path, good: Path, trace: Path) -> Path:
    """The input of a seed: a whole folder of good features with some that are not, or one file."""
    random = np.random.default_rng(seed)
    kind = seed % 7
    if kind < 3:
        shutil.copytree(good, folder)
        files = sorted(folder.rglob("*.*"))
        for path in random.choice(np.array(files), size=int(random.integers(1, 6))).tolist():
            content = path.read_bytes()
            if kind == 0:
                content = npy_bytes(odd_array(random, trace))
            elif kind == 1:
                content = damage(content, random)
            else:
                content = [b"", random.bytes(300), pickle.dumps(Trap(trace)), b"\x93NUMPY"][
                    int(random.integers(4))
                ]
            name = str(random.choice(ODD_NAMES)) if random.integers(5) == 0 else path.stem
            if "/" not in name and name not in ("", ".."):
                (path.parent / f"{name}.npy").write_bytes(content)
        return folder
    folder.mkdir()
    if kind == 3:
        text = ODD_TABLES[seed // 7 % len(ODD_TABLES)].encode()
        path = folder / "all.csv"
        path.write_bytes(text if random.integers(2) else damage(text, random))
    elif kind == 4:
        arrays = [
            (f"{SPLITS[place % 3]}/dia0_utt{place}.npy", npy_bytes(odd_array(random, trace)))
            for place in range(int(random.integers(0, 6)))
        ]
        arrays += [("notes.txt", b"mine")] if random.integers(5) == 0 else []
        content = zip_bytes(arrays)
        path = folder / "all.npz"
        path.write_bytes(content if random.integers(2) else damage(content, random))
    elif kind == 5:
        content = parquet_bytes(random)
        path = folder / "all.parquet"
        path.write_bytes(content if random.integers(2) else damage(content, random))
    else:
        suffix = str(random.choice([".csv", ".npz", ".parquet", ".npy", ".pkl", ""]))
        path = folder / f"all{suffix}"
        path.write_bytes([random.bytes(500), pickle.dumps(Trap(trace)), b""][seed // 7 % 3])
    return path


def try_all(
    seeds: range, meld: Meld, caches: Path, good: Path, tmp_path: Path, patch: pytest.MonkeyPatch
) -> dict[int, int]:
    """How often each exit status was there."""

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("something was unpickled")

    counts: dict[int, int] = {}
    before = {split: (caches / f"{split}.h5").read_bytes() for split in SPLITS}
    trace, out, folder = tmp_path / "trace", tmp_path / "out", tmp_path / "input"
    for seed in seeds:
        source = write_case(seed, folder, good, trace)
        with patch.context() as unpickling:
            for name in ("load", "loads"):
                unpickling.setattr(pickle, name, refuse)
            done = meld(
                *("import", "--modality", "video", "--name", "odd", "--from", source),
                *("--features", caches, "--out", out, "--overwrite"),
            )
        lines = done.err.splitlines()
        assert done.status in (0, 2, 3, 4, 5), (seed, done)
        if done.status in (0, 3):
            assert lines == [], (seed, done.err)
        else:
            assert len(lines) == 1, (seed, done.err)
            assert lines[0].startswith("meld: error: "), (seed, lines)
        counts[done.status] = counts.get(done.status, 0) + 1
        shutil.rmtree(folder)
    assert not trace.exists()
    assert before == {split: (caches / f"{split}.h5").read_bytes() for split in SPLITS}
    print(counts)
    return counts


@pytest.fixture
def good(clips: Clips, npy: Write, tmp_path: Path) -> Path:
    return npy(tmp_path / "good", clips)


@pytest.mark.heavy
def test_odd_inputs_are_imported_or_refused_in_one_line(
    meld: Meld, caches: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = try_all(range(FAST), meld, caches, good, tmp_path, monkeypatch)
    assert {2, 3, 4} <= counts.keys()


@pytest.mark.slow
def test_hundreds_more(
    meld: Meld, caches: Path, good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try_all(range(FAST, ALL), meld, caches, good, tmp_path, monkeypatch)


def test_the_trap_would_be_noticed(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Trap(tmp_path / "trace")))
    assert (tmp_path / "trace").exists()
