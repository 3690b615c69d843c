"""`meld convert`: what comes back is what went out, to the bit, and others read what is written."""

import importlib.util
import json
import pickle
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pytest

import meld as meld_in_python
from pipeline.cache.format import FeatureCache, read_cache, write_cache
from pipeline.errors import (
    CacheBusy,
    CacheCorrupt,
    InputError,
    MeldError,
    RecipeMismatch,
    UsageError,
)
from pipeline.exchange import npz
from pipeline.exchange.convert import ConvertConfig, ConvertReport, Format, convert
from pipeline.system import locks
from tests.pipeline.exchange.conftest import tied

Meld = Callable[..., Any]
Plant = Callable[..., FeatureCache]
SPLITS = ("train", "dev", "test")
BACK: tuple[Format, ...] = ("parquet", "npz")


def run(source: Path, to: Format, out: Path, **options: Any) -> ConvertReport:
    return convert(ConvertConfig(source=source, to=to, out=out, **options))


# ---------------------------------------------------------------------------- there and back


@pytest.mark.parametrize("to", BACK)
def test_caches_that_went_there_and_back_are_equal_to_the_bit(
    caches: Path, tmp_path: Path, to: Format
) -> None:
    run(caches, to, tmp_path / "there")
    report = run(tmp_path / "there", "cache", tmp_path / "back")
    assert report.rows == {"train": 7, "dev": 3, "test": 5}
    for split in SPLITS:
        before, after = (
            (folder / f"{split}.h5").read_bytes() for folder in (caches, tmp_path / "back")
        )
        assert before == after


@pytest.mark.parametrize("to", BACK)
@pytest.mark.parametrize(
    "change",
    [
        {"embedding": {}, "projection_hash": None},
        {"failures": (), "sources": (), "encoders_run": None},
        {"text": ["long " * 500_000, "ends in NUL\0", *"bcdef"]},
    ],
    ids=["no embeddings", "no clips", "one long text"],
)
def test_what_a_cache_may_lack_or_have_comes_back_too(
    plant_cache: Plant, tmp_path: Path, to: Format, change: dict[str, Any]
) -> None:
    cache = replace(plant_cache("train"), **change)
    write_cache(tmp_path / "train.h5", tied(cache))
    before = read_cache(tmp_path / "train.h5")
    [file, *_] = run(tmp_path / "train.h5", to, tmp_path / "there").files
    run(file, "cache", tmp_path / "back")
    after = read_cache(tmp_path / "back/train.h5")
    assert (after.text, after.failures, after.sources) == (
        before.text,
        before.failures,
        before.sources,
    )
    assert (tmp_path / "back/train.h5").read_bytes() == (tmp_path / "train.h5").read_bytes()


@pytest.mark.parametrize("to", BACK)
def test_a_modality_that_no_row_has_is_still_known(
    plant_cache: Plant, tmp_path: Path, to: Format
) -> None:
    cache = plant_cache("train")
    raw = {name: values for name, values in cache.raw.items() if name != "audio"}
    absent = {**cache.present, "audio": np.zeros(7, np.bool_)}
    embedding = {"text": cache.embedding["text"]}
    write_cache(tmp_path / "train.h5", replace(cache, raw=raw, present=absent, embedding=embedding))
    [file, *_] = run(tmp_path / "train.h5", to, tmp_path / "there").files
    run(file, "cache", tmp_path / "back")
    assert (tmp_path / "back/train.h5").read_bytes() == (tmp_path / "train.h5").read_bytes()


def test_nan_keeps_its_bits(plant_cache: Plant, tmp_path: Path) -> None:
    """A NaN has 22 bits that mean nothing, and comparing or storing it once would lose them."""
    cache = plant_cache("train")
    cache.raw["video"].view(np.uint32)[:, 0, 1] = 0x7FC00000 + np.arange(7)
    write_cache(tmp_path / "train.h5", cache)
    for to in BACK:
        [file, *_] = run(tmp_path / "train.h5", to, tmp_path / to).files
        run(file, "cache", tmp_path / to)
        assert (tmp_path / to / "train.h5").read_bytes() == (tmp_path / "train.h5").read_bytes()


