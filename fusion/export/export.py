"""`meld export`: a trained run becomes a bundle, one folder that predicts anywhere.

run -> load with its encoders -> fewer units, fine-tuned again (`prune.py`), or bfloat16
                               -> graphs in float or in 8 bits (`graphs.py`)
                               -> what all of that loses on dev (`gate.py`)
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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from fusion.evaluation.test_evaluations import record_evaluation
from fusion.export.bfloat16 import check_bfloat16, in_bfloat16
from fusion.export.card import render_card
from fusion.export.gate import ExportRefused, Gate, GateReport, refusal
from fusion.export.golden import describe_machine, write_golden
from fusion.export.graphs import (
    by_graphs,
    by_torch,
    check_graphs,
    quantise,
    threads_as_before,
    write_graphs,
)
from fusion.export.prune import PruneConfig, Watch, check_prunable, prune, work_folder
from fusion.finetuning.loop import TuneConfig
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
from fusion.training.run_folder import open_run, refuse_taken
from pipeline.encoders.saved import FOLDER as ENCODERS
from pipeline.encoders.saved import write_encoders
from pipeline.errors import CacheCorrupt, StorageError, UsageError
from pipeline.system.files import refuse_other_names, write_whole
from pipeline.system.json_values import MALFORMED, json_bytes, to_values

log = logging.getLogger(__name__)

# Of what a run holds, what is told of its corpus's single utterances.
_PRIVATE = ("errors",)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """run: a trained or fine-tuned run

    out:           the bundle's folder
    onnx:          write ONNX graphs of the encoders and of the fusion model as well
    quantise:      "int8" writes graphs with 8-bit weights, and no encoders for PyTorch;
                   "bfloat16" writes encoders that PyTorch computes in bfloat16
    prune:         share of the units of each layer to remove; what is left is fine-tuned
    tune:          settings of that fine-tuning
    data:          corpus that the loss is measured on: its CSVs, and its clips if the run sees or
                   hears; None takes the one that the run was fine-tuned on, or "data"
    split:         its part
    max_loss:      points of weighted F1 that a smaller model may lose: what the lower bound of the
                   95 % interval of the difference must not go beyond
    link_encoders: leave the encoders out; whoever loads the bundle needs the same pretrained
                   weights, which are compared by hash
    weights_dir:   a folder to look for pretrained weights in, before the libraries' own caches
    encoders:      the fine-tuned run that owns the encoders, if it is not `run`
    overwrite:     replace an earlier bundle in `out`
    """

    run: Path
    out: Path
    onnx: bool = False
    quantise: Literal["int8", "bfloat16"] | None = None
    prune: float | None = None
    tune: TuneConfig = field(default_factory=TuneConfig)
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
            if not self.is_smaller and value != default:
                raise UsageError(
                    f"--{name} {value}: nothing is measured without --quantise or --prune"
                )
        if self.quantise not in (None, "int8", "bfloat16"):
            raise UsageError(f"--quantise {self.quantise}: int8 or bfloat16")
        if self.quantise == "int8" and self.link_encoders:
            raise UsageError("--link-encoders: 8-bit graphs hold the encoders; leave one out")
        if self.quantise == "int8" and self.onnx:
            raise UsageError("--onnx: --quantise int8 writes graphs, in 8 bits; leave one out")
        if self.quantise == "bfloat16" and self.link_encoders:
            raise UsageError(
                "--link-encoders: the encoders are smaller in bfloat16, and exist nowhere else; "
                "leave one out"
            )
        if self.quantise == "bfloat16" and self.onnx:
            raise UsageError("--onnx: graphs are written in float32 or int8; leave one out")
        if self.prune is not None and not 0 < self.prune < 1:
            raise UsageError(f"--prune is a share above 0 and below 1, not {self.prune}")
        if self.prune is not None and self.link_encoders:
            raise UsageError(
                "--link-encoders: pruned encoders exist in the bundle alone; leave one out"
            )
        if self.prune is None and self.tune != TuneConfig():
            raise UsageError("--epochs, --learning-rate: nothing is fine-tuned without --prune")
        if not self.max_loss >= 0:
            raise UsageError(f"--max-loss must be 0 or more points, not {self.max_loss}")

    @property
    def is_smaller(self) -> bool:
        """Whether what is exported is another model than the run."""
        return self.quantise is not None or self.prune is not None


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """bundle: the folder; files: bytes of each file in it, by name relative to it

    gate: what a smaller model costs; None where the bundle is the run
    work: of a pruned one, the folder that its fine-tuned run lies in
    """

    bundle: Path
    files: Mapping[str, int]
    gate: GateReport | None = None
    work: Path | None = None

    @property
    def num_bytes(self) -> int:
        return sum(self.files.values())

    def to_dict(self) -> dict[str, Any]:
        gate = None if self.gate is None else self.gate.to_dict()
        return to_values(self) | {"bytes": self.num_bytes, "gate": gate}


def export(config: ExportConfig, watch: Watch | None = None) -> ExportResult:
    """Writes the bundle; a folder without `config.json` is an unfinished one.

    Raises:
        UsageError: `out` holds something else; encoders that exist nowhere else are to be linked;
            the run cannot be made smaller so.
        ExportRefused: a smaller model loses too much, or is not faster.
        InputError, StorageError, CacheCorrupt, WeightsMissing, MismatchError: as `Predictor.load`;
            with `prune` also as `extract` and `finetune`.
    """
    exported = read_export(config.run)
    if exported is not None and "torch" not in exported["runtimes"]:
        raise UsageError(
            f"{config.run} has only 8-bit graphs; export the run that they were made from"
        )
    # At once: a smaller model takes minutes to measure.
    refuse_other_names(config.out)
    refuse_taken(config.out, overwrite=config.overwrite, inputs=[config.run])
    predictor = Predictor.load(config.run, weights_dir=config.weights_dir, encoders=config.encoders)
    owned = [spec.modality for spec in predictor.recipe.encoders if spec.weights == "finetuned"]
    if config.link_encoders and owned:
        raise UsageError(
            f"--link-encoders: the {owned[0]} encoder was fine-tuned and exists in its run alone; "
            "leave the option out"
        )
    # What the gate refuses replaces nothing, so everything is made elsewhere first.
    with tempfile.TemporaryDirectory(prefix="meld-export-") as work:
        with threads_as_before():
            product = _make(config, predictor, Path(work), watch or Watch())
        with open_run(
            config.out, overwrite=config.overwrite, name="bundle", inputs=[config.run]
        ) as bundle:
            return _write(config, product, bundle)


@dataclass(frozen=True, kw_only=True)
class _Product:
    """What is shipped. run: its folder, whose evaluations are shipped too; name: of the original;
    graphs: folder of its graphs; gate: what it costs where it is not the original"""

    run: Path
    name: str
    predictor: Predictor
    is_pruned: bool = False
    graphs: Path | None = None
    gate: GateReport | None = None

    @property
    def runtime(self) -> PyTorchRuntime:
        runtime = self.predictor.runtime
        assert isinstance(runtime, PyTorchRuntime)
        return runtime


def _make(config: ExportConfig, predictor: Predictor, work: Path, watch: Watch) -> _Product:
    product = _Product(run=config.run, name=predictor.name, predictor=predictor)
    if config.onnx or config.quantise == "int8":
        check_graphs(product.runtime)
    if not config.is_smaller:
        return _with_graphs(product, work) if config.onnx else product
    data = config.data or predictor.description.data or Path("data")
    if config.prune is not None:
        check_prunable(config.run, predictor, data)
    if config.quantise == "bfloat16":
        check_bfloat16(config.run, predictor)
    gate = Gate(predictor, data, config.split, config.max_loss)
    if config.split == "test":
        record_evaluation(config.run, "export")
    measured = [gate.measure(by_torch("PyTorch", predictor))]
    kind = ""
    if config.prune is not None:
        product = _pruned(config, product, gate, data, watch)
        kind = f"{100 * config.prune:g} % pruned, "
        measured.append(gate.measure(by_torch(f"{kind}PyTorch", product.predictor)))
        product = _passed(product, gate.report(measured, must_be_faster=True))
    if config.quantise == "bfloat16":
        product = replace(product, predictor=in_bfloat16(product.predictor))
        measured.append(gate.measure(by_torch(f"{kind}bfloat16", product.predictor)))
        product = _passed(product, gate.report(measured))
    if config.onnx or config.quantise == "int8":
        product = _with_graphs(product, work)
    if config.quantise == "int8":
        assert product.graphs is not None
        graphs = quantise(product.predictor, product.graphs, work, gate, measured, kind=kind)
        return replace(product, graphs=graphs.folder, gate=graphs.gate)
    if config.onnx:
        assert product.graphs is not None
        measured.append(gate.measure(by_graphs(f"{kind}ONNX", product.predictor, product.graphs)))
        product = _passed(product, gate.report(measured, must_be_faster=config.prune is not None))
    return product


def _passed(product: _Product, report: GateReport) -> _Product:
    """Raises ExportRefused."""
    if not report.passes:
        told = refusal(report)
        if product.is_pruned:
            told += f", and the smaller run stays in {product.run}"
        raise ExportRefused(told, report)
    return replace(product, gate=report)


def _with_graphs(product: _Product, work: Path) -> _Product:
    write_graphs(product.runtime, work / "float")
    return replace(product, graphs=work / "float")


def _pruned(
    config: ExportConfig, product: _Product, gate: Gate, data: Path, watch: Watch
) -> _Product:
    assert config.prune is not None
    if gate.split != "dev":  # which units matter is chosen, and dev chooses
        gate = Gate(product.predictor, data, "dev", config.max_loss)
    settings = PruneConfig(
        share=config.prune, work=work_folder(config.out), data=data, tune=config.tune
    )
    # Of its own, because it is pruned in place, and the original still takes turns with variants.
    original = Predictor.load(config.run, weights_dir=config.weights_dir, encoders=config.encoders)
    run = prune(config.run, original, gate, settings, watch)
    return replace(product, run=run, predictor=Predictor.load(run), is_pruned=True)


def _write(config: ExportConfig, product: _Product, bundle: Path) -> ExportResult:
    predictor, runtime = product.predictor, product.runtime
    for_torch = config.quantise != "int8"
    if for_torch and not config.link_encoders:
        log.info("writing the encoders of %s", ", ".join(predictor.modalities))
        taken = [
            each for each in predictor.recipe.encoders if each.modality in predictor.modalities
        ]
        recipe = replace(predictor.recipe, encoders=tuple(taken))
        write_encoders(bundle, dict(runtime.encoders.items()), recipe, tuned=())
    if product.graphs is not None:
        _copy(product.graphs, bundle / GRAPHS)
    log.info("computing the golden clips")
    if not for_torch:  # 8 bits say something else than the run, and are checked against themselves
        shipped = OnnxRuntime.load(bundle / GRAPHS, predictor.description)
        predictor = Predictor(predictor.name, predictor.description, shipped)
    write_golden(predictor, bundle)
    checkpoint = runtime.checkpoint.to_pass_on()
    config_bytes = description_bytes(checkpoint)
    description = json.loads(config_bytes)
    reports = reports_to_ship(product.run)
    for split, report in reports.items():
        write_whole(bundle / f"evaluation-{split}.json", json_bytes(report))
    write_weights(bundle, checkpoint)
    files = {path.relative_to(bundle).as_posix(): hash_file(path) for path in _deciding(bundle)}
    export = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "run": product.name,
        "runtimes": [*(["torch"] if for_torch else []), *(["onnx"] if product.graphs else [])],
        "encoders": "linked" if config.link_encoders else "included" if for_torch else "int8",
        "pruned": config.prune,
        "gate": None if product.gate is None else product.gate.to_dict(),
        "machine": describe_machine(predictor),
        "versions": description["versions"],
        "files": files | {CONFIG: hashlib.sha256(config_bytes).hexdigest()},
    }
    card = card_of(product.run, bundle.resolve().name, description, reports, export)
    write_whole(bundle / CARD, card.encode())
    write_whole(bundle / EXPORT, json_bytes(export))
    write_whole(bundle / CONFIG, config_bytes)
    names = (*export["files"], *(f"evaluation-{split}.json" for split in reports), CARD, EXPORT)
    sizes = {name: (bundle / name).stat().st_size for name in names}
    return ExportResult(
        bundle=bundle,
        files=dict(sorted(sizes.items())),
        gate=product.gate,
        work=None if config.prune is None else work_folder(config.out),
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


def card_of(
    run: Path,
    name: str,
    config: Mapping[str, Any],
    reports: Mapping[str, Any],
    export: Mapping[str, Any],
) -> str:
    """See `render_card`. Raises CacheCorrupt where an evaluation of `run` is not what `meld
    evaluate` writes."""
    try:
        return render_card(name, config, reports, export)
    except MALFORMED as error:
        splits = ", ".join(f"evaluation-{split}.json" for split in reports)
        raise CacheCorrupt(
            f"{run}: {splits}: no evaluation ({error!r}); evaluate the run again"
        ) from error


def reports_to_ship(run: Path) -> dict[str, Any]:
    """The run's evaluations on dev and test, as far as there are any, without what is private: of
    a folder that was named to measure on, the name alone."""
    reports = {}
    for split in ("dev", "test"):
        path = run / f"evaluation-{split}.json"
        try:
            values = json.loads(path.read_bytes())
            folders = {name: values.get(name) for name in ("features", "data")}
            named = {name: each and Path(each).name for name, each in folders.items()}
            reports[split] = {**values, **named, **dict.fromkeys(_PRIVATE)}
        except FileNotFoundError:
            continue
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error}") from error
        except MALFORMED as error:
            raise CacheCorrupt(
                f"{path}: no evaluation ({error!r}); evaluate the run again"
            ) from error
    return reports
