"""The folder of a run: weights, and what is needed to use and to evaluate them.

model.safetensors   the weights
config.json         dims, labels by name, recipe, settings; written last: a folder without it
                    is an unfinished run
metrics.json, history.jsonl, evaluation-<split>.json, *.png   scores and plots
test-evaluations.jsonl    the test evaluations; kept when the run is overwritten
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from fusion.data.set_aside import SetAside
from fusion.inference.decoding import Decoding
from fusion.labels import HEADS, Head
from fusion.model.fusion import FusionDims, FusionModel
from pipeline.errors import CacheCorrupt, InputError, MismatchError, StorageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMOTIONS, MODALITIES, SENTIMENTS, Modality
from pipeline.system.files import write_whole

FORMAT = "meld-fusion"
FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
# Settings that say where things were on the machine that trained it.
_PLACES = frozenset("features out start run data store weights_dir encoders address".split())


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A trained model and where it came from.

    recipe, projection_hash: how the features it understands were made
    emotion_counts, sentiment_counts: rows per class in train; the majority baseline's source. With
                a warm start, the start's counts where train has no such label
    untrained:  heads that were trained without labels; their predictions are noise
    set_aside:  the dialogues of train that were held out as dev; None where dev had a cache
    settings:   the training settings, for the record
    features:   the folder of its caches; None in a run that was passed on without it
    finetuned:  modalities whose encoders were trained with it; the run then holds all its encoders
    encoders_run: name of the fine-tuned run whose encoders made its features, as recorded in them;
                None where the encoders are its own or pretrained
    data:       the raw clips it was fine-tuned on, None where it was not
    decoding:   how its logits become probabilities and joint labels, fitted on dev
    """

    model: FusionModel
    recipe: FeatureRecipe
    projection_hash: str | None
    emotion_counts: tuple[int, ...]
    sentiment_counts: tuple[int, ...]
    settings: Mapping[str, Any]
    features: Path | None
    finetuned: tuple[Modality, ...] = ()
    encoders_run: str | None = None
    data: Path | None = None
    decoding: Decoding | None = None
    untrained: tuple[Head, ...] = ()
    set_aside: SetAside | None = None

    def __post_init__(self) -> None:
        wanted = (len(EMOTIONS), len(SENTIMENTS))
        if (len(self.emotion_counts), len(self.sentiment_counts)) != wanted:
            raise ValueError(f"label counts need {wanted} entries")
        if len(set(self.untrained)) == len(HEADS):
            raise ValueError("a run needs at least one trained head")

    @property
    def dims(self) -> FusionDims:
        return self.model.dims

    def require_features(self) -> Path:
        """Raises InputError where the run was passed on without them."""
        if self.features is None:
            raise InputError(
                "the run was passed on without the features that it was trained on; make such "
                "features with meld extract, and name them with --features"
            )
        return self.features

    def to_pass_on(self) -> "Checkpoint":
        """The same model without the paths of the machine that trained it, which are private and
        useless elsewhere."""
        settings = {name: value for name, value in self.settings.items() if name not in _PLACES}
        return replace(self, features=None, data=None, settings=settings)


def write_checkpoint(run: Path, checkpoint: Checkpoint) -> None:
    """Raises StorageError."""
    weights = {name: value.cpu() for name, value in checkpoint.model.state_dict().items()}
    write_whole(run / WEIGHTS, save_tensors(weights))
    write_whole(run / CONFIG, json.dumps(_describe(checkpoint), indent=2).encode() + b"\n")


