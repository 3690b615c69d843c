"""A cache knows which files it was made from: what changed is read again, and nothing else.

Features are planted: a clip's are made of its bytes, so no decoder and no Ray is needed.
"""

import hashlib
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.cache.format import FeatureCache, read_cache, read_header
from pipeline.corpus.clips import locate_clips
from pipeline.errors import InputError, RecipeMismatch, UsageError
from pipeline.extract import extract as extraction
from pipeline.extract.extract import ExtractConfig, ExtractReport, extract, plan
from pipeline.parallel import engine
from pipeline.parallel.work import ShardFeatures, ShardTask
from pipeline.schema import ClipFailure, ClipFeatures, LocatedClip, Split

ROWS = 7
FOLDERS = {"train": "train_splits", "dev": "dev_splits_complete"}


def encode(clip: LocatedClip) -> ClipFeatures:
    if clip.path is None:
        failure = ClipFailure(
            key=clip.utterance.key,
            modality="audio",
            stage="decode",
            code="missing_file",
            message=clip.missing,
        )
        return ClipFeatures(utterance=clip.utterance, failures=(failure,))
    seed = int.from_bytes(hashlib.sha256(clip.path.read_bytes()).digest()[:8])
    values = np.random.default_rng(seed).normal(size=(1, 16)).astype(np.float32)
    return ClipFeatures(utterance=clip.utterance, raw={"audio": values})


def encode_each(tasks: Sequence[ShardTask], *_: object) -> Iterator[ShardFeatures]:
    for task in tasks:
        yield ShardFeatures(
            split=task.split, index=task.index, features=tuple(map(encode, task.clips))
        )


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the clips that were encoded, in order."""
    names: list[str] = []

    def encode_and_count(tasks: Sequence[ShardTask], *_: object) -> Iterator[ShardFeatures]:
        for task in tasks:
            names.extend(str(clip.utterance.key) for clip in task.clips)
            yield from encode_each([task])

    monkeypatch.setattr(engine, "encode_shards", encode_and_count)
    return names


class Corpus:
    """Two splits of seven rows, a file of a few bytes standing for each clip."""

    def __init__(self, root: Path, *, is_made: bool = False) -> None:
        self.data, self.features = root / "data", root / "features"
        for split in () if is_made else FOLDERS:
            (self.data / FOLDERS[split]).mkdir(parents=True)
            self.write_table(split)
            for row in range(ROWS):
                self.clip(split, row).write_bytes(f"{split} {row}".encode())

    def write_table(self, split: str, **changes: str) -> None:
        """changes: u3="anger,negative" gives row 3 other labels"""
        labels = {f"u{row}": "joy,positive" for row in range(ROWS)} | changes
        rows = [f"0,{row},line {row},Joey,{labels[f'u{row}']}" for row in range(ROWS)]
        header = "Dialogue_ID,Utterance_ID,Utterance,Speaker,Emotion,Sentiment"
        (self.data / f"{split}_sent_emo.csv").write_text("\n".join([header, *rows]) + "\n")

    def clip(self, split: str, row: int) -> Path:
        return self.data / FOLDERS[split] / f"dia0_utt{row}.mp4"

    def config(self, *splits: Split, **changes: Any) -> ExtractConfig:
        settings = {"data": self.data, "features": self.features, "modalities": ("audio",)}
        return ExtractConfig(
            **{**settings, "splits": splits or ("dev",), "rows_per_shard": 3, **changes}
        )

    def extract(self, *splits: Split, **changes: Any) -> ExtractReport:
        return extract(self.config(*splits, **changes))

    def cache(self, split: str = "dev") -> FeatureCache:
        return read_cache(self.features / f"{split}.h5")


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus with dev extracted, its row 4 without a clip: that lies beside it."""
    root = tmp_path_factory.mktemp("extracted")
    made = Corpus(root)
    made.clip("dev", 4).rename(root / "dia0_utt4.mp4")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "encode_shards", encode_each)
        made.extract()
    return root


