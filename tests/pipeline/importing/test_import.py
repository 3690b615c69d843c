"""`meld import`: the features of other tools end in the row of their clip, and what does not fit is
listed."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.cache.format import read_cache, verify
from pipeline.cache.projection import read_projections
from pipeline.encoders.find import find_encoders
from pipeline.errors import CacheBusy, InputError, MismatchError, RecipeMismatch, UsageError
from pipeline.exchange.convert import ConvertConfig, convert
from pipeline.importing.config import ImportConfig
from pipeline.importing.import_features import import_features
from pipeline.importing.report import ImportReport
from pipeline.schema import ClipKey
from pipeline.settings import build_config
from pipeline.system import locks

Meld = Callable[..., Any]
Clips = dict[ClipKey, NDArray[np.float64]]
Write = Callable[..., Path]


def run(features: Path, source: Any, **options: Any) -> ImportReport:
    named = {"modality": "video", "name": "tool", "features": features, **options}
    pairs = source.items() if isinstance(source, dict) else ()
    sources = tuple(f"{split}={path}" for split, path in pairs) or (str(source),)
    return import_features(build_config(ImportConfig, {**named, "source": sources}))


def imported(features: Path, split: str, modality: Any = "video") -> NDArray[np.float32]:
    return read_cache(features / f"{split}.h5").raw[modality]


def expected(clips: Clips, split: str, of: Callable[..., Any]) -> NDArray[np.float32]:
    rows = [of(values) for key, values in clips.items() if key.split == split]
    return np.array(rows, np.float64).astype(np.float32)[:, None, :]


# ------------------------------------------------------------------------------ what is read


def mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values.mean(axis=0)


def first(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return values[0]


def test_a_folder_of_npy_files_a_clip(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    report = run(caches, npy(tmp_path / "found", clips))
    assert (report.shape, report.pooling, report.num_failures) == ((1, 3), "mean", 0)
    for split in ("train", "dev", "test"):
        assert (imported(caches, split) == expected(clips, split, mean)).all()


def test_what_video_features_writes(caches: Path, clips: Clips, npy: Write, tmp_path: Path) -> None:
    """Of I3D: two features a clip, and beside them the rate and the times of frames."""
    folder = npy(tmp_path / "found", clips, "_rgb")
    npy(folder, {key: values + 1 for key, values in clips.items()}, "_flow")
    npy(folder, {key: np.array(25.0) for key in clips}, "_fps")
    npy(folder, {key: np.arange(5.0) for key in clips}, "_timestamps_ms")
    with pytest.raises(UsageError, match=r"'_flow' .* and '_rgb' .*choose one: --suffix _rgb"):
        run(caches, folder)
    run(caches, folder, suffix="_rgb")
    assert (imported(caches, "dev") == expected(clips, "dev", mean)).all()


def test_what_openface_writes(caches: Path, clips: Clips, openface: Write, tmp_path: Path) -> None:
    """Frames without a face are not averaged, and neither are the frame's number and time."""
    lost = ClipKey("train", 1, 2)
    report = run(caches, openface(tmp_path / "found", clips, unseen=[lost]))
    assert report.columns == ("AU00_r", "AU01_r", "AU02_r")
    train = expected(clips, "train", mean)
    train[6] = 0
    assert (imported(caches, "train") == train).all()
    cache = read_cache(caches / "train.h5")
    assert cache.present["video"].tolist() == [True] * 6 + [False, True]
    [failure] = cache.failures
    assert (failure.key, failure.modality, failure.code, failure.lost) == (
        lost,
        "video",
        "no_frames",
        True,
    )
    assert failure.message == "dia1_utt2.csv: no frame of 6 has success = 1"


def test_what_opensmile_writes(
    caches: Path, clips: Clips, opensmile: Write, tmp_path: Path
) -> None:
    report = run(caches, opensmile(tmp_path / "found", clips), modality="audio", name="eGeMAPS v2")
    assert report.columns == ("F0_sma3nz_amean", "loudness_sma3_amean", "HNR_sma3nz_amean")
    assert report.pooling == "none"
    for split in ("train", "dev", "test"):
        assert (imported(caches, split, "audio") == expected(clips, split, first)).all()


def test_low_level_descriptors_of_many_clips_in_one_table(
    caches: Path, clips: Clips, tmp_path: Path
) -> None:
    """Several rows of a clip with different times are its frames; the split has a column."""
    lines = ["split,file,start,end,pitch,energy,hnr"]
    for key, values in clips.items():
        for time, row in enumerate(values.tolist()):
            name = f"clips/dia{key.dialogue_id}_utt{key.utterance_id}.wav"
            numbers = ",".join(map(repr, row))
            lines.append(f"{key.split},{name},{time},{time + 1},{numbers}")
    (tmp_path / "all.csv").write_text("\n".join(lines))
    report = run(caches, tmp_path / "all.csv", pool="mean_std")
    assert report.shape == (1, 6)
    both = expected(clips, "test", lambda values: [*values.mean(axis=0), *values.std(axis=0)])
    assert np.allclose(imported(caches, "test"), both, atol=1e-6)


