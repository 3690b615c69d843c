"""Every setting of an extraction changes something, or is refused in one line."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.corpus.annotations import read_corpus
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import InputError, UsageError, WeightsMissing
from pipeline.extract.extract import ExtractConfig, plan
from pipeline.recipe import DecodeConfig
from tests.pipeline.encoders.test_find_encoders import plant_run

Meld = Callable[..., Any]

CSV = "Dialogue_ID,Utterance_ID,Speaker,Utterance,Emotion,Sentiment\n0,0,Ann,So,joy,positive\n"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "dev_sent_emo.csv").write_text(CSV)
    assert len(read_corpus(folder, None)["dev"]) == 1
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> ExtractConfig:
    """With the encoders of a run whose audio encoder was fine-tuned."""
    plant_run(tmp_path / "tuned")
    return ExtractConfig(
        data=data,
        features=tmp_path / "features",
        device="cpu",
        encoders=EncoderRequest(run=tmp_path / "tuned"),
    )


def test_a_run_brings_its_encoders_and_its_decode_settings(config: ExtractConfig) -> None:
    recipe = plan(config).recipe
    assert recipe.modalities == ("audio",)
    assert recipe.encoders[0].weights == "finetuned"
    assert recipe.decode == DecodeConfig()


def test_a_setting_that_the_run_has_as_well_may_be_said(config: ExtractConfig) -> None:
    same = replace(
        config,
        channel="front_centre",
        max_duration_s=30.0,
        test_clips="fixed",
        precision="bfloat16",  # audio is float32 in either case
        encoders=replace(config.encoders, audio="spectrogram"),
    )
    assert plan(same).recipe == plan(config).recipe


@pytest.mark.parametrize(
    ("setting", "value", "there"),
    [
        ("channel", "downmix", "front_centre"),
        ("max_duration_s", 20.0, "30.0"),
        ("test_clips", "legacy", "fixed"),
    ],
)
def test_another_setting_than_the_runs_is_refused_with_both(
    config: ExtractConfig, setting: str, value: Any, there: str
) -> None:
    with pytest.raises(UsageError) as refused:
        plan(replace(config, **{setting: value}))
    assert f"{setting} = {value}: the encoders of {config.encoders.run} were fine-tuned with " in (
        str(refused.value)
    )
    assert there in str(refused.value)


def test_other_encoders_than_the_runs_are_refused(config: ExtractConfig) -> None:
    for asked, message in (
        ({"weights_dir": Path("weights")}, r"weights_dir = weights: .*bring their own weights"),
        ({"text": "minilm"}, r"encoders\.text = minilm: text is not extracted"),
    ):
        with pytest.raises(UsageError, match=message):
            plan(replace(config, encoders=replace(config.encoders, **asked)))
    with pytest.raises(InputError, match="no video encoder; it has audio"):
        plan(replace(config, modalities=("video",), num_frames=4))
    with pytest.raises(UsageError, match="num_frames = 4: only the video encoder reads it"):
        plan(replace(config, num_frames=4))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        (
            {"text": "minilm"},
            "encoders.text = minilm: the encoders of {run} were fine-tuned with t",
        ),
        ({"text_weights": "pretrained"}, "encoders.text_weights = pretrained: .* with finetuned"),
        ({"text_layers": (-1,)}, r"encoders.text_layers = \(-1,\): .* with \(0, 1, 2\)"),
        ({"context": 0}, "encoders.context = 0: .* with 2"),
    ],
)
def test_a_runs_text_encoder_is_what_it_is(
    config: ExtractConfig, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    run = tmp_path / "text"
    plant_run(run, modality="text")
    same = EncoderRequest(run=run, text="tiny", text_layers=(), context=2)
    assert plan(replace(config, encoders=same, precision="float32")).recipe.decode is None
    with pytest.raises(UsageError, match=r"precision = bfloat16: .* with float32"):
        plan(replace(config, encoders=same, precision="bfloat16"))
    with pytest.raises(UsageError, match=message.format(run=run)):
        plan(replace(config, encoders=EncoderRequest(run=run, **asked)))


def test_a_cluster_says_itself_what_it_computes_with(
    config: ExtractConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither this machine's GPU nor its precision counts."""
    asked = []

    def look(*what: str) -> tuple[str, str]:
        asked.append(what)
        return "cuda", "bfloat16"

    monkeypatch.setattr("pipeline.parallel.cluster.look_at_cluster", look)
    monkeypatch.delattr("pipeline.extract.extract.has_gpu")
    away = replace(config, address="head:6379", device="auto")
    assert plan(away).device == "cuda"
    assert plan(replace(away, device="cpu")).device == "cpu"  # nothing is left to ask
    video = EncoderRequest(video_weights="random")
    planned = plan(replace(away, modalities=("video",), encoders=video))
    assert planned.recipe.encoders[0].precision == "bfloat16"
    assert asked == [("head:6379", "auto", "float32"), ("head:6379", "auto", "auto")]


