"""Whatever writes is stopped at its first operation on the disk, its second, and so on to the last:
somebody who reads finds old or new and never something between, and the same again ends it.

Each way of failing is one of `failing_disk.HOWS`: killed, refused once, or no more room.
"""

import dataclasses
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fusion.export.export import ExportConfig, export
from fusion.finetuning.checkpoints import ProgressFolder
from fusion.finetuning.workers import Worker
from fusion.inference.bundle import read_export
from fusion.inference.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from fusion.inference.load import ModelChoice
from fusion.inference.saved_features import SavedFeatures
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from fusion.training.run_folder import METRICS, open_run
from pipeline.cache.embeddings import projection_path
from pipeline.cache.format import read_cache, write_cache
from pipeline.cache.projection import fit_projections, read_projections, write_projections
from pipeline.parallel import engine
from pipeline.parallel.work import Cluster, DecodedShard, ShardTask
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import ClipKey, DecodedClip, LocatedClip, Utterance
from pipeline.store.prepare import prepare_store
from pipeline.store.store import StoreConfig
from pipeline.system.files import write_whole
from serving.jobs import Job, JobStore
from tests.failing_disk import HOWS, Change, How, fail_everywhere
from tests.pipeline.cache.planted import make_cache, make_recipe
from tests.pipeline.extract.test_changed_clips import Corpus, encode_each
from tests.runs import write_run_of_words


def temporaries(folder: Path) -> list[Path]:
    return list(folder.rglob("*.tmp"))


# It starts no process, but each place is a whole run of what writes: too long while you write.
pytestmark = pytest.mark.heavy

EACH_WAY = pytest.mark.parametrize("how", HOWS)
# Where each place takes long, `make test` tries a few of them, another few each time.
SOME = pytest.mark.parametrize(
    "num_places", [pytest.param(2, id="some"), pytest.param(None, id="all", marks=pytest.mark.slow)]
)


# ------------------------------------------------------------------------- a cache, a projection


@EACH_WAY
def test_a_cache_is_the_old_one_or_the_new_one(tmp_path: Path, how: How) -> None:
    change = Change(
        prepare=lambda folder: write_cache(folder / "dev.h5", make_cache()),
        change=lambda folder: write_cache(folder / "dev.h5", make_cache(rows=9)),
        read=lambda folder: read_cache(folder / "dev.h5").raw["text"].tobytes(),
    )
    assert fail_everywhere(change, tmp_path, how) >= 4


@EACH_WAY
def test_a_projection_is_the_old_one_or_the_new_one(tmp_path: Path, how: How) -> None:
    recipe = make_recipe()
    small, large = (fit_projections(make_cache(rows=rows)) for rows in (6, 30))

    def read(folder: Path) -> Any:
        found = read_projections(folder / "projection.h5", recipe)
        return None if found is None else found["text"].components.tobytes()

    change = Change(
        prepare=lambda folder: write_projections(folder / "projection.h5", small, recipe),
        change=lambda folder: write_projections(folder / "projection.h5", large, recipe),
        read=read,
    )
    assert fail_everywhere(change, tmp_path, how) >= 4


# ----------------------------------------------------------------------------------- extractions


@pytest.fixture
def planted_features(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "encode_shards", encode_each)


