"""The store of decoded clips: bit for bit what decoding gives, and never decoded twice."""

import dataclasses
import logging
import multiprocessing
import os
import pickle
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import av
import h5py
import numpy as np
import pytest

from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.decode.clip import decode_clip
from pipeline.errors import CacheBusy, CacheCorrupt, RecipeMismatch, StorageError, UsageError
from pipeline.parallel import engine as parallel
from pipeline.parallel.work import Cluster, DecodedShard, ShardTask
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedClip, LocatedClip, Modality
from pipeline.store.prepare import bytes_needed, prepare_store
from pipeline.store.store import DecodedStore, StoreConfig
from pipeline.system import locks

CLUSTER = Cluster(workers=2)
SILENT_ROW = 1


@pytest.fixture(scope="module")
def clips(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> list[LocatedClip]:
    """The dev clips of the small corpus, one of them without sound."""
    clips = locate_clips(corpus, "dev", read_corpus(corpus, ("dev",))["dev"], "fixed")
    loud = clips[SILENT_ROW].path
    assert loud is not None
    silent = tmp_path_factory.mktemp("silent") / loud.name
    with av.open(str(loud)) as source, av.open(str(silent), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    clips[SILENT_ROW] = dataclasses.replace(clips[SILENT_ROW], path=silent)
    return clips


def config_in(root: Path, **changes: Any) -> StoreConfig:
    return StoreConfig(root=root, decode=DecodeConfig(), **{"clips_per_shard": 2, **changes})


class Prepared(NamedTuple):
    """A store, and what one clip after the other decodes to."""

    store: DecodedStore
    clips: list[LocatedClip]
    decoded: list[DecodedClip]


@pytest.fixture(scope="module")
def shared(
    clips: list[LocatedClip], tmp_path_factory: pytest.TempPathFactory, ray_here: None
) -> Prepared:
    config = config_in(tmp_path_factory.mktemp("store"))
    store = prepare_store("dev", clips, config, CLUSTER)
    decoded = [decode_clip(clip, config.decode, config.modalities) for clip in clips]
    return Prepared(store, clips, decoded)


@pytest.fixture
def prepared(shared: Prepared, tmp_path: Path) -> Prepared:
    """The same, in a copy that may be damaged."""
    root = tmp_path / "store"
    shutil.copytree(shared.store.config.root, root)
    config = dataclasses.replace(shared.store.config, root=root)
    return shared._replace(store=dataclasses.replace(shared.store, config=config))


class Decoder:
    """Stands in for Ray; notes which shards were asked for and gives up after `limit`."""

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self.indices: list[int] = []

    def __call__(
        self,
        tasks: Sequence[ShardTask],
        decode: DecodeConfig,
        modalities: Sequence[Modality],
        cluster: Cluster,
    ) -> Iterator[DecodedShard]:
        for task in tasks:
            if len(self.indices) == self.limit:
                raise KeyboardInterrupt
            self.indices.append(task.index)
            decoded = tuple(decode_clip(clip, decode, modalities) for clip in task.clips)
            yield DecodedShard(split=task.split, index=task.index, clips=decoded)


@pytest.fixture
def decoder(monkeypatch: pytest.MonkeyPatch) -> Decoder:
    decoder = Decoder()
    monkeypatch.setattr(parallel, "decode_shards", decoder)
    return decoder


def again(prepared: Prepared) -> DecodedStore:
    return prepare_store("dev", prepared.clips, prepared.store.config, CLUSTER)


def assert_same(mine: DecodedClip, theirs: DecodedClip) -> None:
    assert (mine.utterance, mine.failures) == (theirs.utterance, theirs.failures)
    for name in ("frames", "times_s", "waveform"):
        left, right = getattr(mine, name), getattr(theirs, name)
        assert (left is None) == (right is None), name
        if left is not None:
            assert left.dtype == right.dtype
            assert np.array_equal(left, right), name


# -------------------------------------------------------------------------------------- reading


def test_every_clip_is_read_exactly_as_it_decodes(shared: Prepared) -> None:
    assert len(shared.store) == len(shared.clips) > 2
    for row, decoded in enumerate(shared.decoded):
        assert_same(shared.store.read(row), decoded)
    with pytest.raises(IndexError):
        shared.store.read(-1)


def test_a_clip_without_sound_is_absent_and_in_the_ledger(shared: Prepared) -> None:
    expected = [row != SILENT_ROW for row in range(len(shared.clips))]
    assert shared.store.present["audio"].tolist() == expected
    assert shared.store.present["video"].all()
    [failure] = shared.store.failures[SILENT_ROW]
    assert (failure.modality, failure.code, failure.lost) == ("audio", "no_audio", True)
    assert shared.store.read(SILENT_ROW).waveform is None


@pytest.mark.parametrize("way", ["fork", "spawn"])
def test_workers_read_the_same(shared: Prepared, way: str) -> None:
    shared.store.read(0)  # a file that was open here must not matter there
    with multiprocessing.get_context(way).Pool(1) as pool:
        assert_same(pool.apply(shared.store.read, (2,)), shared.decoded[2])


def test_a_store_is_small_to_send(shared: Prepared) -> None:
    assert len(pickle.dumps(shared.store)) < 10_000


@pytest.mark.parametrize(("modality", "dataset"), [("video", "frames"), ("audio", "waveform")])
def test_a_flipped_bit_is_found_and_the_clip_named(
    prepared: Prepared, modality: str, dataset: str
) -> None:
    path = prepared.store.config.shard_path("dev", 1)
    with h5py.File(path) as file:
        first = file[dataset].id.get_offset() + 1000  # within the first clip of the shard
    content = bytearray(path.read_bytes())
    content[first] ^= 4
    path.write_bytes(content)
    clip = prepared.clips[2].utterance.key
    with pytest.raises(CacheCorrupt, match=f"{path}: {clip}: {modality} does not match"):
        prepared.store.read(2)
    other = "audio" if modality == "video" else "video"
    assert getattr(prepared.store.read(2, [other]), dataset) is None  # not read, so not checked
    assert_same(prepared.store.read(3), prepared.decoded[3])


def test_a_shard_cut_off_or_gone_is_reported(prepared: Prepared) -> None:
    path = prepared.store.config.shard_path("dev", 0)
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CacheCorrupt, match=f"{prepared.clips[0].utterance.key}: video"):
        prepared.store.read(0)
    path.unlink()
    with pytest.raises(StorageError, match=f"{path}: cannot be read: No such file"):
        prepared.store.read(0)


def test_a_stranger_can_read_a_shard_with_h5py_alone(shared: Prepared) -> None:
    with h5py.File(shared.store.config.shard_path("dev", 0)) as file:
        assert np.array_equal(file["frames"][1], shared.decoded[1].frames)
        assert np.array_equal(file["times_s"][1], shared.decoded[1].times_s)
        assert np.array_equal(file["waveform"][:], shared.decoded[0].waveform)  # row 1 is silent
        assert file["span/audio"][:, 1].tolist() == [shared.decoded[0].waveform.nbytes, 0]


# ------------------------------------------------------------------------------------ preparing


def test_a_second_call_decodes_nothing(prepared: Prepared, decoder: Decoder) -> None:
    def times() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in prepared.store.config.root.rglob("*")}

    before = times()
    store = again(prepared)
    assert (decoder.indices, times()) == ([], before)
    assert_same(store.read(0), prepared.decoded[0])


