"""`meld export --prune`: a run whose encoders and fusion model have fewer units, fine-tuned again.

    run ── importance of each unit on dev ──> OUT.pruning/pruned    a run with the units that matter
        ── extract ─────────────────────────> OUT.pruning/features  train and dev, by its encoders
        ── finetune ────────────────────────> OUT.pruning/tuned     the run that is exported

Extraction and fine-tuning are those of `meld extract` and `meld finetune`. The folder beside the
bundle stays: the same command goes on where a killed one stopped, and `tuned` is a run like others.
"""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from fusion.data.load import cached_split
from fusion.export.gate import Gate
from fusion.finetuning.clips import Collate, RawBatch, RawRow
from fusion.finetuning.endtoend import EndToEnd
from fusion.finetuning.finetune import finetune
from fusion.finetuning.job import FinetuneConfig, with_whole_paths
from fusion.finetuning.loop import StepResult, TuneConfig
from fusion.inference.checkpoint import write_checkpoint
from fusion.inference.description import CHECKPOINTS, CONFIG, WEIGHTS
from fusion.inference.predictor import Predictor
from fusion.inference.pytorch import PyTorchRuntime
from fusion.labels import UNLABELLED
from fusion.model.fusion import FusionModel
from fusion.training.losses import LossConfig, MultiTaskLoss
from fusion.training.run_folder import hold_run
from pipeline.corpus.annotations import read_corpus
from pipeline.encoders.choice import EncoderRequest
from pipeline.encoders.encoder import AnyEncoder
from pipeline.encoders.pruning import HasPrunable, Importance, PrunableLayer, units_of
from pipeline.encoders.registry import find_entry
from pipeline.encoders.saved import write_encoders
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.schema import DecodedClip, Modality, Split
from pipeline.settings import describe_config
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED, json_bytes

log = logging.getLogger(__name__)

IMPORTANCE_CLIPS, IMPORTANCE_BATCH = 256, 8
RECORD = "prune.json"

Say = Callable[[str], None]
OnStep = Callable[[StepResult], None]
OnProgress = Callable[[int, int, int], None]  # clips done, clips in all, failures


@dataclass(frozen=True, kw_only=True)
class Watch:
    """What is told on the way, as `extract` and `finetune` tell it."""

    say: Say = lambda line: None
    on_step: OnStep = lambda step: None
    on_progress: OnProgress = lambda *_: None


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """share: of the units of each layer, that goes

    work: folder for what is made on the way
    data: corpus whose dev says which units matter, and that is fine-tuned on
    tune: settings of the fine-tuning
    """

    share: float
    work: Path
    data: Path
    tune: TuneConfig = field(default_factory=TuneConfig)


def work_folder(out: Path) -> Path:
    """Where `--prune` keeps what it makes on the way to the bundle `out`."""
    whole = out.absolute()
    return whole.with_name(f"{whole.name}.pruning")


def check_prunable(run: Path, predictor: Predictor, data: Path) -> None:
    """Raises UsageError where the run has nothing that can be pruned, or cannot be fine-tuned;
    InputError where the corpus has no part to fine-tune on."""
    members = predictor.description.dims.members
    if members > 1:
        raise UsageError(
            f"--prune: {run} is an ensemble of {members} models, and pruning removes units of one; "
            "prune a run of a single model, or export this one whole"
        )
    if predictor.description.dims.model.context != "none":
        raise UsageError(
            f"--prune: {run} sees whole dialogues (--context dialogue), and what is pruned must be "
            "fine-tuned, which takes clips one by one; prune a run that was trained without"
        )
    runtime = predictor.runtime
    assert isinstance(runtime, PyTorchRuntime)
    if not any(_layers(encoder) for _, encoder in runtime.encoders.items()):
        names = ", ".join(
            f"{spec.modality} by {spec.name}"
            for spec in predictor.recipe.encoders
            if spec.modality in predictor.modalities
        )
        raise UsageError(
            f"--prune: no encoder of {run} has units that can be removed ({names}); those of text "
            "encoders that are built as BERT is, of models of speech and of video nets can be"
        )
    read_corpus(data, _splits(predictor))


def _splits(predictor: Predictor) -> tuple[Split, ...]:
    """To fine-tune on and to choose by: train alone, where dialogues of it were set aside."""
    set_aside = predictor.description.set_aside
    return tuple(dict.fromkeys(cached_split(split, set_aside) for split in ("train", "dev")))


def prune(run: Path, predictor: Predictor, gate: Gate, config: PruneConfig, watch: Watch) -> Path:
    """The folder of the fine-tuned smaller run. Work of an earlier call with the same settings is
    taken over, finished or not.

    predictor: of `run`, by PyTorch; its networks are pruned in place, and it is of no use after

    Raises UsageError where the folder holds the work of other settings; else as `extract` and
    `finetune`.
    """
    pruned, features, tuned = (config.work / name for name in ("pruned", "features", "tuned"))
    record = _record(run, config)
    if (pruned / CONFIG).is_file():
        _check_record(pruned / RECORD, record, config)
        log.info("%s: pruned before", pruned)
    else:
        _write_pruned(predictor, gate, config, pruned, record)
    if (tuned / CONFIG).is_file():
        log.info("%s: fine-tuned before", tuned)
        return tuned
    splits = _splits(predictor)
    watch.say(f"extracting features of {' and '.join(splits)} by the smaller encoders")
    extract(
        ExtractConfig(
            data=config.data,
            features=features,
            splits=splits,
            encoders=EncoderRequest(run=pruned),
        ),
        watch.on_progress,
    )
    watch.say(f"fine-tuning the smaller model; it can be followed in {tuned}")
    finetune(
        with_whole_paths(
            FinetuneConfig(
                run=pruned,
                data=config.data,
                features=features,
                out=tuned,
                resume=(tuned / CHECKPOINTS / "settings.json").is_file(),
                precision=_precision(predictor),
                tune=config.tune,
            )
        ),
        watch.say,
        watch.on_step,
        watch.on_progress,
    )
    return tuned


