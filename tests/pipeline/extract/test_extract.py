"""Extraction through real Ray into real HDF5, on a generated corpus."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from pipeline.cache.format import read_cache, read_header
from pipeline.cache.projection import read_projections
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.decode.clip import decode_clip
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.errors import CacheBusy, RecipeMismatch
from pipeline.extract import extract as extraction
from pipeline.extract.extract import ExtractConfig, extract, plan
from pipeline.extract.shards import write_shard
from pipeline.parallel import engine as parallel
from pipeline.sample.corpus import SampleResult
from pipeline.schema import MODALITIES, SPLITS, DecodedClip, LocatedClip
from pipeline.system import locks

Meld = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("ray_here")

# Those of the `features` fixture.
ENCODERS = EncoderRequest(text="minilm", video_weights="random")


def config_for(data: Path, features: Path, **changes: object) -> ExtractConfig:
    settings = {"num_frames": 2, "rows_per_shard": 2, **changes}
    encoders = ENCODERS
    if settings.get("modalities") == ("audio",):
        encoders, settings["num_frames"] = EncoderRequest(), None
    return ExtractConfig(data=data, features=features, encoders=encoders, **settings)


@pytest.fixture
def own_features(features: Path, tmp_path: Path) -> Path:
    """A copy, for tests that extract into it again: that takes its locks."""
    return Path(shutil.copytree(features, tmp_path / "own"))


def test_every_annotated_row_is_in_its_cache_in_file_order(corpus: Path, features: Path) -> None:
    for split, utterances in read_corpus(corpus, None).items():
        cache = read_cache(features / f"{split}.h5")
        keys = list(zip(cache.dialogue_id.tolist(), cache.utterance_id.tolist(), strict=True))
        assert keys == [row.key[1:] for row in utterances]
        assert cache.text == [row.text for row in utterances]
        assert cache.emotion == [row.emotion for row in utterances]
        assert all(cache.present[name].all() for name in MODALITIES)


def test_features_are_those_of_the_encoders_run_by_hand(corpus: Path, features: Path) -> None:
    recipe = read_header(features / "dev.h5").recipe
    assert recipe.decode is not None
    precision = recipe.encoders[0].precision
    choices = [choose_encoder(name, ENCODERS, precision) for name in MODALITIES]
    rows = read_corpus(corpus, ("dev",))["dev"][:2]  # one shard
    clips = [
        decode_clip(clip, recipe.decode, MODALITIES)
        for clip in locate_clips(corpus, "dev", rows, "fixed")
    ]
    by_hand = encode_clips(Encoders(choices, recipe.decode), clips)
    cache = read_cache(features / "dev.h5")
    for name in MODALITIES:
        expected = np.stack([clip.raw[name] for clip in by_hand])
        np.testing.assert_allclose(cache.raw[name][:2], expected, rtol=1e-4, atol=1e-4)


def test_embeddings_are_the_projection_fitted_on_train(features: Path) -> None:
    recipe = read_header(features / "train.h5").recipe
    projections = read_projections(features / "projection.h5", recipe)
    assert projections is not None
    for split in SPLITS:
        cache = read_cache(features / f"{split}.h5")
        for name in MODALITIES:
            fitted = projections[name]
            values = (cache.raw[name].mean(axis=1) - fitted.mean) / fitted.scale
            expected = values @ fitted.components.T
            np.testing.assert_allclose(cache.embedding[name], expected, rtol=1e-3, atol=1e-3)


def test_a_stranger_can_read_the_cache_with_h5py_alone(features: Path) -> None:
    with h5py.File(features / "train.h5") as file:
        rows = len(file["key/dialogue_id"])
        assert file["raw/video"].shape == (rows, 1, 512)
        assert file["embedding/text"].shape == (rows, 128)
        assert file["label/emotion"].asstr()[0] in "neutral surprise fear sadness joy disgust anger"
        assert '"weights":"random"' in file.attrs["recipe"].decode()


def test_a_second_run_finds_everything_done_and_starts_no_cluster(
    corpus: Path, own_features: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(parallel.ray, "init")
    monkeypatch.delattr(parallel.ray, "remote")
    before = (own_features / "train.h5").stat()
    report = extract(config_for(corpus, own_features))
    assert [split.rows_resumed for split in report.splits] == [
        split.rows for split in report.splits
    ]
    assert (own_features / "train.h5").stat().st_mtime_ns == before.st_mtime_ns


def test_another_recipe_is_refused_and_the_differing_field_named(
    corpus: Path, own_features: Path
) -> None:
    with pytest.raises(RecipeMismatch, match=r"decode\.num_frames: 2 != 8"):
        extract(config_for(corpus, own_features, num_frames=8))


def test_other_annotations_are_refused(corpus: Path, own_features: Path, tmp_path: Path) -> None:
    shutil.copytree(corpus, tmp_path / "data")
    csv = tmp_path / "data" / "dev_sent_emo.csv"
    first, *rows = csv.read_text().splitlines(keepends=True)
    csv.write_text("".join([first, *rows[1:]]))  # a row less
    with pytest.raises(RecipeMismatch, match="other annotations than the dev CSV"):
        extract(config_for(tmp_path / "data", own_features))


def test_a_second_writer_fails_at_once_and_names_the_first(corpus: Path, tmp_path: Path) -> None:
    with (
        locks.hold(tmp_path / ".work" / "train.lock", "the train cache"),
        pytest.raises(CacheBusy, match=f"process {os.getpid()} on "),
    ):
        extract(config_for(corpus, tmp_path))


def test_a_dry_run_tells_the_plan_and_writes_nothing(corpus: Path, tmp_path: Path) -> None:
    planned = plan(config_for(corpus, tmp_path / "features"))
    assert sum(planned.rows.values()) > 0
    assert sum(planned.rows_done.values()) == 0
    assert not (tmp_path / "features").exists()


def test_the_test_clips_that_were_asked_for_are_read_and_never_mixed(
    corpus: Path, features: Path, tmp_path: Path
) -> None:
    """With corrected cuts alone, legacy finds no clip of test."""
    data = tmp_path / "data"
    shutil.copytree(corpus, data)
    for clip in (data / "output_repeated_splits_test").glob("dia*.mp4"):
        clip.rename(clip.with_name(f"final_videos_test{clip.name}"))
    legacy = {"test_clips": "legacy", "splits": ("test",)}
    planned = plan(config_for(data, tmp_path / "features", **legacy))
    assert planned.recipe.test_clips == "legacy"
    assert planned.clips_missing == planned.rows
    fixed = plan(config_for(data, tmp_path / "features", splits=("test",)))
    assert fixed.clips_missing == {"test": 0}
    assert fixed.recipe.differences(planned.recipe) == ["decode.test_clips: fixed != legacy"]
    with pytest.raises(RecipeMismatch, match=r"decode\.test_clips: fixed != legacy"):
        plan(config_for(corpus, features, **legacy))


@pytest.mark.slow
def test_dev_before_train_is_completed_when_train_arrives(
    corpus: Path, features: Path, tmp_path: Path
) -> None:
    alone = {"modalities": ("audio",), "rows_per_shard": None}
    extract(config_for(corpus, tmp_path, splits=("dev",), **alone))
    assert read_cache(tmp_path / "dev.h5").embedding == {}
    extract(config_for(corpus, tmp_path, splits=("train",), **alone))
    dev, train = (read_cache(tmp_path / f"{split}.h5") for split in ("dev", "train"))
    assert dev.embedding["audio"].shape == (len(dev), 128)
    assert dev.projection_hash == train.projection_hash is not None


def test_stopped_in_the_middle_the_next_run_ends_with_the_same_bytes(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With sound alone, whose encoder is there soonest. In the slow tests a process that extracts
    all three modalities is killed."""
    unbroken = tmp_path / "unbroken"
    extract(config_for(corpus, unbroken, modalities=("audio",)))
    broken = config_for(corpus, tmp_path / "features", modalities=("audio",))
    num_written = 0

    def write_three(*shard: Any) -> None:
        nonlocal num_written
        if num_written == 3:
            raise KeyboardInterrupt
        write_shard(*shard)
        num_written += 1

    with monkeypatch.context() as patch:
        patch.setattr(extraction, "write_shard", write_three)
        with pytest.raises(KeyboardInterrupt):
            extract(broken)

    resumed = extract(broken)
    assert 3 <= sum(split.rows_resumed for split in resumed.splits) <= 6
    for name in ("train.h5", "dev.h5", "test.h5", "projection.h5"):
        assert (tmp_path / "features" / name).read_bytes() == (unbroken / name).read_bytes()


