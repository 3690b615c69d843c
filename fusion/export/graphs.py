"""The ONNX graphs of an export: in float, or in 8 bits if the gate lets them pass.

encoders and fusion model -> float graphs -> 8-bit graphs -> gate
                                                 ^            | refused
                                                 '-- more layers compute in float from weights
                                                     that are stored in 8 bits: the worst first
"""

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from fusion.export.gate import (
    Candidate,
    ExportRefused,
    Gate,
    GateReport,
    VariantCost,
    refusal,
)
from fusion.inference.bundle import FUSION_GRAPH
from fusion.inference.onnx_runtime import OnnxRuntime
from fusion.inference.predictor import Predictor
from fusion.inference.pytorch import PyTorchRuntime
from pipeline.encoders.encoder import AnyEncoder, EncoderAsSeen, HasGraph, StandsForSeveral
from pipeline.errors import UsageError
from pipeline.recipe import FeatureRecipe
from pipeline.schema import Modality

log = logging.getLogger(__name__)

CALIBRATION_CLIPS, RANKING_CLIPS = 100, 16


@dataclass(frozen=True, kw_only=True)
class Graphs:
    """folder: with the graphs; gate: what those in 8 bits cost"""

    folder: Path
    gate: GateReport | None = None


def check_graphs(runtime: PyTorchRuntime) -> None:
    """Raises UsageError where an encoder has no graph: it computes in bfloat16, for one."""
    for modality, encoder in runtime.encoders.items():
        if modality in runtime.checkpoint.dims.own:
            raise UsageError(
                f"ONNX graphs: the run is an ensemble of {runtime.checkpoint.dims.members} "
                f"fine-tuned models, each with a {modality} encoder of its own, and graphs have "
                "one; export it without --onnx and --quantise int8, or a single model"
            )
        _check_encoder(modality, encoder, runtime.checkpoint.recipe)
    for modality, precision in runtime.precision.items():
        if precision != "float32":
            is_tuned = runtime.checkpoint.recipe.encoder_of(modality).weights == "finetuned"
            advice = (
                "fine-tune with --precision float32"
                if is_tuned
                else "extract with --precision float32 to another --features folder, and train on "
                "that"
            )
            raise UsageError(
                f"ONNX graphs: the {modality} encoder computes in {precision}, and graphs are "
                f"written in float32; {advice}"
            )


def _check_encoder(modality: Modality, encoder: AnyEncoder, recipe: FeatureRecipe) -> None:
    spec = recipe.encoder_of(modality)
    parts = (
        encoder.as_seen()
        if isinstance(encoder, StandsForSeveral)
        else [EncoderAsSeen(spec.name, encoder, None, recipe.decode)]
    )
    for part in parts:
        if not isinstance(part.encoder, HasGraph):
            raise UsageError(
                f"ONNX graphs: the {modality} encoder {part.name} cannot be written as a graph "
                "(word vectors cannot); export it without --onnx and --quantise int8, which "
                "PyTorch computes"
            )
        part.encoder.graph_source(part.decode)  # which tells where there is none


def write_graphs(runtime: PyTorchRuntime, folder: Path) -> None:
    """Float graphs of every encoder and of the fusion model.

    Raises UsageError where an encoder cannot be written so.
    """
    # The exporter is an extra, and takes seconds to import.
    from fusion.export.onnx import write_fusion_graph
    from pipeline.onnx.write import write_encoder_graphs

    log.info("writing ONNX graphs")
    write_encoder_graphs(runtime.encoders, folder)
    write_fusion_graph(runtime.checkpoint.model, folder / FUSION_GRAPH)


