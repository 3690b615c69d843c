"""`meld export`: a trained run becomes a bundle, one folder that predicts anywhere.

run -> load with its encoders -> graphs, and what they lose on dev (`graphs.py`, `gate.py`)
                               -> encoders/ and model.safetensors
                               -> golden/: what it says of a film of ours
                               -> README.md, export.json, and config.json last
"""

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from fusion.evaluation.test_evaluations import record_evaluation
from fusion.export.card import render_card
from fusion.export.gate import Gate, GateReport
from fusion.export.golden import describe_machine, write_golden
from fusion.export.graphs import Graphs, quantise, write_graphs
from fusion.inference.bundle import (
    CARD,
    EXPORT,
    FORMAT,
    FORMAT_VERSION,
    GOLDEN,
    GRAPHS,
    hash_file,
    read_export,
)
from fusion.inference.checkpoint import write_weights
from fusion.inference.description import CONFIG, WEIGHTS, description_bytes
from fusion.inference.onnx_runtime import OnnxRuntime
from fusion.inference.predictor import Predictor
from fusion.inference.pytorch import PyTorchRuntime
from fusion.training.run_folder import open_run
from pipeline.encoders.saved import FOLDER as ENCODERS
from pipeline.encoders.saved import write_encoders
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.system.files import write_whole
from pipeline.system.json_values import json_bytes, to_values

log = logging.getLogger(__name__)

# Of what a run holds, what is told of its corpus's single utterances.
_PRIVATE = ("errors",)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """run: a trained or fine-tuned run

    out:           the bundle's folder
    onnx:          write ONNX graphs of the encoders and of the fusion model as well
    quantise:      "int8" writes graphs with 8-bit weights, and no encoders for PyTorch
    data:          corpus that the loss is measured on: its CSVs, and its clips if the run sees or
                   hears; None takes the one that the run was fine-tuned on, or "data"
    split:         its part
    max_loss:      points of weighted F1 that 8 bits may lose: what the lower bound of the 95 %
                   interval of the difference must not go beyond
    link_encoders: leave the encoders out; whoever loads the bundle needs the same pretrained
                   weights, which are compared by hash
    weights_dir:   a folder to look for pretrained weights in, before the libraries' own caches
    encoders:      the fine-tuned run that owns the encoders, if it is not `run`
    overwrite:     replace an earlier bundle in `out`
    """

    run: Path
    out: Path
    onnx: bool = False
    quantise: Literal["int8"] | None = None
    data: Path | None = None
    split: Literal["dev", "test"] = "dev"
    max_loss: float = 1.0
    link_encoders: bool = False
    weights_dir: Path | None = None
    encoders: Path | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        measuring: dict[str, tuple[object, object]] = {
            "data": (self.data, None),
            "split": (self.split, "dev"),
            "max-loss": (self.max_loss, 1.0),
        }
        for name, (value, default) in measuring.items():
            if self.quantise is None and value != default:
                raise UsageError(f"--{name} {value}: nothing is measured without --quantise")
        if self.quantise not in (None, "int8"):
            raise UsageError(f"--quantise {self.quantise}: int8")
        if self.quantise is not None and self.link_encoders:
            raise UsageError("--link-encoders: 8-bit graphs hold the encoders; leave one out")
        if not self.max_loss >= 0:
            raise UsageError(f"--max-loss must be 0 or more points, not {self.max_loss}")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """bundle: the folder; files: bytes of each file in it, by name relative to it

    gate: what 8 bits cost; None where nothing was quantised
    """

    bundle: Path
    files: Mapping[str, int]
    gate: GateReport | None = None

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        gate = None if self.gate is None else self.gate.to_dict()
        return to_values(self) | {"bytes": self.num_bytes, "gate": gate}


def export(config: ExportConfig) -> ExportResult:
    """Writes the bundle; a folder without `config.json` is an unfinished one.

    Raises:
        UsageError: `out` holds something else; encoders that exist nowhere else are to be linked.
        InputError, StorageError, CacheCorrupt, WeightsMissing, MismatchError: as `Predictor.load`.
    """
    exported = read_export(config.run)
    if exported is not None and "torch" not in exported["runtimes"]:
        raise UsageError(
            f"{config.run} holds 8-bit graphs alone; export the run that they were made of"
        )
    predictor = Predictor.load(config.run, weights_dir=config.weights_dir, encoders=config.encoders)
    runtime = predictor.runtime
    assert isinstance(runtime, PyTorchRuntime)
    owned = [spec.modality for spec in predictor.recipe.encoders if spec.weights == "finetuned"]
    if config.link_encoders and owned:
        raise UsageError(
            f"--link-encoders: the {owned[0]} encoder was fine-tuned and exists in its run alone; "
            "leave the option out"
        )
    # Graphs first, and elsewhere: what the gate refuses replaces nothing.
    with tempfile.TemporaryDirectory(prefix="meld-export-") as work:
        graphs = _make_graphs(config, predictor, runtime, Path(work))
        with open_run(
            config.out, overwrite=config.overwrite, name="bundle", inputs=[config.run]
        ) as bundle:
            return _write(config, predictor, runtime, graphs, bundle)