def test_cores_of_this_machine_say_nothing_of_a_cluster(config: ExtractConfig) -> None:
    with pytest.raises(
        UsageError, match="--workers 2: these are cores of this machine, but with --address"
    ):
        replace(config, workers=2, address="head:6379")


def test_what_is_not_extracted_has_no_settings(data: Path, tmp_path: Path) -> None:
    text = ExtractConfig(data=data, features=tmp_path, modalities=("text",), device="cpu")
    with pytest.raises(UsageError, match=r"max_duration_s = 9\.0: text alone is extracted, and no"):
        plan(replace(text, max_duration_s=9.0))
    with pytest.raises(UsageError, match="num_frames = 4: only the video encoder reads it, and vi"):
        plan(replace(text, modalities=("text", "audio"), num_frames=4))
    with pytest.raises(UsageError, match="channel = downmix: only the audio encoder reads it, and"):
        plan(replace(text, modalities=("text", "video"), channel="downmix"))
    with pytest.raises(UsageError, match=r"encoders\.video_weights = random: video is not extr"):
        plan(replace(text, encoders=EncoderRequest(video_weights="random")))
    with pytest.raises(UsageError, match="precision = bfloat16: spectrogram computes in float32"):
        plan(replace(text, modalities=("audio",), precision="bfloat16"))


def test_a_folder_of_weights_that_no_encoder_is_searched_in_is_refused(
    data: Path, tmp_path: Path
) -> None:
    request = EncoderRequest(text="minilm", video_weights="random", weights_dir=tmp_path)
    config = ExtractConfig(data=data, features=tmp_path, device="cpu", encoders=request)
    with pytest.raises(UsageError, match=r"weights_dir = .*: no weights are searched for; .* min"):
        plan(config)
    video = replace(request, video_weights=None)
    with pytest.raises(WeightsMissing, match="r3d_18"):  # searched for, and not there
        plan(replace(config, encoders=video))


@pytest.mark.parametrize(
    ("typed", "file", "message"),
    [
        ((), "[encoders]\nrun = '{run}'\ntext = 'minilm'", "encoders.text = minilm: text is not"),
        (("--text", "minilm"), "[encoders]\nrun = '{run}'", "encoders.text = minilm: text is not"),
        (("--encoders", "{run}"), "max_duration_s = 4.0", "max_duration_s = 4.0: the encoders of "),
        (
            ("--encoders", "{run}", "--test-clips", "legacy"),
            "",
            "test_clips = legacy: the encoders",
        ),
        ((), "splits = ['dev']", "splits = ['dev']: an option sets it; leave it out of the file"),
    ],
)
def test_the_command_line_and_its_file_do_not_contradict_each_other_silently(
    meld: Meld,
    config: ExtractConfig,
    tmp_path: Path,
    typed: tuple[str, ...],
    file: str,
    message: str,
) -> None:
    run = str(config.encoders.run)
    settings = tmp_path / "e.toml"
    settings.write_text(file.format(run=run))
    finished = meld(
        *("extract", "--split", "all", "--data", config.data, "--features", config.features),
        *("--config", settings, "--dry-run", *(word.format(run=run) for word in typed)),
    )
    assert finished.status == 2, finished.err
    assert message.format(run=run) in finished.err
    assert finished.err.count("\n") == 1