@pytest.fixture(scope="module")
def extracted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two splits of seven rows, and their caches."""
    root = tmp_path_factory.mktemp("extracted")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engine, "encode_shards", encode_each)
        Corpus(root).extract("train", "dev")
    return root


def copy_corpus(extracted: Path, folder: Path) -> Corpus:
    shutil.copytree(extracted, folder, dirs_exist_ok=True)
    return Corpus(folder, is_made=True)


def caches_in(folder: Path) -> dict[str, Any]:
    """The features of each cache; a projection beside them can be read."""
    features = folder / "features"
    found: dict[str, Any] = {}
    for split in ("train", "dev"):
        path = features / f"{split}.h5"
        if path.is_file():
            cache = read_cache(path)
            found[split] = cache.raw["audio"].tobytes(), tuple(cache.text)
            if projection_path(features).is_file():
                assert read_projections(projection_path(features), cache.recipe) is not None
    return found


def leftovers(folder: Path) -> list[Path]:
    work = folder / "features" / ".work"
    return [path for path in work.rglob("*") if path.is_file() and path.suffix != ".lock"]


@SOME
@EACH_WAY
@pytest.mark.usefixtures("planted_features")
@pytest.mark.parametrize("split", ["dev", "train"])
def test_a_first_extraction_has_no_cache_or_a_whole_one(
    tmp_path: Path, extracted: Path, how: How, num_places: int | None, split: Any
) -> None:
    def prepare(folder: Path) -> None:
        copy_corpus(extracted, folder)
        shutil.rmtree(folder / "features")

    change = Change(
        prepare=prepare,
        change=lambda folder: Corpus(folder, is_made=True).extract(split),
        read=caches_in,
        leftovers=leftovers,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 20


@SOME
@EACH_WAY
@pytest.mark.usefixtures("planted_features")
def test_rows_that_are_extracted_again_are_all_old_or_all_new(
    tmp_path: Path, extracted: Path, how: How, num_places: int | None
) -> None:
    """A clip of train changed: its row, the projection, and the embeddings of both splits."""

    def prepare(folder: Path) -> None:
        clip = copy_corpus(extracted, folder).clip("train", 2)
        clip.write_bytes(b"another clip")
        os.utime(clip, ns=(1, 1))

    change = Change(
        prepare=prepare,
        change=lambda folder: Corpus(folder, is_made=True).extract("train", "dev"),
        read=caches_in,
        leftovers=leftovers,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 20
    names = ("train.h5", "dev.h5", "projection.h5")
    whole = [(tmp_path / "unbroken" / "features" / name).read_bytes() for name in names]
    for folder in tmp_path.glob(f"{how}-*"):
        assert [(folder / "features" / name).read_bytes() for name in names] == whole, folder


@SOME
@EACH_WAY
@pytest.mark.usefixtures("planted_features")
def test_an_overwrite_leaves_the_old_cache_until_the_new_one_is_whole(
    tmp_path: Path, extracted: Path, how: How, num_places: int | None
) -> None:
    def prepare(folder: Path) -> None:
        table = copy_corpus(extracted, folder).data / "dev_sent_emo.csv"
        table.write_text(table.read_text().replace("line 3", "another line"))

    change = Change(
        prepare=prepare,
        change=lambda folder: Corpus(folder, is_made=True).extract("dev", overwrite=True),
        read=caches_in,
        leftovers=leftovers,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 20


@SOME
@EACH_WAY
@pytest.mark.usefixtures("planted_features")
def test_a_corrected_label_is_there_or_not(
    tmp_path: Path, extracted: Path, how: How, num_places: int | None
) -> None:
    def prepare(folder: Path) -> None:
        copy_corpus(extracted, folder).write_table("dev", u3="anger,negative")

    change = Change(
        prepare=prepare,
        change=lambda folder: Corpus(folder, is_made=True).extract("dev"),
        read=lambda folder: read_cache(folder / "features" / "dev.h5").emotion,
        leftovers=leftovers,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 4


# ---------------------------------------------------------------------------- the decoded clips


@SOME
@EACH_WAY
def test_a_store_of_decoded_clips_goes_on_shard_by_shard(
    tmp_path: Path, how: How, num_places: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = StoreConfig(root=Path("store"), decode=DecodeConfig(num_frames=2), clips_per_shard=2)
    media = tmp_path / "clip.mp4"
    media.write_bytes(b"a clip")
    rows = [Utterance(key=ClipKey("dev", 0, row), text="") for row in range(5)]
    clips = [LocatedClip(utterance=row, path=media) for row in rows]

    def decoded(clip: LocatedClip) -> DecodedClip:
        number = clip.utterance.key.utterance_id
        return DecodedClip(
            utterance=clip.utterance,
            frames=np.full(config.frames_shape, number, np.uint8),
            times_s=np.arange(2.0),
            waveform=np.full(100, number, np.float32),
        )

    def decode(tasks: Sequence[ShardTask], *_: object) -> Iterator[DecodedShard]:
        for task in tasks:
            yield DecodedShard(
                split=task.split, index=task.index, clips=tuple(map(decoded, task.clips))
            )

    monkeypatch.setattr(engine, "decode_shards", decode)

    def prepare_in(folder: Path) -> Any:
        return prepare_store(
            "dev", clips, dataclasses.replace(config, root=folder / "store"), Cluster(workers=1)
        )

    def read(folder: Path) -> Any:
        """What the next call has not to decode."""
        indices: list[int] = []

        def note(tasks: Sequence[ShardTask], *rest: object) -> Iterator[DecodedShard]:
            indices.extend(task.index for task in tasks)
            yield from decode(tasks, *rest)

        copy = folder.with_name(f"{folder.name}-copy")
        shutil.copytree(folder, copy)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "decode_shards", note)
            store = prepare_in(copy)
        for number in range(5):
            clip = store.read(number)
            assert clip.frames is not None
            assert clip.waveform is not None
            assert {*clip.frames.flat, *clip.waveform} == {number}
        shutil.rmtree(copy)
        seen.append(tuple(indices))
        return "whole"

    seen: list[tuple[int, ...]] = []
    change = Change(
        prepare=lambda folder: None,
        change=prepare_in,
        read=lambda folder: read(folder) if (folder / "store").exists() else "nothing",
        leftovers=temporaries,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 15
    # Each shard that was finished before the failure was decoded once.
    assert set(seen) <= {(0, 1, 2), (1, 2), (2,), ()}
    assert num_places or len(set(seen)) == 4


# -------------------------------------------------------------------------- runs and fine-tuning


def make_checkpoint(seed: int, recipe: FeatureRecipe | None = None, dim: int = 24) -> Checkpoint:
    dims = FusionDims(
        modalities=(ModalityDims(modality="text", layers=3 if recipe else 2, dim=dim),),
        model=ModelConfig(hidden=8, projection=8),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = FusionModel(dims).eval()
    return Checkpoint(
        model=model,
        dims=dims,
        recipe=recipe or make_recipe("text"),
        projection_hash=None,
        emotion_counts=(1,) * 7,
        sentiment_counts=(1,) * 3,
        settings={"seed": seed},
        features=None,
    )


def write_run(folder: Path, seed: int) -> None:
    with open_run(folder / "run", overwrite=True, name="x", inputs=()) as run:
        write_checkpoint(run, make_checkpoint(seed))
        write_whole(run / METRICS, b"{}")


def weights_of(folder: Path) -> bytes:
    checkpoint = read_checkpoint(folder / "run")
    [weights] = [checkpoint.model.state_dict()["heads.emotion.bias"]]
    return bytes([checkpoint.settings["seed"]]) + weights.numpy().tobytes()


@EACH_WAY
def test_a_run_is_the_old_one_the_new_one_or_says_that_it_is_unfinished(
    tmp_path: Path, how: How
) -> None:
    change = Change(
        prepare=lambda folder: write_run(folder, 1),
        change=lambda folder: write_run(folder, 2),
        read=weights_of,
        may_be_refused=True,
        leftovers=temporaries,
    )
    assert fail_everywhere(change, tmp_path, how) >= 12


@EACH_WAY
def test_a_checkpoint_of_fine_tuning_is_the_last_one_or_the_one_before(
    tmp_path: Path, how: How
) -> None:
    worker = Worker(device=torch.device("cpu"))

    def prepare(folder: Path) -> None:
        progress = ProgressFolder(folder)
        progress.begin({"tune": {}})
        progress.save_last({"step": torch.tensor(1)}, worker)
        progress.save_best(nn.Linear(2, 2), worker)

    def change(folder: Path) -> None:
        progress = ProgressFolder(folder)
        progress.remove_leftovers()
        progress.save_last({"step": torch.tensor(2)}, worker)

    def read(folder: Path) -> int:
        progress = ProgressFolder(folder)
        assert progress.read_settings() == {"tune": {}}
        progress.load_best(nn.Linear(2, 2))
        last = progress.load_last()
        assert last is not None
        return int(last["step"])

    assert fail_everywhere(Change(prepare=prepare, change=change, read=read), tmp_path, how) >= 4


@EACH_WAY
def test_saved_features_of_a_prediction_are_there_or_computed_again(
    tmp_path: Path, how: How
) -> None:
    from pipeline.schema import ClipFeatures

    rows = [Utterance(key=ClipKey("test", 0, row), text="Hi") for row in range(2)]

    def features(value: float) -> list[ClipFeatures]:
        return [
            ClipFeatures(utterance=row, raw={"text": np.full((1, 4), value, np.float32)})
            for row in rows
        ]

    def saved(folder: Path) -> SavedFeatures:
        return SavedFeatures(folder, media="m", model="m", spans=())

    def read(folder: Path) -> Any:
        found = saved(folder).read(0, rows)
        return None if found is None else [float(each.raw["text"].mean()) for each in found]

    change = Change(
        prepare=lambda folder: None,
        change=lambda folder: saved(folder).write(0, features(2.0)),
        read=read,
    )
    assert fail_everywhere(change, tmp_path, how) >= 4


# -------------------------------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def words_run(tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "words"
    write_run_of_words(run, tiny_text_folder)
    return run


@pytest.fixture(scope="module")
def old_bundle(
    words_run: Path, tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Of another run: its settings tell it."""
    other = tmp_path_factory.mktemp("runs") / "other"
    other.mkdir()
    write_checkpoint(other, dataclasses.replace(read_checkpoint(words_run), settings={"seed": 7}))
    out = tmp_path_factory.mktemp("bundles") / "shipped"
    return export(ExportConfig(run=other, out=out, weights_dir=tiny_text_folder.parent)).bundle