def _record(run: Path, config: PruneConfig) -> dict[str, Any]:
    """What decides the smaller run."""
    try:
        weights = (run / WEIGHTS).read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {run / WEIGHTS}: {error}") from error
    values = {
        "run": hashlib.sha256(weights).hexdigest(),
        "share": config.share,
        "data": str(config.data.absolute()),
        "tune": describe_config(config.tune),
    }
    return dict(json.loads(json.dumps(values)))


def _check_record(path: Path, wanted: dict[str, Any], config: PruneConfig) -> None:
    try:
        begun = json.loads(path.read_bytes())
        differing = sorted(name for name in wanted if begun[name] != wanted[name])
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except MALFORMED as error:
        raise CacheCorrupt(f"{path}: not what --prune wrote; remove {config.work}") from error
    if differing:
        raise UsageError(
            f"{config.work} holds the work of a --prune with another {', '.join(differing)}; "
            "remove it, or name another --out"
        )


def _precision(predictor: Predictor) -> Literal["float32", "bfloat16"]:
    is_half = any(precision == "bfloat16" for precision in predictor.precision.values())
    return "bfloat16" if is_half else "float32"


# ------------------------------------------------------------------------------------ pruning


def _layers(network: object) -> list[PrunableLayer]:
    return network.prunable() if isinstance(network, HasPrunable) else []


def _write_pruned(
    predictor: Predictor, gate: Gate, config: PruneConfig, pruned: Path, record: dict[str, Any]
) -> None:
    runtime = predictor.runtime
    assert isinstance(runtime, PyTorchRuntime)
    fusion, encoders = runtime.checkpoint.model, runtime.encoders
    networks: list[Any] = [
        each for _, each in encoders.items() if _layers(each)
    ]  # AnyEncoder that is HasPrunable
    networks += [fusion] if _layers(fusion) else []
    importance = Importance([layer for network in networks for layer in _layers(network)])
    log.info("measuring what %d layers mean on %s", len(importance.layers), gate.split)
    with importance.watch():
        _pass_backward(predictor, runtime, gate)
    kept = importance.best(config.share)
    for network in networks:
        count = len(_layers(network))
        network.prune_to(kept[:count])
        kept = kept[count:]
    changed: list[Modality] = [name for name, each in encoders.items() if _layers(each)]
    taken = [spec for spec in predictor.recipe.encoders if spec.modality in predictor.modalities]
    try:
        pruned.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make {pruned}: {error}") from error
    with hold_run(pruned):
        recipe = write_encoders(
            pruned,
            dict(encoders.items()),
            replace(predictor.recipe, encoders=tuple(taken)),
            tuned=changed,
        )
        units = {name: units_of(_layers(each)) for name, each in encoders.items() if _layers(each)}
        write_whole(pruned / RECORD, json_bytes(record | {"units": units}))
        owned = {*runtime.checkpoint.finetuned, *changed}
        write_checkpoint(
            pruned,
            replace(
                runtime.checkpoint,
                model=fusion,
                dims=fusion.dims,
                recipe=recipe,
                finetuned=tuple(name for name in predictor.modalities if name in owned),
                encoders_run=None,
                features=config.work.absolute() / "features",
                data=config.data.absolute(),
            ),
        )


def _pass_backward(predictor: Predictor, runtime: PyTorchRuntime, gate: Gate) -> None:
    """The loss of some labelled rows of dev, and its gradients; no weight changes."""
    specs = {spec.modality: spec for spec in predictor.recipe.encoders}
    learning = [name for name in predictor.modalities if find_entry(name, specs[name].name).learns]
    fusion = runtime.checkpoint.model
    assert isinstance(fusion, FusionModel)  # `check_prunable` refuses ensembles
    model = EndToEnd(
        runtime.encoders,
        fusion,
        unfrozen=learning,
        precision=_precision(predictor),
    )
    model.eval()  # no dropout: it would only add noise
    labels = {head: torch.from_numpy(values) for head, values in gate.labels.items()}
    loss = MultiTaskLoss.from_labels(LossConfig(), labels["emotion"], labels["sentiment"])
    labelled = [
        row
        for row in gate.spread(IMPORTANCE_CLIPS)
        if any(int(values[row]) != UNLABELLED for values in labels.values())
    ]
    for start in range(0, len(labelled), IMPORTANCE_BATCH):
        rows = labelled[start : start + IMPORTANCE_BATCH]
        clips = list(gate.clips(predictor, rows))
        batch = _batch_of(clips, dict(runtime.encoders.items()), predictor.modalities)
        output = model(batch)
        value = loss(output, labels["emotion"][rows], labels["sentiment"][rows])
        if value.requires_grad:
            value.backward()
            model.zero_grad(set_to_none=True)


def _batch_of(
    clips: Sequence[DecodedClip],
    encoders: dict[Modality, AnyEncoder],
    modalities: Sequence[Modality],
) -> RawBatch:
    preparations = {name: encoders[name].preparation for name in modalities}
    items = {name: each.prepare(clips) for name, each in preparations.items()}
    rows = [
        RawRow(
            row=row,
            items={name: items[name][row] for name in modalities},
            cached={},
            present=torch.tensor([items[name][row] is not None for name in modalities]),
        )
        for row in range(len(clips))
    ]
    return Collate(preparations)(rows)