def test_a_missing_shard_is_decoded_again_alone(prepared: Prepared, decoder: Decoder) -> None:
    path = prepared.store.config.shard_path("dev", 1)
    whole = path.read_bytes()
    path.unlink()
    again(prepared)
    assert decoder.indices == [1]
    assert path.read_bytes() == whole


def test_a_shard_that_cannot_be_read_is_decoded_again_alone(
    prepared: Prepared, decoder: Decoder, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (prepared.store.config.shard_path("dev", index) for index in range(2))
    shutil.copyfile(second, first)
    with caplog.at_level(logging.WARNING):
        store = again(prepared)
    assert "holds other clips than its place is for" in caplog.text
    assert decoder.indices == [0]
    assert_same(store.read(0), prepared.decoded[0])


def test_stopped_half_way_the_next_call_goes_on(
    shared: Prepared, decoder: Decoder, tmp_path: Path
) -> None:
    decoder.limit = 1
    config = config_in(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        prepare_store("dev", shared.clips, config, CLUSTER)
    leftover = config.folder("dev") / ".shard-00001.h5.77.tmp"
    leftover.touch()
    decoder.limit = 1000
    seen: list[tuple[int, int, int]] = []
    # The store keeps to the shards that it was begun with.
    larger = dataclasses.replace(config, clips_per_shard=16)
    store = prepare_store(
        "dev", shared.clips, larger, CLUSTER, lambda *progress: seen.append(progress)
    )
    assert decoder.indices == list(range(-(-len(shared.clips) // 2)))
    assert (seen[0], seen[-1]) == ((2, len(shared.clips), 1), (len(shared.clips),) * 2 + (1,))
    assert not leftover.exists()
    for row, decoded in enumerate(shared.decoded):
        assert_same(store.read(row), decoded)


def _touch(clips: list[LocatedClip], tmp_path: Path) -> list[LocatedClip]:
    assert clips[2].path is not None
    path = shutil.copy2(clips[2].path, tmp_path)
    os.utime(path, ns=(0, 1))
    return [*clips[:2], dataclasses.replace(clips[2], path=Path(path)), *clips[3:]]


def _lose(clips: list[LocatedClip], tmp_path: Path) -> list[LocatedClip]:
    return [*clips[:2], dataclasses.replace(clips[2], path=None), *clips[3:]]


def _leave_out(clips: list[LocatedClip], tmp_path: Path) -> list[LocatedClip]:
    return clips[:2]


def _swap(clips: list[LocatedClip], tmp_path: Path) -> list[LocatedClip]:
    return [*clips[:2], clips[3], clips[2], *clips[4:]]


@pytest.mark.parametrize("change", [_touch, _lose, _leave_out, _swap])
def test_other_clips_are_refused_and_the_first_is_named(
    prepared: Prepared, decoder: Decoder, tmp_path: Path, change: Any
) -> None:
    other = prepared._replace(clips=change(prepared.clips, tmp_path))
    with pytest.raises(RecipeMismatch, match="the first is row 2") as caught:
        again(other)
    assert str(prepared.clips[2].utterance.key) in str(caught.value)
    assert f"delete {prepared.store.config.folder('dev')}" in str(caught.value)


def test_another_decoding_is_another_store(
    prepared: Prepared, decoder: Decoder, tmp_path: Path
) -> None:
    silent = dataclasses.replace(prepared.store.config, modalities=("video",))
    assert silent.folder("dev") != prepared.store.config.folder("dev")
    store = prepare_store("dev", prepared.clips, silent, CLUSTER)
    assert list(store.present) == ["video"]
    assert store.read(0).waveform is None
    assert store.failures[SILENT_ROW] == ()
    with pytest.raises(UsageError, match="video, audio or both"):
        dataclasses.replace(silent, modalities=("text",))


def test_too_full_a_disk_is_found_before_anything_is_written(
    shared: Prepared, decoder: Decoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(9, 8, 1 << 20))
    with pytest.raises(StorageError, match=r"need about 0\.\d GiB and 0\.0 GiB are free"):
        prepare_store("dev", shared.clips, config_in(tmp_path / "store"), CLUSTER)
    assert not (tmp_path / "store").exists()
    assert decoder.indices == []


def test_the_size_is_known_before(shared: Prepared) -> None:
    config = shared.store.config
    size = sum(path.stat().st_size for path in config.root.rglob("shard-*.h5"))
    assert 0.9 < bytes_needed(shared.store.utterances, config) / size < 1.2


def test_a_second_writer_fails_at_once(shared: Prepared, decoder: Decoder, tmp_path: Path) -> None:
    config = config_in(tmp_path)
    with (
        locks.hold(config.folder("dev").with_suffix(".lock"), "the store"),
        pytest.raises(CacheBusy, match=f"process {os.getpid()} on "),
    ):
        prepare_store("dev", shared.clips, config, CLUSTER)


# --------------------------------------------------------------------------------------- killers


def test_a_clip_whose_sound_kills_is_a_row_with_its_picture(
    shared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deadly_row = 2
    victim = shared.clips[deadly_row].path

    def deadly(clip: LocatedClip, *, modalities: Sequence[Modality], **rest: Any) -> DecodedClip:
        if clip.path == victim and "audio" in modalities:
            os.kill(os.getpid(), signal.SIGKILL)
        return decode_clip(clip, modalities=modalities, **rest)

    monkeypatch.setattr(parallel, "decode_clip", deadly)
    store = prepare_store("dev", shared.clips, config_in(tmp_path), CLUSTER)
    [failure] = store.failures[deadly_row]
    assert (failure.modality, failure.code, failure.lost) == ("audio", "killed_worker", True)
    assert failure.message == "decoding its audio killed the worker 2 times (SIGKILL)"
    for row, decoded in enumerate(shared.decoded):
        if row == deadly_row:
            decoded = dataclasses.replace(decoded, waveform=None, failures=(failure,))
        assert_same(store.read(row), decoded)