def quantise(
    predictor: Predictor,
    in_float: Path,
    work: Path,
    gate: Gate,
    measured: Sequence[VariantCost],
    *,
    kind: str = "",
) -> Graphs:
    """8-bit graphs that pass the gate: all layers compute in 8 bits, or as many as pass. Those that
    compute in float are those that make the largest error alone: 1, 2, 4, 8, ... of them.

    measured: the original run, and what was made of it before; kind: what is told of `predictor`
        in the names of variants, "" where it is the original

    Raises:
        ExportRefused: they lose too much even where all layers compute in float.
        UsageError, InputError, MismatchError: as `quantise_graphs`.
    """
    from pipeline.onnx.quantise import quantise_graphs

    decode = predictor.recipe.decode
    calibration = gate.calibration(predictor, CALIBRATION_CLIPS)
    in_float_cost = gate.measure(by_graphs(f"{kind}ONNX", predictor, in_float))
    before = [*measured, in_float_cost]
    ranked: list[str] = []
    best: GateReport | None = None  # of those that were refused
    num_kept = 0
    while True:
        kept = ranked[:num_kept]
        folder = work / f"int8-{num_kept}"
        quantise_graphs(in_float, folder, calibration, decode=decode, float_layers=kept)
        shutil.copyfile(in_float / FUSION_GRAPH, folder / FUSION_GRAPH)
        cost = gate.measure(by_graphs(f"{kind}ONNX int8", predictor, folder))
        report = gate.report([*before, cost], float_layers=kept)
        if report.passes:
            return Graphs(folder=folder, gate=report)
        log.info("layers that compute in float: %d; %s", num_kept, refusal(report))
        best = report if best is None or _loss(report) < _loss(best) else best
        if not ranked:
            ranked = _rank(predictor, in_float, gate)
        if num_kept == len(ranked) or cost.emotion.change is None:
            raise ExportRefused(refusal(best), best)
        num_kept = min(max(1, 2 * num_kept), len(ranked))
        shutil.rmtree(folder)


def _loss(report: GateReport) -> float:
    """Of the head that loses more: the lower bound of its change, as a loss."""
    changes = (report.variants[-1].emotion.change, report.variants[-1].sentiment.change)
    return max((-change.low for change in changes if change is not None), default=float("inf"))


def _rank(predictor: Predictor, in_float: Path, gate: Gate) -> list[str]:
    """Names of the layers that can compute in 8 bits, the worst first."""
    from pipeline.onnx.index import GRAPH, OnnxIndex
    from pipeline.onnx.quantise import LEAST_BYTES, rank_layers

    clips = gate.calibration(predictor, RANKING_CLIPS)
    layers = []
    for place, graph in OnnxIndex.read(in_float).graphs():
        if GRAPH in graph.files and (in_float / place / GRAPH).stat().st_size >= LEAST_BYTES:
            layers += rank_layers(in_float, place, clips, decode=predictor.recipe.decode)
    return [layer.node for layer in sorted(layers, key=lambda layer: layer.error, reverse=True)]


@contextmanager
def threads_as_before() -> Iterator[None]:
    """Afterwards PyTorch computes in as many threads as before, whatever was measured inside."""
    threads = torch.get_num_threads()
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def by_torch(name: str, predictor: Predictor) -> Candidate:
    """A run as PyTorch computes it. Loading it sets the threads of the process: see
    `threads_as_before`."""

    def load(threads: int) -> Predictor:
        torch.set_num_threads(threads)
        return predictor

    runtime = predictor.runtime
    assert isinstance(runtime, PyTorchRuntime)
    nets: Sequence[torch.nn.Module] = (runtime.encoders, runtime.checkpoint.model)
    values = [value for net in nets for value in (*net.parameters(), *net.buffers())]
    num_bytes = sum(value.numel() * value.element_size() for value in values)
    return Candidate(name=name, load=load, num_bytes=num_bytes)


def by_graphs(name: str, predictor: Predictor, folder: Path) -> Candidate:
    """The same by the graphs in `folder`."""

    def load(threads: int) -> Predictor:
        runtime = OnnxRuntime.load(folder, predictor.description, threads=threads)
        return Predictor(predictor.name, predictor.description, runtime)

    num_bytes = sum(path.stat().st_size for path in folder.rglob("*.onnx"))
    return Candidate(name=name, load=load, num_bytes=num_bytes)