@pytest.mark.parametrize("to", BACK)
def test_a_folder_whose_name_is_no_utf_8_is_read_as_well(
    caches: Path, tmp_path: Path, to: Format
) -> None:
    folder = tmp_path / "n\udcff"
    run(caches, to, folder)
    run(folder, "cache", tmp_path / "back")
    assert (tmp_path / "back/dev.h5").read_bytes() == (caches / "dev.h5").read_bytes()


# --------------------------------------------------------------------------- read by others


def test_numpy_alone_reads_the_npz(caches: Path, tmp_path: Path) -> None:
    run(caches / "dev.h5", "npz", tmp_path)
    with np.load(tmp_path / "dev.npz", allow_pickle=False) as arrays:
        assert arrays["text_raw"].shape == (3, 2, 5)
        assert arrays["audio_present"].tolist() == [True, False, True]
        assert arrays["emotion"].tolist() == ["joy", "anger", ""]
        assert json.loads(str(arrays["meld"]))["split"] == "dev"


def test_pandas_reads_the_parquet(caches: Path, tmp_path: Path) -> None:
    run(caches / "train.h5", "parquet", tmp_path)
    table = pd.read_parquet(tmp_path / "train.parquet")
    cache = read_cache(caches / "train.h5")
    assert table["text"].tolist() == cache.text
    assert table["emotion"].isna().tolist() == [False, False, True, False, False, False, False]
    assert np.array_equal(
        np.stack(table["audio_raw"].map(lambda rows: rows[0])), cache.raw["audio"][:, 0]
    )