@pytest.fixture
def corpus(extracted: Path, tmp_path: Path, encoded: list[str]) -> Corpus:
    """A copy of it, with the times of its files."""
    shutil.copytree(extracted, tmp_path, dirs_exist_ok=True)
    return Corpus(tmp_path, is_made=True)


@contextmanager
def killed_after_a_shard(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What runs inside is interrupted when its first shard is written."""
    whole: Callable[..., Iterator[ShardFeatures]] = engine.encode_shards

    def interrupted(*args: object) -> Iterator[ShardFeatures]:
        yield next(whole(*args))
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(engine, "encode_shards", interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield


def others(cache: FeatureCache, row: int) -> bytes:
    keep = np.arange(ROWS) != row
    return cache.raw["audio"][keep].tobytes() + cache.present["audio"][keep].tobytes()


def test_where_nothing_changed_nothing_is_encoded(corpus: Corpus, encoded: list[str]) -> None:
    before = (corpus.features / "dev.h5").read_bytes()
    assert corpus.extract().splits[0].rows_resumed == ROWS
    assert encoded == []
    assert (corpus.features / "dev.h5").read_bytes() == before


def test_a_clip_that_appeared_is_encoded_and_no_other(
    corpus: Corpus, encoded: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = corpus.cache()
    (tmp_path / "dia0_utt4.mp4").rename(corpus.clip("dev", 4))
    assert plan(corpus.config()).rows_stale == {"dev": 1}
    with caplog.at_level(logging.WARNING):
        report = corpus.extract()
    assert encoded == ["dev dia0_utt4"]
    assert report.num_failures == 0
    after = corpus.cache()
    assert after.present["audio"].all()
    assert others(after, 4) == others(before, 4)
    assert np.array_equal(
        after.raw["audio"][4],
        encode(locate_clips(corpus.data, "dev", [_row(4)], "fixed")[0]).raw["audio"],
    )
    assert (
        "of 1 of 7 rows the clip is not the one that was read (first: dev dia0_utt4, appeared); "
        "these rows are extracted again"
    ) in caplog.text


def _row(number: int) -> Any:
    from pipeline.schema import ClipKey, Utterance

    return Utterance(key=ClipKey("dev", 0, number), text="")


@pytest.mark.parametrize("same_time", [True, False])
def test_a_clip_that_was_replaced_is_encoded_again(
    corpus: Corpus, encoded: list[str], same_time: bool
) -> None:
    before = corpus.cache()
    clip = corpus.clip("dev", 2)
    time = clip.stat().st_mtime_ns
    clip.write_bytes(b"another cut of it" if same_time else b"DEV 2")  # as long as before
    if same_time:
        os.utime(clip, ns=(time, time))
    corpus.extract()
    assert encoded == ["dev dia0_utt2"]
    assert others(corpus.cache(), 2) == others(before, 2)
    assert not np.array_equal(corpus.cache().raw["audio"][2], before.raw["audio"][2])


def test_a_clip_that_went_becomes_absent_and_says_so(corpus: Corpus, encoded: list[str]) -> None:
    before = corpus.cache()
    corpus.clip("dev", 5).unlink()
    report = corpus.extract()
    assert encoded == ["dev dia0_utt5"]
    assert [failure.key.utterance_id for failure in report.splits[0].failures] == [4, 5]
    assert not corpus.cache().present["audio"][5]
    assert others(corpus.cache(), 5) == others(before, 5)


def test_a_clip_that_was_only_touched_is_compared_once_and_not_encoded(
    corpus: Corpus, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.utime(corpus.clip("dev", 1), ns=(1, 1))
    corpus.extract()
    assert encoded == []
    assert corpus.cache().sources[1].mtime_ns == 1
    # Nothing is read any more: its time is known now.
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("read again"))
    corpus.extract()
    assert encoded == []


def test_a_copied_corpus_is_the_same_corpus(
    corpus: Corpus, encoded: list[str], tmp_path: Path
) -> None:
    copy = tmp_path / "elsewhere"
    for file in (corpus.data / FOLDERS["dev"]).iterdir():  # with times of their own
        (copy / FOLDERS["dev"]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copy / FOLDERS["dev"] / file.name)
    shutil.copyfile(corpus.data / "dev_sent_emo.csv", copy / "dev_sent_emo.csv")
    corpus.extract(data=copy)
    assert encoded == []


@pytest.mark.parametrize("way", ["time zone", "clock", "relative paths", "deleted folder"])
def test_where_and_when_a_command_is_called_changes_nothing(
    corpus: Corpus, encoded: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    before = (corpus.features / "dev.h5").read_bytes()
    if way == "time zone":
        monkeypatch.setenv("TZ", "Pacific/Kiritimati")
        time.tzset()
    elif way == "clock":
        monkeypatch.setattr(time, "time", lambda: 1.0)
    elif way == "relative paths":
        monkeypatch.chdir(tmp_path)
        corpus = Corpus(Path(), is_made=True)
    else:
        (tmp_path / "gone").mkdir()
        monkeypatch.chdir(tmp_path / "gone")
        (tmp_path / "gone").rmdir()
    try:
        report = corpus.extract()
        assert [split.rows_resumed for split in report.splits] == [ROWS]
        assert encoded == []
        assert (corpus.features / "dev.h5").read_bytes() == before
        corpus.extract("train")  # of which nothing was there
        assert len(encoded) == ROWS
    finally:
        monkeypatch.undo()
        time.tzset()


def test_no_path_of_this_machine_is_in_a_cache(corpus: Corpus, tmp_path: Path) -> None:
    content = (corpus.features / "dev.h5").read_bytes()
    assert b"dev_splits_complete/dia0_utt0.mp4" in content
    assert str(tmp_path).encode() not in content


@pytest.mark.heavy
def test_a_run_killed_while_it_reads_changed_clips_goes_on(
    corpus: Corpus, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (0, 1, 2, 3, 6):  # two shards
        corpus.clip("dev", row).write_bytes(b"new " + bytes([row]))
    with killed_after_a_shard(monkeypatch):
        corpus.extract()
    assert plan(corpus.config()).rows_done == {"dev": 2 + 3}
    encoded.clear()
    corpus.extract()
    assert encoded == ["dev dia0_utt3", "dev dia0_utt6"]
    unbroken = Corpus(corpus.data.parent / "unbroken")
    for row in (0, 1, 2, 3, 6):
        unbroken.clip("dev", row).write_bytes(b"new " + bytes([row]))
    unbroken.clip("dev", 4).unlink()
    unbroken.extract()
    assert corpus.cache().raw["audio"].tobytes() == unbroken.cache().raw["audio"].tobytes()
    assert not (corpus.features / ".work" / "dev").exists()


@pytest.mark.heavy
def test_a_clip_that_changes_while_a_run_is_interrupted_is_read_again(
    corpus: Corpus, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after_a_shard(monkeypatch):
        corpus.extract("train")
    corpus.clip("train", 1).write_bytes(b"another")
    encoded.clear()
    corpus.extract("train")
    assert len(encoded) == ROWS  # the finished shard as well
    wanted = encode(LocatedClip(utterance=_row(1), path=corpus.clip("train", 1)))
    assert np.array_equal(corpus.cache("train").raw["audio"][1], wanted.raw["audio"])


@pytest.mark.heavy
def test_a_new_clip_of_train_changes_the_embeddings_of_every_split(
    corpus: Corpus, encoded: list[str]
) -> None:
    corpus.extract("train")
    before = read_header(corpus.features / "dev.h5").projection_hash
    corpus.clip("train", 3).write_bytes(b"another")
    encoded.clear()
    corpus.extract("train")
    assert encoded == ["train dia0_utt3"]
    hashes = {read_header(corpus.features / f"{name}.h5").projection_hash for name in FOLDERS}
    assert len(hashes) == 1
    assert hashes != {before}


@pytest.mark.heavy
def test_a_corrected_label_is_taken_over_and_nothing_is_encoded(
    corpus: Corpus, encoded: list[str]
) -> None:
    corpus.extract("train")
    before = corpus.cache()
    encoded.clear()
    corpus.write_table("dev", u3="anger,negative")
    corpus.extract()
    after = corpus.cache()
    assert encoded == []
    assert (after.emotion[3], after.sentiment[3]) == ("anger", "negative")
    assert after.emotion[:3] == before.emotion[:3]
    assert after.raw["audio"].tobytes() == before.raw["audio"].tobytes()
    assert after.embedding["audio"].tobytes() == before.embedding["audio"].tobytes()


def test_another_text_is_still_another_cache(corpus: Corpus) -> None:
    table = corpus.data / "dev_sent_emo.csv"
    table.write_text(table.read_text().replace("line 3", "line three"))
    with pytest.raises(RecipeMismatch, match="other annotations than the dev CSV"):
        corpus.extract()


@pytest.mark.heavy
def test_splits_extracted_side_by_side_both_get_embeddings(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dev finds no train; train, which ends a moment later, finds dev locked."""
    shutil.rmtree(corpus.features)
    complete: Callable[..., Any] = extraction.complete_embeddings
    calls: list[int] = []

    def at_the_same_time(*args: Any) -> Any:
        calls.append(1)
        found = complete(*args)
        if len(calls) == 1:
            assert found is None
            corpus.extract("train")
        return found

    monkeypatch.setattr(extraction, "complete_embeddings", at_the_same_time)
    report = corpus.extract("dev")
    assert report.explained_variance is not None
    assert read_header(corpus.features / "dev.h5").projection_hash is not None


def test_shards_that_a_killed_merge_left_are_removed(corpus: Corpus) -> None:
    folder = corpus.features / ".work" / "dev"
    folder.mkdir(parents=True)
    (folder / "shard-00000.h5").write_bytes(b"of a finished cache")
    corpus.extract()
    assert not folder.exists()


def test_what_is_stale_is_reported_without_reading_a_clip(
    corpus: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, meld: Any
) -> None:
    file = corpus.features / "dev.h5"
    fresh = meld("info", file, "--data", corpus.data)
    assert f"clips in {corpus.data}: unchanged since they were read" in fresh.out
    (tmp_path / "dia0_utt4.mp4").rename(corpus.clip("dev", 4))
    corpus.clip("dev", 0).unlink()
    corpus.clip("dev", 1).write_bytes(b"another cut of it")
    os.utime(corpus.clip("dev", 2), ns=(1, 1))
    monkeypatch.setattr(hashlib, "file_digest", lambda *_: pytest.fail("a clip was read"))
    told = meld("info", file, "--data", corpus.data)
    assert "4 of 7 rows are stale; meld extract updates them" in told.out
    assert "clip added: dev dia0_utt4" in told.out
    assert "clip removed: dev dia0_utt0" in told.out
    assert "clip changed: dev dia0_utt1" in told.out
    assert "clip has another time or name, its bytes may be the same: dev dia0_utt2" in told.out
    stale = meld("info", file, "--data", corpus.data, "--json").json["stale"]
    assert stale["went"] == ["dev dia0_utt0"]
    assert "another folder" not in told.out
    (tmp_path / "elsewhere").mkdir()
    of_another = meld("info", file, "--data", tmp_path / "elsewhere")
    assert "6 of 7 rows are stale" in of_another.out  # one never had a clip
    assert "made from another folder, name that one with --data" in of_another.out
    monkeypatch.chdir(tmp_path / "features")
    assert meld("info", file, "--json").json["stale"] is None


def test_a_corpus_whose_clips_are_all_away_costs_no_feature(
    corpus: Corpus, encoded: list[str]
) -> None:
    """A disk that is not mounted, or the CSVs alone: that is no reason to empty a cache."""
    before = (corpus.features / "dev.h5").read_bytes()
    shutil.rmtree(corpus.data / FOLDERS["dev"])
    for ask in (plan, extract):
        with pytest.raises(InputError) as caught:
            ask(corpus.config())
        cache = corpus.features / "dev.h5"
        assert str(caught.value) == (
            f"{corpus.data}: none of the 6 clips that {cache} was made from is here, so {cache} is "
            f"left as it is; name their corpus with --data, or delete {cache}"
        )
    assert (corpus.features / "dev.h5").read_bytes() == before
    assert encoded == []


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
def test_what_only_has_the_name_of_a_clip_is_no_clip_and_not_read_at_every_run(
    corpus: Corpus, encoded: list[str], make: Callable[[Path], None]
) -> None:
    make(corpus.clip("dev", 4))
    for _ in range(2):
        corpus.extract()
        assert encoded == []
    assert corpus.cache().sources[4].file == ""


def test_a_clip_of_another_name_is_compared_by_its_bytes(
    corpus: Corpus, encoded: list[str]
) -> None:
    """Archives keep whole seconds: two files may well have one size and one time."""
    time = corpus.clip("dev", 2).stat().st_mtime_ns
    other = corpus.clip("dev", 2).with_suffix(".mkv")
    corpus.clip("dev", 2).unlink()
    other.write_bytes(b"DEV 2")
    os.utime(other, ns=(time, time))
    corpus.extract()
    assert encoded == ["dev dia0_utt2"]


def test_foreign_files_beside_the_shards_stay(corpus: Corpus) -> None:
    folder = corpus.features / ".work" / "dev"
    for overwrite in (False, True):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "notes.txt").write_text("mine")
        corpus.extract(overwrite=overwrite)
        assert [path.name for path in folder.iterdir()] == ["notes.txt"]