def _make_graphs(
    config: ExportConfig, predictor: Predictor, runtime: PyTorchRuntime, work: Path
) -> Graphs | None:
    if not config.onnx and config.quantise is None:
        return None
    write_graphs(runtime, work / "float")
    if config.quantise is None:
        return Graphs(folder=work / "float")
    data = config.data or predictor.description.data or Path("data")
    gate = Gate(predictor, data, config.split, config.max_loss)
    if config.split == "test":
        record_evaluation(config.run, "export")
    return quantise(predictor, work / "float", work, gate)


def _write(
    config: ExportConfig,
    predictor: Predictor,
    runtime: PyTorchRuntime,
    graphs: Graphs | None,
    bundle: Path,
) -> ExportResult:
    in_float = graphs is None or graphs.gate is None
    if in_float and not config.link_encoders:
        log.info("writing the encoders of %s", ", ".join(predictor.modalities))
        taken = [
            each for each in predictor.recipe.encoders if each.modality in predictor.modalities
        ]
        recipe = replace(predictor.recipe, encoders=tuple(taken))
        write_encoders(bundle, dict(runtime.encoders.items()), recipe, tuned=())
    if graphs is not None:
        _copy(graphs.folder, bundle / GRAPHS)
    log.info("computing the golden clips")
    if not in_float:  # 8 bits say something else than the run, and are checked against themselves
        shipped = OnnxRuntime.load(bundle / GRAPHS, predictor.description)
        predictor = Predictor(predictor.name, predictor.description, shipped)
    write_golden(predictor, bundle)
    checkpoint = runtime.checkpoint.to_pass_on()
    config_bytes = description_bytes(checkpoint)
    description = json.loads(config_bytes)
    reports = _reports(config.run)
    for split, report in reports.items():
        write_whole(bundle / f"evaluation-{split}.json", json_bytes(report))
    write_weights(bundle, checkpoint)
    files = {path.relative_to(bundle).as_posix(): hash_file(path) for path in _deciding(bundle)}
    export = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": predictor.name,
        "runtimes": [*(["torch"] if in_float else []), *(["onnx"] if graphs else [])],
        "encoders": "linked" if config.link_encoders else "included" if in_float else "int8",
        "gate": None if graphs is None or graphs.gate is None else graphs.gate.to_dict(),
        "machine": describe_machine(predictor),
        "versions": description["versions"],
        "files": files | {CONFIG: hashlib.sha256(config_bytes).hexdigest()},
    }
    card = render_card(bundle.resolve().name, description, reports, export)
    write_whole(bundle / CARD, card.encode())
    write_whole(bundle / EXPORT, json_bytes(export))
    write_whole(bundle / CONFIG, config_bytes)
    names = (*export["files"], *(f"evaluation-{split}.json" for split in reports), CARD, EXPORT)
    sizes = {name: (bundle / name).stat().st_size for name in names}
    return ExportResult(
        bundle=bundle,
        files=dict(sorted(sizes.items())),
        gate=None if graphs is None else graphs.gate,
    )


def _copy(folder: Path, out: Path) -> None:
    """Raises StorageError."""
    try:
        shutil.copytree(folder, out, dirs_exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out}: cannot be written: {error}") from error


def _deciding(bundle: Path) -> list[Path]:
    """The files that decide what it predicts. The card is not one: whoever passes the bundle on
    writes the licence into it; nor are evaluations, which `meld evaluate` adds."""
    folders = [folder for name in (ENCODERS, GRAPHS, GOLDEN) if (folder := bundle / name).is_dir()]
    inside = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [bundle / WEIGHTS, *sorted(inside)]


def _reports(run: Path) -> dict[str, Any]:
    """The run's evaluations on dev and test, as far as there are any."""
    reports = {}
    for split in ("dev", "test"):
        path = run / f"evaluation-{split}.json"
        try:
            values = json.loads(path.read_bytes())
            reports[split] = values | dict.fromkeys(_PRIVATE)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        except (ValueError, TypeError, RecursionError) as error:
            raise CacheCorrupt(
                f"{path}: no evaluation ({error}); evaluate the run again"
            ) from error
    return reports