def test_a_clip_that_kills_its_decoder_is_in_the_ledger_and_costs_only_itself(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = locate_clips(corpus, "dev", read_corpus(corpus, ("dev",))["dev"], "fixed")[1].path

    def deadly(clip: LocatedClip, **rest: Any) -> DecodedClip:
        if clip.path == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_clip(clip, **rest)

    monkeypatch.setattr(parallel, "decode_clip", deadly)
    audio = {"modalities": ("audio",), "splits": ("dev",)}
    (split,) = extract(config_for(corpus, tmp_path / "features", **audio)).splits
    assert [(failure.code, failure.modality) for failure in split.failures] == [
        ("killed_worker", "audio")
    ]
    # No folder of this machine: the ledger travels with its cache.
    assert split.failures[0].message == "decoding it killed the worker 2 times (SIGKILL)"
    cache = read_cache(tmp_path / "features" / "dev.h5")
    assert cache.present["audio"].tolist() == [row != 1 for row in range(len(cache))]


def test_every_defect_of_a_corrupt_corpus_is_in_the_ledger_and_every_other_row_intact(
    corrupt_corpus: SampleResult, tmp_path: Path, meld: Meld, few_frames: tuple[str, ...]
) -> None:
    (tmp_path / "settings.toml").write_text("num_frames = 3\n")  # in shards as large as ever
    finished = meld(
        *("extract", "--split", "all", "--data", corrupt_corpus.root),
        *("--features", tmp_path / "features", *few_frames[:-1], tmp_path / "settings.toml"),
        "--json",
    )
    assert finished.status == 3, finished.err
    found: dict[tuple[str, str], set[str]] = {}
    for split in finished.json["splits"]:
        for failure in split["failures"]:
            found.setdefault((failure["clip"], failure["modality"]), set()).add(failure["code"])
    expected_codes = {
        "truncated_file": ("unreadable", "unreadable"),
        "truncated_data": ("truncated", "truncated"),
        "missing_file": ("missing_file", "missing_file"),
        "empty_file": ("empty_file", "empty_file"),
        "no_audio": (None, "no_audio"),
        "no_video": ("no_video", None),
        "two_frames": ("few_frames", None),
        "overlong": ("overlong", "overlong"),
    }
    expected = {}
    for defect in corrupt_corpus.defects:
        codes = expected_codes.get(defect.kind, (None, None))
        for modality, code in zip(("video", "audio"), codes, strict=True):
            if code is not None:
                expected[str(defect.key), modality] = code
    assert set(expected_codes) <= {item.kind for item in corrupt_corpus.defects}
    # The last packet before a cut may be half a packet.
    without_halves = {key: codes - {"bad_packets"} for key, codes in found.items()}
    # In 0.08 s nobody has begun to speak in the centre of a surround clip.
    for short in (item.key for item in corrupt_corpus.defects if item.kind == "two_frames"):
        assert without_halves.pop((str(short), "audio"), set()) <= {"silent_centre"}
    assert without_halves == {key: {code} for key, code in expected.items()}
    lost = {"unreadable", "missing_file", "empty_file", "no_audio", "no_video"}
    for split in SPLITS:
        cache = read_cache(tmp_path / "features" / f"{split}.h5")
        for row, (dialogue, utterance) in enumerate(
            zip(cache.dialogue_id, cache.utterance_id, strict=True)
        ):
            clip = f"{split} dia{dialogue}_utt{utterance}"
            assert cache.present["text"][row]
            for modality in ("video", "audio"):
                is_lost = bool(lost & found.get((clip, modality), set()))
                assert cache.present[modality][row] != is_lost, (clip, modality)