@EACH_WAY
@SOME
def test_a_bundle_is_the_old_one_the_new_one_or_says_that_it_is_unfinished(
    tmp_path: Path,
    how: How,
    num_places: int | None,
    words_run: Path,
    old_bundle: Path,
    tiny_text_folder: Path,
) -> None:
    def prepare(folder: Path) -> None:
        shutil.copytree(old_bundle, folder / "shipped")

    def write(folder: Path) -> None:
        export(
            ExportConfig(
                run=words_run,
                out=folder / "shipped",
                weights_dir=tiny_text_folder.parent,
                overwrite=True,
            )
        )

    def read(folder: Path) -> Any:
        bundle = folder / "shipped"
        predictor = ModelChoice(run=bundle).load()
        exported = read_export(bundle)
        assert exported is not None
        return predictor.description.settings, exported["files"]

    change = Change(
        prepare=prepare,
        change=write,
        read=read,
        may_be_refused=True,
    )
    assert fail_everywhere(change, tmp_path, how, num_places) >= 30


# -------------------------------------------------------------------------------- folders of jobs


def make_job(job_id: str, file: str = "talk.mp4") -> Job:
    return Job(
        id=job_id,
        file=file,
        media_type="video/mp4",
        num_bytes=3,
        duration_ms=1000,
        created_s=1.0,
    )


