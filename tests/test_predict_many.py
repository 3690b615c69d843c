"""Many files at one time, and the model in another precision."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import jsonschema
import pytest

import meld as face
from fusion.inference.predictor import Predictor
from fusion.inference.saved_features import FOLDER
from fusion.inference.timeline import SCHEMA_FILE
from fusion.prediction import predict_files as files
from fusion.prediction.one_file import FileResult
from fusion.prediction.predict_files import PredictConfig, predict_files
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.errors import UsageError
from pipeline.schema import ClipFeatures, DecodedClip, Modality
from tests.conftest import Meld
from tests.media import tone, write_clip

pytestmark = pytest.mark.heavy


def train(features: Path, out: Path, *modalities: Modality) -> Path:
    config = TrainConfig(features=features, modalities=modalities, out=out, fit=FitConfig(epochs=1))
    return train_fusion(config).run


@pytest.fixture(scope="module")
def run(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(features, tmp_path_factory.mktemp("runs") / "run", "text", "audio")


@pytest.fixture(scope="module")
def by_ear(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of sound alone: each process that loads it is spared transformers."""
    return train(features, tmp_path_factory.mktemp("runs") / "run", "audio")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of two utterances each, and one that is no clip."""
    folder = tmp_path_factory.mktemp("media")
    for number, name in enumerate("acd"):
        pitches = [440 + 100 * number, 660]
        write_clip(folder / f"{name}.mp4", num_frames=48, sound=tone(pitches))
        (folder / f"{name}.srt").write_text(
            f"1\n00:00:00,000 --> 00:00:00,900\nHello {name}!\n\n"
            "2\n00:00:01,000 --> 00:00:01,900\nOh no.\n"
        )
    (folder / "b.mp4").write_text("<html>404")
    return folder


def test_many_files_on_ray_give_the_bytes_that_one_process_gives(
    meld: Meld,
    ray_here: None,
    by_ear: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(files, "MANY_FILES", 4)
    done = {}
    for workers in (1, 2):
        out = tmp_path / str(workers)
        done[workers] = meld(
            *("predict", folder, "--model", by_ear, "--out", out, "--format", "json,srt"),
            *("--workers", workers, "--json"),
        )
        assert done[workers].status == 3
        assert sorted(path.name for path in out.iterdir()) == [
            f"{name}.mp4.meld.{kind}" for name in "acd" for kind in ("json", "srt")
        ]
    here, there = done[1], done[2]
    assert there.err.endswith(here.err)  # before it, how far it is
    assert "b.mp4: a web page" in here.err
    assert there.out.replace(f"{tmp_path}/2/", f"{tmp_path}/1/") == here.out
    for path in (tmp_path / "1").iterdir():
        assert (tmp_path / "2" / path.name).read_bytes() == path.read_bytes()


def test_what_ray_has_finished_is_written_at_once_in_whatever_order_it_comes(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = PredictConfig(media=(folder,), model=run, out=tmp_path / "here", device="cpu", workers=1)
    wanted = predict_files(here).files
    out = tmp_path / "there"

    def backwards(*_: object) -> Iterator[tuple[int, FileResult]]:
        for index in (3, 0, 1, 2):
            yield index, dataclasses.replace(wanted[index], written=())
            if wanted[index].timeline is not None:
                assert (out / f"{wanted[index].path.name}.meld.json").exists()

    monkeypatch.setattr(files, "MANY_FILES", 4)
    monkeypatch.setattr("fusion.prediction.many_files.predict_on_ray", backwards)
    report = predict_files(dataclasses.replace(here, out=out, workers=2))
    assert [each.path.name for each in report.files] == ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    assert [len(each.written) for each in report.files] == [1, 0, 1, 1]


def test_a_few_files_and_many_on_one_core_start_no_ray(run: Path, folder: Path) -> None:
    few = PredictConfig(media=(folder,), model=run, device="cpu", workers=2)
    assert not files._needs_ray(few, files.MANY_FILES - 1)
    assert files._needs_ray(few, files.MANY_FILES)
    one = PredictConfig(media=(folder,), model=run, device="cpu", workers=1)
    assert not files._needs_ray(one, files.MANY_FILES)
    cluster = PredictConfig(media=(folder,), model=run, address="auto")
    assert files._needs_ray(cluster, 1)
    with pytest.raises(UsageError, match="the cluster at auto has its own cores"):
        PredictConfig(media=(folder,), workers=2, address="auto")


def test_the_threshold_in_the_help_is_the_one_that_counts(meld: Meld) -> None:
    told = " ".join(meld("predict", "--help").out.replace("│", " ").split())
    assert f"if there are {files.MANY_FILES} files or more" in told


def test_files_that_a_killed_call_had_finished_are_not_begun_again(
    run: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = Predictor.encode
    seen: list[str] = []

    def count(self: Predictor, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        if "Hello c!" in seen and len(seen) < 3:
            raise KeyboardInterrupt
        seen.append(clips[0].utterance.text)
        return encode(self, clips)

    monkeypatch.setattr(Predictor, "encode", count)
    config = PredictConfig(media=(folder,), model=run, out=tmp_path, device="cpu")
    with pytest.raises(KeyboardInterrupt):
        predict_files(config)
    assert seen == ["Hello a!", "Hello c!"]
    assert (tmp_path / FOLDER).is_dir()
    seen += ["killed"]
    assert predict_files(config).num_failed == 1
    assert seen == ["Hello a!", "Hello c!", "killed", "Hello d!"]
    assert not (tmp_path / FOLDER).exists()


def test_another_precision_changes_the_numbers_and_is_reported(
    meld: Meld, run: Path, folder: Path, tmp_path: Path
) -> None:
    timelines = {}
    for precision in ("auto", "float32", "bfloat16"):
        done = meld(
            *("predict", folder / "a.mp4", "--model", run, "--out", tmp_path / precision),
            *("--precision", precision, "--json"),
        )
        assert done.status == 0, done.err
        timelines[precision] = done.json["files"][0]["timeline"]
    own = timelines["auto"]["model"]["precision"]
    assert own["audio"] == "float32"  # the spectrogram has no other
    other = "bfloat16" if own["text"] == "float32" else "float32"
    assert timelines[own["text"]] == timelines["auto"]
    told = timelines[other]["model"]
    assert told["precision"] == {"text": other, "audio": "float32"}
    assert told["recipe"] != timelines["auto"]["model"]["recipe"]
    assert timelines[other]["utterances"] != timelines["auto"]["utterances"]
    jsonschema.validate(timelines[other], json.loads(SCHEMA_FILE.read_text()))
    model = face.load(run, precision="bfloat16")
    assert model.timeline(folder / "a.mp4").to_dict() == timelines["bfloat16"]


def test_a_precision_that_no_encoder_of_the_model_has_is_refused(
    meld: Meld, by_ear: Path, folder: Path, tmp_path: Path
) -> None:
    done = meld(
        *("predict", folder / "a.mp4", "--model", by_ear, "--out", tmp_path / "out"),
        *("--precision", "bfloat16"),
    )
    assert (done.status, done.out) == (2, "")
    assert done.err.strip() == (
        "meld: error: --precision bfloat16: spectrogram knows float32 only; leave it out"
    )
