"""What a run's `config.json` says: all that is needed beside the weights to use and to evaluate
it. PyTorch is not needed to read it."""

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from fusion.data.set_aside import SetAside
from fusion.inference.decoding import Decoding
from fusion.labels import HEADS, Head
from fusion.model.dims import FusionDims
from pipeline.errors import CacheCorrupt, InputError, MismatchError, StorageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import EMOTIONS, MODALITIES, SENTIMENTS, Modality
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

FORMAT = "meld-fusion"
FORMAT_VERSION = 2
WEIGHTS = "model.safetensors"
CONFIG = "config.json"
CHECKPOINTS = "checkpoints"  # of a fine-tuning: see `fusion.finetuning.checkpoints`
# Settings that say where things were on the machine that trained it.
_PLACES = frozenset("features out start run data store weights_dir encoders address distil".split())


@dataclass(frozen=True, kw_only=True)
class RunDescription:
    """What a trained model is, and where it came from.

    dims:       shapes of its features, and the parts of the model
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

    dims: FusionDims
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

    def require_features(self) -> Path:
        """Raises InputError where the run was passed on without them."""
        if self.features is None:
            raise InputError(
                "the run was passed on without the features that it was trained on; make such "
                "features with meld extract, and name them with --features"
            )
        return self.features

    def to_pass_on(self) -> Self:
        """The same without the paths of the machine that trained it, which are private and
        useless elsewhere."""
        settings = {name: value for name, value in self.settings.items() if name not in _PLACES}
        return replace(self, features=None, data=None, settings=settings)


def read_description(run: Path) -> RunDescription:
    """Reads `config.json`, not the weights beside it.

    Raises:
        InputError: no such run, or an unfinished one.
        CacheCorrupt: a damaged one; what is wrong is named.
        MismatchError: made for other labels or by another version of the format.
    """
    config = _read_config(run)
    try:
        counts = {head: _counts(config["label_counts"][head]) for head in HEADS}
        description = RunDescription(
            dims=FusionDims.from_dict(config["dims"]),
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
    except MALFORMED as error:
        raise not_a_description(run, error) from error
    if description.recipe.fingerprint != config.get("fingerprint"):
        raise CacheCorrupt(f"{run / CONFIG}: the recipe does not match its fingerprint")
    return description


def write_description(run: Path, description: RunDescription) -> None:
    """Raises StorageError."""
    write_whole(run / CONFIG, description_bytes(description))


def description_bytes(description: RunDescription) -> bytes:
    """The content of `config.json`."""
    return json.dumps(_describe(description), indent=2).encode() + b"\n"


def not_a_description(run: Path, error: Exception) -> CacheCorrupt:
    return CacheCorrupt(f"{run / CONFIG}: not a run's description ({error!r})")


def _describe(description: RunDescription) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "dims": description.dims.to_dict(),
        "labels": {"emotion": EMOTIONS, "sentiment": SENTIMENTS},
        "label_counts": {
            "emotion": description.emotion_counts,
            "sentiment": description.sentiment_counts,
        },
        "fingerprint": description.recipe.fingerprint,
        "recipe": description.recipe.to_dict(),
        "projection_hash": description.projection_hash,
        "features": None if description.features is None else str(description.features),
        "finetuned": description.finetuned,
        "encoders_run": description.encoders_run,
        "data": None if description.data is None else str(description.data),
        "decoding": None if description.decoding is None else description.decoding.to_dict(),
        "untrained": description.untrained,
        "set_aside": None if description.set_aside is None else description.set_aside.to_dict(),
        "settings": description.settings,
        "versions": {name: _version(name) for name in ("meld", "torch", "safetensors")},
    }


def _counts(values: Any) -> tuple[int, ...]:
    if not isinstance(values, list) or not all(type(v) is int and v >= 0 for v in values):
        raise ValueError(f"label counts {values!r} are no counts")
    return tuple(values)


def _settings(values: Any) -> Mapping[str, Any]:
    if not isinstance(values, dict):
        raise ValueError(f"settings {values!r} are no table")
    for name, value in values.items():
        if isinstance(value, list) and not all(isinstance(each, str) for each in value):
            raise ValueError(f"the setting {name} is {value!r}, which is no list of names")
    json.dumps(values, allow_nan=False)  # raises ValueError: Python reads NaN, JSON has none
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


def resume_command(run: Path) -> str:
    """What goes on with a fine-tuning that was killed, to be copied."""
    return shlex.join(["meld", "finetune", "--end-to-end", "--resume", "--out", str(run)])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _read_config(run: Path) -> dict[str, Any]:
    path = run / CONFIG
    if not path.is_file():
        if (run / CHECKPOINTS / "settings.json").is_file():
            raise InputError(
                f"{run} is a fine-tuning that is not finished; resume it with {resume_command(run)}"
            )
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