def test_an_npz_of_arrays_that_are_named_as_clips(
    caches: Path, clips: Clips, tmp_path: Path
) -> None:
    arrays = {f"{k.split}/dia{k.dialogue_id}_utt{k.utterance_id}": v for k, v in clips.items()}
    np.savez(tmp_path / "all.npz", **arrays)
    run(caches, tmp_path / "all.npz")
    assert (imported(caches, "train") == expected(clips, "train", mean)).all()


def test_layers_are_kept_where_there_are_no_frames(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    report = run(caches, npy(tmp_path / "found", clips), pool="none")
    assert report.shape == (5, 3)
    key = ClipKey("dev", 0, 1)
    assert (imported(caches, "dev")[1] == clips[key].astype(np.float32)).all()


def test_layers_and_frames_are_distinguished_by_three_axes(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    deep = {key: np.stack([values, values + 10]) for key, values in clips.items()}
    report = run(caches, npy(tmp_path / "found", deep))
    assert report.shape == (2, 3)
    above = imported(caches, "dev")[:, 1]
    assert np.allclose(above, expected(clips, "dev", mean)[:, 0] + 10, atol=1e-5)


@pytest.mark.heavy
def test_features_of_another_cache_that_were_converted(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    """Rows that lacked them there have zeros, which are no features."""
    del clips[ClipKey("train", 0, 3)]
    shutil.copytree(caches, tmp_path / "others")
    run(tmp_path / "others", npy(tmp_path / "found", clips), pool="none")
    wanted = imported(tmp_path / "others", "train")
    for to in ("parquet", "npz"):
        convert(ConvertConfig(source=tmp_path / "others", to=to, out=tmp_path / to))
        sources = {split: tmp_path / to / f"{split}.{to}" for split in ("train", "dev", "test")}
        report = run(caches, sources, column="video_raw", out=tmp_path / f"got-{to}")
        assert report.shape == (5, 3)
        assert (imported(tmp_path / f"got-{to}", "train") == wanted).all()
        present = read_cache(tmp_path / f"got-{to}/train.h5").present["video"]
        assert present.tolist() == [True] * 3 + [False] + [True] * 4
        with pytest.raises(UsageError, match="name one with --column"):
            run(caches, sources, out=tmp_path / "nowhere")


def test_a_parquet_table_of_numbers(caches: Path, clips: Clips, tmp_path: Path) -> None:
    import pandas as pd

    rows = [
        {"split": key.split, **key._asdict(), "mood": "good", "a": values[0, 0], "b": values[0, 1]}
        for key, values in clips.items()
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "all.parquet")
    report = run(caches, tmp_path / "all.parquet")
    assert (report.columns, report.left_out) == (("a", "b"), ("mood",))
    assert (imported(caches, "dev") == expected(clips, "dev", lambda each: each[0, :2])).all()


# -------------------------------------------------------------------------- what is listed


def test_missing_doubled_foreign_and_nan_rows_are_listed(
    meld: Meld, caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    clips[ClipKey("train", 0, 1)][2, 1] = np.nan
    clips[ClipKey("train", 0, 2)][0, 0] = 1e40  # infinite as float32
    clips[ClipKey("dev", 7, 7)] = np.ones((2, 3))
    clips[ClipKey("test", 0, 0)] = np.ones((2, 4))
    del clips[ClipKey("train", 1, 0)]
    folder = npy(tmp_path / "found", clips)
    np.save(folder / "train/DIA0_UTT00.npy", np.ones((5, 3)))  # dia0_utt0 once more
    np.save(folder / "train/speaker_means.npy", np.ones(3))
    (folder / "dev/dia0_utt0.npy").write_bytes(b"nothing of the kind")
    done = meld("import", "--modality", "video", "--name", "tool", "--from", folder,
                "--features", caches)  # fmt: skip
    assert done.status == 3, done.err
    for told in (
        "train: 4 of 8 rows have it now",
        "2 rows NaN or infinite values: train dia0_utt1 (dia0_utt1.npy: 1 of 3 values are NaN or",
        "1 row missing: nothing was found: train dia1_utt0 (no features of dia1_utt0 in",
        "1 row doubled: several different features were found: train dia0_utt0 (2 different "
        "features: DIA0_UTT00.npy and dia0_utt0.npy)",
        "1 found that are no clip of train: speaker_means.npy",
        "1 found that are no clip of dev: dia7_utt7.npy",
        "1 row unreadable: dev dia0_utt0 (dia0_utt0.npy: not a readable .npy file",
        "1 row of another shape than most: test dia0_utt0 (dia0_utt0.npy: [1, 4], others [1, 3])",
        "video: FOREIGN features, imported, made by tool",
    ):
        assert told in done.out
    listed = meld("info", caches / "train.h5", "--failures").out
    assert "dia1_utt0" in listed
    assert "FOREIGN features, imported, made by tool" in listed
    cache = read_cache(caches / "train.h5")
    absent = ~cache.present["video"]
    assert (cache.raw["video"][absent] == 0).all()
    assert sorted(each.code for each in cache.failures) == [
        "doubled",
        "missing",
        "not_finite",
        "not_finite",
    ]


def test_two_files_of_a_clip_that_are_equal_are_one(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    shutil.copy(folder / "train/dia0_utt0.npy", folder / "train/DIA0_UTT00.npy")
    assert run(caches, folder).num_failures == 0


def test_of_both_cuts_of_a_test_clip_the_one_is_taken_that_the_cache_has(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    np.save(folder / "test/final_videos_testdia0_utt1.npy", np.full((1, 3), 7.0))
    assert run(caches, folder).num_failures == 0
    assert (imported(caches, "test")[1] == 7).all()


def test_the_json_names_every_row(
    meld: Meld, caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    del clips[ClipKey("dev", 0, 2)]
    done = meld("import", "--modality", "audio", "--name", "t", "--from",
                npy(tmp_path / "found", clips), "--features", caches, "--json")  # fmt: skip
    assert done.status == 3
    values = json.loads(done.out)
    assert [each["clip"] for each in values["splits"]["dev"]["failures"]["missing"]] == [
        "dev dia0_utt2"
    ]
    assert len(values["input_sha256"]) == 64


# ---------------------------------------------------------------------------- into the caches


def test_nothing_else_of_a_cache_changes(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    before = {split: read_cache(caches / f"{split}.h5") for split in ("train", "dev", "test")}
    run(caches, npy(tmp_path / "found", clips))
    for split, old in before.items():
        new = read_cache(caches / f"{split}.h5")
        assert verify(caches / f"{split}.h5") == []
        for name in ("dialogue_id", "utterance_id"):
            assert (getattr(new, name) == getattr(old, name)).all()
        for name in ("text", "speaker", "emotion", "sentiment", "rows_hash", "sources"):
            assert getattr(new, name) == getattr(old, name)
        assert new.raw["text"].tobytes() == old.raw["text"].tobytes()
        assert new.embedding["text"].tobytes() == old.embedding["text"].tobytes()
        assert new.embedding["video"].shape == (len(new), 128)
        assert new.recipe.encoders[0] == old.recipe.encoders[0]


def test_embeddings_have_the_projection_that_lies_beside_them(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    report = run(caches, npy(tmp_path / "found", clips))
    projections = read_projections(caches / "projection.h5", report.recipe)
    assert projections is not None
    assert set(projections) == {"text", "video"}
    hashes = {read_cache(caches / f"{split}.h5").projection_hash for split in ("train", "test")}
    assert len(hashes) == 1


def test_the_recipe_says_foreign_and_has_the_hash_of_the_input(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    shutil.copytree(folder, tmp_path / "copy")
    one = run(caches, folder, out=tmp_path / "one").recipe
    assert one.foreign == {"video": "tool"}
    assert run(caches, tmp_path / "copy", out=tmp_path / "two").recipe == one
    np.save(folder / "dev/dia0_utt0.npy", clips[ClipKey("dev", 0, 0)] + 1)
    other = run(caches, folder, out=tmp_path / "three").recipe
    [difference] = one.differences(other)
    assert difference.startswith("video.weights_hash: ")


def test_a_modality_that_is_there_is_replaced_only_on_request(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    run(caches, folder)
    with pytest.raises(UsageError, match=r"train\.h5 has video already, by tool; .*--overwrite"):
        run(caches, folder)
    assert run(caches, folder, overwrite=True, name="again").recipe.foreign == {"video": "again"}


def test_caches_that_another_process_writes_are_left(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    before = (caches / "train.h5").read_bytes()
    with locks.hold_split(caches, "dev"), pytest.raises(CacheBusy):
        run(caches, npy(tmp_path / "found", clips))
    assert (caches / "train.h5").read_bytes() == before


def test_a_file_of_somebody_else_with_the_name_of_a_cache_is_never_replaced(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    mine = tmp_path / "other" / "dev.h5"
    mine.parent.mkdir()
    mine.write_text("my notes")
    with pytest.raises(UsageError, match=r"dev\.h5 is no feature cache .*another --out"):
        run(caches, npy(tmp_path / "found", clips), out=mine.parent, overwrite=True)
    assert [path.name for path in mine.parent.iterdir() if path.suffix == ".h5"] == ["dev.h5"]
    assert mine.read_text() == "my notes"


def test_an_import_that_was_killed_between_two_caches_is_done_again(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    run(caches, folder, out=tmp_path / "done")
    shutil.copy(tmp_path / "done/train.h5", caches / "train.h5")
    run(caches, folder, overwrite=True)
    for split in ("train", "dev", "test"):
        assert (caches / f"{split}.h5").read_bytes() == (tmp_path / f"done/{split}.h5").read_bytes()


def test_caches_that_differ_in_more_are_refused(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    run(caches, npy(tmp_path / "found", clips), modality="audio", out=tmp_path / "other")
    shutil.copy(tmp_path / "other/train.h5", caches / "train.h5")
    with pytest.raises(RecipeMismatch, match=r"train\.h5 and .*dev\.h5"):
        run(caches, tmp_path / "found")


def test_no_encoder_is_found_for_imported_features(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    recipe = run(caches, npy(tmp_path / "found", clips)).recipe
    with pytest.raises(MismatchError, match=r"video features were imported \(tool\)"):
        find_encoders(recipe, ("text", "video"))


# -------------------------------------------------------------------------- what is refused


def test_a_split_that_nothing_is_imported_into_is_reported(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    shutil.rmtree(folder / "test")
    with pytest.raises(UsageError, match=r"cache of test and nothing .*--from test=PATH"):
        run(caches, folder)
    with pytest.raises(UsageError, match="does not say which split"):
        run(caches, folder / "train")
    with pytest.raises(InputError, match=r"no row of dev gets .*dia0_utt0.npy is no clip of dev"):
        run(caches, {"train": folder / "train", "dev": _one(tmp_path), "test": folder / "dev"})


def test_what_is_no_split_is_named(caches: Path, clips: Clips, npy: Write, tmp_path: Path) -> None:
    folder = npy(tmp_path / "found", clips)
    for named in ({"val": folder / "dev"}, {"train": folder / "train", "val": folder / "dev"}):
        with pytest.raises(UsageError, match="val is no split; there are train, dev, test"):
            run(caches, named)


def _one(tmp_path: Path) -> Path:
    (tmp_path / "one").mkdir()
    np.save(tmp_path / "one/final_videos_testdia0_utt0.npy", np.ones(3))
    return tmp_path / "one"


def test_a_pickle_in_an_array_is_never_loaded(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "sprung",))

    folder = npy(tmp_path / "found", clips)
    np.save(folder / "dev/dia0_utt0.npy", np.array([Trap()]), allow_pickle=True)
    report = run(caches, folder)
    assert not (tmp_path / "sprung").exists()
    [failure] = report.splits[1].failures
    assert failure.message.endswith("holds pickled Python objects, which are never loaded")
    np.savez(tmp_path / "all.npz", dia0_utt0=np.array([Trap()]))
    with pytest.raises(InputError, match="holds pickled Python objects"):
        run(
            caches,
            dict.fromkeys(("train", "dev", "test"), tmp_path / "all.npz"),
            out=tmp_path / "out",
        )
    assert not (tmp_path / "sprung").exists()


def test_a_header_that_claims_terabytes_is_not_believed(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path
) -> None:
    folder = npy(tmp_path / "found", clips)
    written = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        written, {"descr": "<f8", "fortran_order": False, "shape": (10**6, 10**6)}
    )
    (folder / "dev/dia0_utt0.npy").write_bytes(written.getvalue() + b"\0" * 8)
    [failure] = run(caches, folder).splits[1].failures
    assert "claims 8,000,000,000,000 bytes, and 8 follow" in failure.message


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"modality": "smell"}, "modality must be one of text, video, audio, not 'smell'"),
        ({"name": "two\nlines"}, "--name 'two"),
        ({"pool": "max"}, "pool must be one of mean, mean_std, none"),
        ({"suffix": "_x"}, "--suffix _x: no name of a clip ends so"),
        ({"column": "x"}, "--column x: .* has no columns to choose from"),
    ],
)
def test_options_that_cannot_be_are_reported(
    caches: Path, clips: Clips, npy: Write, tmp_path: Path, options: dict[str, str], told: str
) -> None:
    with pytest.raises(UsageError, match=told):
        run(caches, npy(tmp_path / "found", clips), **options)
