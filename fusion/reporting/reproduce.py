"""The commands that reproduce a run, with the settings files that they need."""

import json
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fusion.inference.checkpoint import Checkpoint
from fusion.training.config import TrainConfig
from pipeline.encoders.registry import find_entry
from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe
from pipeline.schema import MODALITIES
from pipeline.settings import describe_config

_ANY_FEATURES = Path("features")  # of a run that was passed on without its own
_ANY_RUN = "NEW_RUN"
_ANY_DATA = "FOLDER_WITH_CSVS"
_PASSED_ON = (
    "it was passed on without its folders, so they do not say which corpus, run to start from or "
    "teacher it had; words in capitals stand for what is not known"
)
# What only says how the command was given, or is said in another place of it.
_NOT_OPTIONS = ("out", "features", "overwrite", "resume", "store", "address")


@dataclass(frozen=True, kw_only=True)
class Remake:
    """commands: one a line, ready for a shell; files: name -> TOML that they read

    note: what they do not say, empty where they say everything
    """

    commands: tuple[str, ...]
    files: Mapping[str, str]
    note: str = ""


def remake(checkpoint: Checkpoint, run: Path, *, data: Path | None) -> Remake:
    """`data`: the corpus, if it is known; a run on cached features does not record it."""
    make = _finetune if checkpoint.finetuned else _extract_and_train
    if checkpoint.features is not None:
        return make(checkpoint, run, data)
    return replace(make(checkpoint, Path(_ANY_RUN), data), note=_PASSED_ON)


def _extract_and_train(checkpoint: Checkpoint, run: Path, data: Path | None) -> Remake:
    features = checkpoint.features or _ANY_FEATURES
    extract, decode = _extract(checkpoint, data)
    default = describe_config(TrainConfig())
    if checkpoint.settings.get("start"):  # what is not said would be the start's
        default |= {"model": {}, "fit": {}}
    train, settings = _command(
        ["meld", "train-fusion", "--features", str(features), "--out", str(run)],
        checkpoint.settings,
        default,
        config="train.toml",
    )
    files = {"extract.toml": decode, "train.toml": settings}
    return Remake(
        commands=(extract, *_imports(checkpoint.recipe, features), train),
        files={name: text for name, text in files.items() if text},
    )


def _imports(recipe: FeatureRecipe, features: Path) -> Iterator[str]:
    """Of features that other tools made; where those lie is not recorded."""
    for modality, name in recipe.foreign.items():
        words = ["meld", "import", "--modality", modality, "--name", name]
        yield shlex.join([*words, "--features", str(features), "--from", "FOLDER_OR_FILE"])


def _finetune(checkpoint: Checkpoint, run: Path, data: Path | None) -> Remake:
    from fusion.finetuning.job import FinetuneConfig  # brings the encoders with it

    settings = dict(checkpoint.settings)
    if settings.get("run") == str(run.absolute() / "start"):
        settings["run"] = None  # it was trained on the way, and will be again
    words = ["meld", "finetune", "--end-to-end", "--out", str(run)]
    if checkpoint.features is None:
        words += ["--run", "RUN_TO_START_FROM"]
    if checkpoint.data is None and not settings.get("data"):
        words += ["--data", str(data or _ANY_DATA)]
    if settings.get("features"):
        words += ["--features", str(settings["features"])]
    command, tables = _command(
        words, settings, describe_config(FinetuneConfig()), config="finetune.toml"
    )
    return Remake(commands=(command,), files={"finetune.toml": tables} if tables else {})


def _extract(checkpoint: Checkpoint, data: Path | None) -> tuple[str, str]:
    """The command and its TOML, "" where it needs none."""
    recipe, features = checkpoint.recipe, checkpoint.features or _ANY_FEATURES
    words = ["meld", "extract", "--split", "all", "--data", str(data or _ANY_DATA)]
    own = [spec for spec in recipe.encoders if not spec.is_foreign]
    # A cache that something is imported into needs one of ours.
    modalities = [spec.modality for spec in own] or list(MODALITIES[:1])
    words += ["--features", str(features), "--modalities", ",".join(modalities)]
    lines = []
    default = DecodeConfig()
    for name in ("num_frames", "channel", "max_duration_s"):
        value = getattr(recipe.decode or default, name)
        if value != getattr(default, name):
            lines.append(f"{name} = {json.dumps(value)}")
    if any(spec.weights == "finetuned" for spec in own):
        words += ["--encoders", checkpoint.encoders_run or "RUN_THAT_OWNS_THEM"]
    else:
        words += [word for spec in own for word in (f"--{spec.modality}", spec.name)]
        random = [f"{spec.modality}=random" for spec in own if spec.weights == "random"]
        words += ["--weights", ",".join(random)] if random else []
        for spec in own:
            words += ["--context", str(spec.asked_context)] if spec.asked_context else []
            words += ["--future"] if spec.dialogue == "whole" else []
        chosen = [
            f"{spec.modality}_layers = {json.dumps(spec.layers)}" for spec in own if _chooses(spec)
        ]
        lines += ["[encoders]", *chosen] if chosen else []
        # One that has a single precision says nothing of what the others were asked for.
        half = any(spec.precision == "bfloat16" for spec in own)
        words += ["--precision", "bfloat16" if half else "float32"] if own else []
        words += ["--test-clips", recipe.test_clips] if recipe.test_clips else []
    words += ["--config", "extract.toml"] if lines else []
    return shlex.join(words), "\n".join(lines)


def _chooses(spec: EncoderSpec) -> bool:
    """Whether layers were chosen: the encoder has several, and not all of them are kept."""
    every = tuple(range(len(spec.layers)))  # the default, counted from 0 without a gap
    return spec.layers != every and find_entry(spec.modality, spec.name).is_layered


def _command(
    words: list[str], settings: Mapping[str, Any], default: Mapping[str, Any], *, config: str
) -> tuple[str, str]:
    """What differs from the defaults: options on the command line, tables in TOML."""
    differing = {
        name: value
        for name, value in settings.items()
        if name not in _NOT_OPTIONS and value is not None and value != default.get(name)
    }
    for name, value in differing.items():
        if value is True:  # a flag
            words = [*words, f"--{name.replace('_', '-')}"]
        elif not isinstance(value, Mapping):
            said = ",".join(value) if isinstance(value, list) else str(value)
            words = [*words, f"--{name.replace('_', '-')}", said]
    lines: list[str] = []
    for name, value in differing.items():
        if isinstance(value, Mapping):
            lines += _toml(name, value, default.get(name))
    return shlex.join([*words, "--config", config] if lines else words), "\n".join(lines)


def _toml(table: str, values: Mapping[str, Any], default: Any) -> Iterator[str]:
    """Lines for what differs from the default. JSON's scalars and lists are TOML's."""
    default = default if isinstance(default, Mapping) else {}
    plain = [
        f"{name} = {json.dumps(value)}"
        for name, value in values.items()
        if not isinstance(value, Mapping) and value is not None and value != default.get(name)
    ]
    if plain:
        yield from (f"[{table}]", *plain)
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _toml(f"{table}.{name}", value, default.get(name))
