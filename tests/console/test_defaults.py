"""What help texts and docstrings say of a default is what is taken, for every command."""

import importlib
import re
from typing import Any

import pytest
import typer.main

import cli
from fusion.data.set_aside import DEFAULT_SHARE
from fusion.finetuning.endtoend import LearningRates
from fusion.training import warm_start
from fusion.training.config import TrainConfig
from pipeline.encoders.choice import EncoderRequest
from pipeline.extract.extract import ROWS_PER_SHARD, TEXT_ROWS_PER_SHARD, ExtractConfig
from pipeline.recipe import DecodeConfig
from pipeline.schema import MODALITIES
from pipeline.settings import list_keys, read_meanings

CONFIGS = {
    "sample": "pipeline.sample.corpus.SampleConfig",
    "download": "pipeline.download.config.DownloadConfig",
    "extract": "pipeline.extract.extract.ExtractConfig",
    "doctor": "pipeline.doctor.examine.DoctorConfig",
    "import": "pipeline.importing.config.ImportConfig",
    "train-fusion": "fusion.training.config.TrainConfig",
    "finetune": "fusion.finetuning.job.FinetuneConfig",
    "evaluate": "fusion.evaluation.evaluate.EvaluateConfig",
    "predict": "fusion.prediction.predict_files.PredictConfig",
    "compare": "fusion.experiments.compare.CompareConfig",
    "report": "fusion.reporting.html.HtmlReportConfig",
    "crossval": "fusion.experiments.crossval.CrossvalConfig",
    "ablate": "fusion.experiments.ablation.AblateConfig",
    "search": "fusion.experiments.search.SearchConfig",
    "serve": "serving.config.ServeConfig",
    "listen": "serving.config.ServeConfig",
    "verify": "fusion.export.verify.VerifyConfig",
    "demo": "fusion.experiments.demo.DemoConfig",
}
WITHOUT_CONFIG = {"info", "config", "convert", "export"}  # or none of its options has a default
# An option that has another name than its key.
KEY_OF: dict[Any, str] = {
    "input_kind": "input",
    "weights": "text_weights",
    ("ablate", "fusion"): "fusions",
}
# Where the config's own default is None, and something else decides what that means.
_WISH = {modality: EncoderRequest().wish(modality) for modality in MODALITIES}
DECIDED_ELSEWHERE = {
    ("extract", "text"): _WISH["text"].name,
    ("extract", "video"): _WISH["video"].name,
    ("extract", "audio"): _WISH["audio"].name,
    ("extract", "weights"): _WISH["text"].weights,
    ("extract", "context"): _WISH["text"].context,
    ("extract", "num_frames"): DecodeConfig().num_frames,
    ("extract", "test_clips"): DecodeConfig().test_clips,
    ("train-fusion", "dev_share"): DEFAULT_SHARE,
    ("finetune", "dev_share"): DEFAULT_SHARE,
    ("ablate", "dev_share"): DEFAULT_SHARE,
    ("search", "dev_share"): DEFAULT_SHARE,
}
IN_WORDS = {("download", "splits"): "all"}


def commands() -> dict[str, Any]:
    return dict(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]


def option(command: str, name: str) -> Any:
    [found] = [each for each in commands()[command].params if each.name == name]
    return found


def test_every_command_has_its_config_here() -> None:
    assert set(CONFIGS) == set(commands()) - WITHOUT_CONFIG


@pytest.mark.parametrize("command", CONFIGS)
def test_every_default_is_said_in_help_and_is_the_configs(command: str) -> None:
    module, _, kind = CONFIGS[command].rpartition(".")
    keys = list_keys(getattr(importlib.import_module(module), kind))
    defaults = {key.name.rpartition(".")[2]: key.default for key in keys}
    compared = []
    for parameter in commands()[command].params:
        place = (command, parameter.name)
        default = defaults.get(KEY_OF.get(place, KEY_OF.get(parameter.name, parameter.name)))
        default = DECIDED_ELSEWHERE.get(place, default)
        if default is None or default is False or parameter.required:
            continue
        wanted = ",".join(default) if isinstance(default, list) else str(default)
        said = re.search(r"\[default: ([^\s\];]+)", parameter.help or "")
        told = str(parameter.default) if said is None else said[1]
        assert told == IN_WORDS.get(place, wanted), parameter.name
        compared.append(parameter.name)
    assert compared


def test_the_learning_rates_in_help_are_those_of_the_configs() -> None:
    rates = LearningRates()
    parts = [f"{name}={getattr(rates, name)}" for name in ("text", "video", "audio", "heads")]
    assert f"[default: {', '.join(parts)}]" in option("finetune", "learning_rate").help
    with_start = f"{warm_start.LEARNING_RATE} with --start"
    assert with_start in option("train-fusion", "learning_rate").help


def test_a_default_that_a_docstring_names_is_what_is_taken() -> None:
    meanings, decode = read_meanings(ExtractConfig), DecodeConfig()
    assert f"None takes {decode.num_frames}," in meanings["num_frames"]
    assert f"None takes {decode.max_duration_s:g}," in meanings["max_duration_s"]
    assert f"None takes {decode.channel}," in meanings["channel"]
    assert f"None takes {decode.test_clips}," in meanings["test_clips"]
    rows = f"{ROWS_PER_SHARD}, or {TEXT_ROWS_PER_SHARD} where"
    assert f"None takes {rows}" in meanings["rows_per_shard"]
    assert f"there is none, {DEFAULT_SHARE}." in read_meanings(TrainConfig)["dev_share"]
    chosen = read_meanings(EncoderRequest)
    for modality in MODALITIES:
        assert chosen[modality].startswith(f'"{_WISH[modality].name}", which None takes')