def test_a_file_of_somebody_else_with_the_name_of_a_cache_is_never_replaced(corpus: Corpus) -> None:
    mine = corpus.features / "dev.h5"
    mine.write_text("my notes")
    with pytest.raises(UsageError, match=r"dev\.h5 is no feature cache .*another --features"):
        corpus.extract("dev", overwrite=True)
    assert mine.read_text() == "my notes"


@pytest.mark.heavy
def test_clips_that_change_while_changed_ones_are_read_again_cost_no_finished_shard(
    corpus: Corpus, encoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for row in (2, 3, 5, 6):
        corpus.clip("dev", row).write_bytes(b"new " + bytes([row]))
    with killed_after_a_shard(monkeypatch):
        corpus.extract()
    corpus.clip("dev", 0).write_bytes(b"new too")
    encoded.clear()
    corpus.extract()
    assert encoded == ["dev dia0_utt6", "dev dia0_utt0"]
    for row in (0, 2, 3, 5, 6):
        wanted = encode(LocatedClip(utterance=_row(row), path=corpus.clip("dev", row)))
        assert np.array_equal(corpus.cache().raw["audio"][row], wanted.raw["audio"])


def test_an_unfinished_extraction_whose_clips_are_all_away_keeps_its_shards(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with killed_after_a_shard(monkeypatch):
        corpus.extract("train")
    clips = corpus.data / FOLDERS["train"]
    clips.rename(tmp_path / "unmounted")
    with pytest.raises(InputError, match=r"none of the 3 clips that .*train was made from is here"):
        corpus.extract("train")
    (tmp_path / "unmounted").rename(clips)
    assert plan(corpus.config("train")).rows_done == {"train": 3}


def test_a_killed_overwrite_of_another_recipe_is_not_thrown_away_for_changed_clips(
    corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with killed_after_a_shard(monkeypatch):
        corpus.extract(overwrite=True, max_duration_s=10.0)
    corpus.clip("dev", 6).write_bytes(b"another")
    with pytest.raises(RecipeMismatch, match="the unfinished --overwrite in"):
        corpus.extract()
    assert plan(corpus.config(max_duration_s=10.0)).rows_done == {"dev": 3}


def test_info_of_a_corpus_that_is_not_there_is_refused(corpus: Corpus, meld: Any) -> None:
    told = meld("info", corpus.features / "dev.h5", "--data", corpus.data / "nowhere")
    assert told.status == 4
    assert f"{corpus.data / 'nowhere'}: no such folder" in told.err