def accept(store: JobStore) -> str:
    incoming = store.begin()
    write_whole(incoming.folder.media, b"abc")
    return store.accept(incoming, make_job(incoming.id)).id


def jobs_in(folder: Path) -> list[tuple[Any, ...]]:
    """What the next server finds."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.copytree(folder, copy)
    store = JobStore(copy)
    found = [*store.unfinished(), *store.ended()]
    for job in found:
        assert store.folder(job.id).media.read_bytes() == b"abc"
    for name in ("incoming", "erased"):
        assert not list((copy / name).iterdir())
    shutil.rmtree(copy)
    return [(job.ended, job.num_deaths) for job in found]


JOB_CHANGES: dict[str, Callable[[JobStore, Job], object]] = {
    "ended": lambda store, job: store.end(job),
    "given back": lambda store, job: store.update(dataclasses.replace(job, num_deaths=1)),
    "erased": lambda store, job: store.erase(job.id),
}


@EACH_WAY
@pytest.mark.parametrize("name", JOB_CHANGES)
def test_a_job_is_as_it_was_or_as_it_is_now(tmp_path: Path, how: How, name: str) -> None:
    def change(folder: Path) -> None:
        store = JobStore(folder)
        for job in store.unfinished():
            if job.num_deaths == 0:
                JOB_CHANGES[name](store, job)

    whole = Change(
        prepare=lambda folder: accept(JobStore(folder)) and None, change=change, read=jobs_in
    )
    assert fail_everywhere(whole, tmp_path, how) >= 2


@EACH_WAY
def test_a_job_is_accepted_or_was_never_there(tmp_path: Path, how: How) -> None:
    def change(folder: Path) -> None:
        store = JobStore(folder)
        if not store.unfinished():
            accept(store)

    def prepare(folder: Path) -> None:
        JobStore(folder)

    whole = Change(prepare=prepare, change=change, read=jobs_in)
    assert fail_everywhere(whole, tmp_path, how) >= 8