def test_datasets_loads_the_folder_and_asks_no_network(
    caches: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets", reason="the extra datasets is not installed")

    def refuse(*_: object, **__: object) -> None:
        pytest.fail("a connection was opened")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    run(caches, "parquet", tmp_path / "there")
    loaded = datasets.load_dataset(str(tmp_path / "there"), cache_dir=str(tmp_path / "kept"))
    assert {name: len(rows) for name, rows in loaded.items()} == {
        "train": 7,
        "validation": 3,
        "test": 5,
    }
    cache = read_cache(caches / "train.h5")
    rows = loaded["train"].with_format("numpy")
    assert loaded["train"]["text"][:] == cache.text
    assert np.array_equal(np.stack([row["text_raw"] for row in rows]), cache.raw["text"])
    assert np.array_equal(
        np.stack([row["text_embedding"] for row in rows]), cache.embedding["text"]
    )


def load_mmsa() -> Any:
    """Its own data loader, from the installed wheel: the package itself imports all its models."""
    found = importlib.util.find_spec("MMSA")
    if found is None or not found.submodule_search_locations:
        pytest.skip("MMSA is not installed (pip install --no-deps MMSA)")
    [folder] = found.submodule_search_locations
    spec = importlib.util.spec_from_file_location("mmsa_data_loader", f"{folder}/data_loader.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_mmsas_own_loader_reads_its_file(caches: Path, tmp_path: Path) -> None:
    loader = load_mmsa()
    report = run(caches, "mmsa", tmp_path)
    assert report.left_out == {"train": 1, "dev": 1, "test": 1}
    arguments = {
        "dataset_name": "mosi",
        "custom_feature": str(report.files[0]),
        **{f"feature_{letter}": "" for letter in "TAV"},
        "feature_dims": [0, 0, 0],
        "need_data_aligned": False,
        "need_normalized": True,
        "use_bert": False,
        "seq_lens": [],
        "batch_size": 8,
    }
    loaders = loader.MMDataLoader(arguments, num_workers=0)
    assert arguments["feature_dims"] == [5, 3, 4]  # text, audio, vision
    [batch] = loaders["train"]
    assert batch["text"].shape == (6, 1, 5)
    assert batch["audio_lengths"].tolist() == [1] * 6
    cache = read_cache(caches / "train.h5")
    for position, name in enumerate(batch["id"]):
        row = [f"dia{d}_utt{u}" for d, u in zip(cache.dialogue_id, cache.utterance_id, strict=True)]
        [at] = [index for index, each in enumerate(row) if each == name]
        assert np.allclose(batch["text"][position, 0], cache.raw["text"][at].mean(axis=0))
        score = {"positive": 1, "neutral": 0, "negative": -1}[cache.sentiment[at]]
        assert batch["labels"]["M"][position].item() == score


def test_mmsas_file_has_keys_labels_presence_and_recipe(caches: Path, tmp_path: Path) -> None:
    [file] = run(caches, "mmsa", tmp_path).files
    values = pickle.loads(file.read_bytes())  # our own, written a moment ago
    assert values["valid"]["id"] == ["dia0_utt0", "dia0_utt1"]
    assert values["valid"]["annotations"] == ["Positive", "Negative"]
    assert values["valid"]["classification_labels"].tolist() == [2, 0]
    assert values["valid"]["present"]["audio"].tolist() == [True, False]
    assert values["valid"]["audio"][1].tolist() == [[0, 0, 0]]
    assert values["meld"]["fingerprint"] == read_cache(caches / "dev.h5").fingerprint


# -------------------------------------------------------------------------- what is refused


def test_mmsa_needs_all_splits_and_modalities(
    caches: Path, plant_cache: Plant, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match="no dev; name a folder that has all three"):
        run(caches / "train.h5", "mmsa", tmp_path)
    cache = plant_cache("test", 5)
    raw = {name: values for name, values in cache.raw.items() if name != "video"}
    absent = {**cache.present, "video": np.zeros(5, np.bool_)}
    write_cache(caches / "test.h5", replace(cache, raw=raw, present=absent))
    with pytest.raises(InputError, match="no row of test has video"):
        run(caches, "mmsa", tmp_path)


def test_caches_of_different_recipes_are_not_put_together(
    caches: Path, plant_cache: Plant, tmp_path: Path
) -> None:
    cache = plant_cache("dev", 3)
    write_cache(caches / "dev.h5", replace(cache, recipe=replace(cache.recipe, revision=1)))
    with pytest.raises(RecipeMismatch, match=r"dev\.h5 and .*train\.h5.*revision: 1 != "):
        run(caches, "npz", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_files_that_are_there_are_replaced_only_on_request(caches: Path, tmp_path: Path) -> None:
    run(caches / "dev.h5", "parquet", tmp_path)
    before = (tmp_path / "README.md").read_bytes()
    (tmp_path / "dev.parquet").unlink()
    with pytest.raises(UsageError, match=r"README\.md is there already; .*--overwrite"):
        run(caches, "parquet", tmp_path)
    assert (tmp_path / "README.md").read_bytes() == before
    run(caches, "parquet", tmp_path, overwrite=True)
    assert "path: train.parquet" in (tmp_path / "README.md").read_text()


def tables_of_others(folder: Path) -> dict[Format, bytes]:
    """Whole files of the names that are written, made by other tools."""
    frame, h5, arrays = folder / "frame", folder / "h5", folder / "arrays.npz"
    pd.DataFrame({"mine": [1, 2]}).to_parquet(frame)
    with h5py.File(h5, "w") as file:
        file["mine"] = [1, 2]
    np.savez(arrays, mine=[1, 2])
    return {
        "parquet": frame.read_bytes(),
        "npz": arrays.read_bytes(),
        "cache": h5.read_bytes(),
    }


@pytest.mark.parametrize("to", ["parquet", "npz", "cache"])
@pytest.mark.parametrize("begins", ["whole", "text"])
def test_a_table_of_somebody_else_is_never_replaced(
    caches: Path, tmp_path: Path, to: Format, begins: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    mine = out / f"dev.{'h5' if to == 'cache' else to}"
    mine.write_bytes(tables_of_others(tmp_path)[to] if begins == "whole" else b"my notes")
    before = mine.read_bytes()
    with pytest.raises(UsageError, match=f"{mine}.* is left as it is"):
        run(caches, to, out, overwrite=True)
    assert mine.read_bytes() == before
    assert [path.name for path in out.iterdir()] == [mine.name]


@pytest.mark.parametrize("to", ["parquet", "npz", "cache"])
def test_a_damaged_file_of_ours_is_replaced_on_request(
    caches: Path, tmp_path: Path, to: Format
) -> None:
    files = [path for path in run(caches, to, tmp_path).files if path.suffix != ".md"]
    whole = [path.read_bytes() for path in files]
    for path, content in zip(files, whole, strict=True):
        path.write_bytes(content[: len(content) // 2])
    files[0].write_bytes(b"")
    run(caches, to, tmp_path, overwrite=True)
    assert [path.read_bytes() for path in files] == whole


NOTES = "my notes"
CARD_OF_OTHERS = "---\nconfigs:\n- config_name: default\n  data_files:\n---\n\n# My data\n"


@pytest.mark.parametrize("text", [NOTES, CARD_OF_OTHERS, "\udcff"])
@pytest.mark.parametrize("overwrite", [True, False])
def test_a_readme_of_somebody_else_is_never_replaced(
    caches: Path, tmp_path: Path, text: str, overwrite: bool
) -> None:
    readme = tmp_path / "README.md"
    readme.write_text(text, errors="surrogateescape")
    before = readme.read_bytes()
    with pytest.raises(UsageError, match=r"README\.md is no card of meld convert and is left as"):
        run(caches, "parquet", tmp_path, overwrite=overwrite)
    assert readme.read_bytes() == before
    assert not list(tmp_path.glob("*.parquet"))


def test_the_card_lists_what_was_written_before_too(caches: Path, tmp_path: Path) -> None:
    run(caches, "parquet", tmp_path / "at once")
    for split in ("test", "train", "dev"):
        run(caches / f"{split}.h5", "parquet", tmp_path / "by one", overwrite=True)
    at_once, by_one = (tmp_path / name / "README.md" for name in ("at once", "by one"))
    assert by_one.read_bytes() == at_once.read_bytes()


def test_the_card_says_nothing_of_a_table_of_somebody_else(caches: Path, tmp_path: Path) -> None:
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "train.parquet")
    (tmp_path / "test.parquet").write_text("no table at all")
    run(caches / "dev.h5", "parquet", tmp_path, overwrite=True)
    card = (tmp_path / "README.md").read_text()
    assert "dev.parquet" in card
    assert "train.parquet" not in card
    assert "test.parquet" not in card


def test_a_split_of_another_recipe_is_not_put_beside_others(
    caches: Path, plant_cache: Plant, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(caches / "train.h5", "parquet", out)
    before = (out / "README.md").read_bytes()
    cache = plant_cache("dev", 3)
    write_cache(caches / "dev.h5", replace(cache, recipe=replace(cache.recipe, revision=1)))
    with pytest.raises(RecipeMismatch, match=r"out/train\.parquet and .*dev\.h5 .*revision: "):
        run(caches / "dev.h5", "parquet", out, overwrite=True)
    assert (out / "README.md").read_bytes() == before
    assert not (out / "dev.parquet").exists()


@pytest.mark.parametrize(
    ("to", "names"),
    [
        ("parquet", ("dev.parquet", "README.md")),
        ("npz", ("dev.npz",)),
        ("cache", ("dev.h5",)),
        ("mmsa", ("mmsa.pkl",)),
    ],
)
def test_what_a_killed_one_left_goes(
    caches: Path, tmp_path: Path, to: Format, names: tuple[str, ...]
) -> None:
    left = [tmp_path / f".{name}.12-0a1b2c3d.tmp" for name in names]
    mine = tmp_path / ".notes.txt.12-0a1b2c3d.tmp"
    for path in (*left, mine):
        path.touch()
    run(caches, to, tmp_path)
    assert [path for path in (*left, mine) if path.exists()] == [mine]


def test_two_that_write_one_folder_do_not_meet(caches: Path, tmp_path: Path) -> None:
    told = "is being written by another process; wait for it"
    with locks.hold_folder(tmp_path, "what is here"), pytest.raises(CacheBusy, match=told):
        run(caches, "npz", tmp_path)
    run(caches, "npz", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "dev.npz",
        "features",
        "test.npz",
        "train.npz",
    ]


def test_sources_that_are_none_are_reported(caches: Path, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a")
    with pytest.raises(UsageError, match=r"a\.csv: a file that ends in \.h5, \.npz, \.parquet"):
        run(tmp_path / "a.csv", "npz", tmp_path)
    with pytest.raises(InputError, match=r"no train\.h5 or train\.npz"):
        run(tmp_path, "npz", tmp_path)
    run(caches / "dev.h5", "npz", caches)
    with pytest.raises(UsageError, match=r"holds \.h5 and \.npz files; name one"):
        run(caches, "parquet", tmp_path)


@pytest.mark.parametrize("to", BACK)
def test_a_flipped_bit_is_noticed_or_changes_nothing(
    caches: Path, tmp_path: Path, to: Format
) -> None:
    [file, *_] = run(caches / "dev.h5", to, tmp_path / "there").files
    whole = file.read_bytes()
    random = np.random.default_rng(0)
    for place in random.integers(0, len(whole), 40).tolist():
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (place % 8)
        file.write_bytes(flipped)
        try:
            run(file, "cache", tmp_path / "back", overwrite=True)
        except MeldError:
            continue
        written = (tmp_path / "back/dev.h5").read_bytes()
        assert written == (caches / "dev.h5").read_bytes()


def test_arrays_that_do_not_fit_each_other_are_refused(caches: Path, tmp_path: Path) -> None:
    [file, *_] = run(caches / "dev.h5", "npz", tmp_path).files
    with np.load(file) as arrays:
        whole = dict(arrays)
    for change, told in (
        ({"text_raw": whole["text_raw"].astype(np.float64)}, "text_raw is float64 with 3 axes"),
        ({"audio_present": whole["audio_present"][:2]}, "the same number of rows"),
        ({"emotion": np.array(["joy", "bliss", ""])}, "label 'bliss'"),
        ({"text_embedding": whole["text_embedding"][:, :7]}, "embeddings of 7, not 128"),
    ):
        np.savez(file, **{**whole, **change})
        with pytest.raises(CacheCorrupt, match=told):
            npz.read_npz(file)
    np.savez(file, **{name: values for name, values in whole.items() if name != "meld"})
    with pytest.raises(InputError, match="not written by meld convert; meld import reads"):
        npz.read_npz(file)


def test_the_command_tells_what_it_wrote(meld: Meld, caches: Path, tmp_path: Path) -> None:
    done = meld("convert", caches, "--to", "parquet", "--out", tmp_path / "out")
    assert done.status == 0, done.err
    assert "train 7, dev 3, test 5 rows" in done.out
    assert "video: RANDOM WEIGHTS" in done.out
    assert f"written: {tmp_path / 'out/README.md'}" in done.out
    again = meld("convert", caches, "--to", "parquet", "--out", tmp_path / "out")
    assert (again.status, len(again.err.splitlines())) == (2, 1)
    told = meld("convert", caches, "--to", "npz", "--out", tmp_path / "npz", "--json").json
    assert told["rows"] == {"train": 7, "dev": 3, "test": 5}


def test_the_function_does_the_same_and_names_arguments(caches: Path, tmp_path: Path) -> None:
    assert len(meld_in_python.convert(caches, "npz", out=tmp_path / "out").files) == 3
    with pytest.raises(UsageError, match=r"name another out, or replace it with overwrite=True"):
        meld_in_python.convert(caches, "npz", out=tmp_path / "out")
    with pytest.raises(UsageError, match="to must be one of parquet, npz, mmsa, cache"):
        meld_in_python.convert(caches, "csv", out=tmp_path)  # type: ignore[arg-type]