def read_checkpoint(run: Path) -> Checkpoint:
    """The model is on the CPU, in evaluation mode.

    Raises:
        InputError: no such run, or an unfinished one.
        CacheCorrupt: a damaged one; what is wrong is named.
        MismatchError: made for other labels or by another version of the format.
    """
    config = _read_config(run)
    try:
        # Built without storage: a damaged config must not be able to ask for all memory.
        with torch.device("meta"):
            model = FusionModel(FusionDims.from_dict(config["dims"]))
        counts = {head: _counts(config["label_counts"][head]) for head in HEADS}
        checkpoint = Checkpoint(
            model=model,
            recipe=FeatureRecipe.from_json(json.dumps(config["recipe"])),
            projection_hash=config["projection_hash"],
            emotion_counts=counts["emotion"],
            sentiment_counts=counts["sentiment"],
            settings=_settings(config["settings"]),
            features=_folder(config["features"]),
            finetuned=_modalities(config["finetuned"]),
            encoders_run=_name(config.get("encoders_run")),
            data=_folder(config["data"]),
            decoding=_decoding(config["decoding"]),
            untrained=_untrained(config.get("untrained"), counts),
            set_aside=_set_aside(config.get("set_aside")),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:  # Runtime: dims beyond 2^63
        raise CacheCorrupt(f"{run / CONFIG}: not a run's description ({error!r})") from error
    if checkpoint.recipe.fingerprint != config.get("fingerprint"):
        raise CacheCorrupt(f"{run / CONFIG}: the recipe does not match its fingerprint")
    weights = _read_weights(run / WEIGHTS)
    _check_weights(run / WEIGHTS, weights, model)
    model.load_state_dict({name: value.clone() for name, value in weights.items()}, assign=True)
    model.eval()
    return checkpoint


def _describe(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dims": checkpoint.dims.to_dict(),
        "labels": {"emotion": EMOTIONS, "sentiment": SENTIMENTS},
        "label_counts": {
            "emotion": checkpoint.emotion_counts,
            "sentiment": checkpoint.sentiment_counts,
        },
        "fingerprint": checkpoint.recipe.fingerprint,
        "recipe": checkpoint.recipe.to_dict(),
        "projection_hash": checkpoint.projection_hash,
        "features": None if checkpoint.features is None else str(checkpoint.features),
        "finetuned": checkpoint.finetuned,
        "encoders_run": checkpoint.encoders_run,
        "data": None if checkpoint.data is None else str(checkpoint.data),
        "decoding": None if checkpoint.decoding is None else checkpoint.decoding.to_dict(),
        "untrained": checkpoint.untrained,
        "set_aside": None if checkpoint.set_aside is None else checkpoint.set_aside.to_dict(),
        "settings": checkpoint.settings,
        "versions": {name: _version(name) for name in ("meld", "torch", "safetensors")},
    }


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError(f"label counts {values!r} are no counts")
    return tuple(values)


def _settings(values: Any) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"settings {values!r} are no table")
    return values


def _modalities(values: Any) -> tuple[Modality, ...]:
    if not isinstance(values, list) or any(value not in MODALITIES for value in values):
        raise ValueError(f"{values!r} are not modalities")
    return tuple(values)


def _folder(value: Any) -> Path | None:
    return None if value is None else Path(value)


def _name(value: Any) -> str | None:
    """Absent in the runs of earlier versions."""
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{value!r} is no name of a run")
    return value


def _decoding(values: Any) -> Decoding | None:
    return None if values is None else Decoding.from_dict(values)


def _untrained(values: Any, counts: Mapping[Head, tuple[int, ...]]) -> tuple[Head, ...]:
    """Absent in the runs of earlier versions, where a head without a label in train is one."""
    if values is None:
        return tuple(head for head in HEADS if not any(counts[head]))
    if not isinstance(values, list) or any(value not in HEADS for value in values):
        raise ValueError(f"{values!r} are no heads")
    return tuple(values)


def _set_aside(values: Any) -> SetAside | None:
    """Absent in the runs of earlier versions, whose dev had a cache."""
    return None if values is None else SetAside.from_dict(values)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _read_config(run: Path) -> dict[str, Any]:
    path = run / CONFIG
    if not path.is_file():
        state = "no such folder"
        if run.exists():
            state = "an unfinished or foreign folder" if run.is_dir() else "a file, not a folder"
        raise InputError(f"{run} is no trained run ({state}); train one with: meld train-fusion")
    try:
        config = json.loads(path.read_bytes())
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: not JSON ({error}); train again") from error
    if not isinstance(config, dict) or config.get("format") != FORMAT:
        raise CacheCorrupt(f"{path}: not the description of a {FORMAT} run")
    if config.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{path}: format version {config.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; train again"
        )
    labels = {"emotion": list(EMOTIONS), "sentiment": list(SENTIMENTS)}
    if config.get("labels") != labels:
        raise MismatchError(f"{path}: labels are {config.get('labels')}, wanted {labels}")
    return config


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is missing; train again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (SafetensorError, ValueError) as error:
        raise CacheCorrupt(f"{path}: not a safetensors file ({error}); train again") from error


def _check_weights(path: Path, weights: Mapping[str, Tensor], model: FusionModel) -> None:
    """Shapes, names, types and finite values; safetensors itself checks none of them."""
    wanted = model.state_dict()
    odd = sorted(weights.keys() ^ wanted.keys())
    if odd:
        raise CacheCorrupt(f"{path}: missing or unknown weights: {', '.join(odd)}")
    for name, value in weights.items():
        expected = wanted[name]
        if value.shape != expected.shape or value.dtype != expected.dtype:
            raise CacheCorrupt(
                f"{path}: {name} is {value.dtype} {list(value.shape)}, "
                f"{CONFIG} says {expected.dtype} {list(expected.shape)}"
            )
        if not torch.isfinite(value).all():
            raise CacheCorrupt(f"{path}: {name} holds values that are not finite; train again")
