"""`make bundled-model`: trains the bundled model on MELD's transcripts.

    the three CSV files
      │ extract     text alone, the bundled MiniLM, float32, which every machine can
      │ train       SEEDS seeds side by side; dev chooses the epoch of each, and then the seed
      │ measure     dev; test once, as it is and with nobody named
      └ meld-text/  config, weights, the three evaluations, the card that is written from them

What else was tried on dev is in LOG.md. Everything between is made in a folder of its own and
removed; the same machine gives the same bytes again.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.bundled.card import render_card
from fusion.data.split import FusionData
from fusion.evaluation.evaluate import EvaluateConfig, measure_split, open_split, report_of
from fusion.evaluation.report import EvalReport
from fusion.inference.bundled import bundled_run
from fusion.inference.checkpoint import read_checkpoint, write_checkpoint
from fusion.inference.description import CONFIG, WEIGHTS
from fusion.inference.predict import predict_rows
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import TrainResult, train_seeds
from pipeline.encoders.choice import EncoderRequest
from pipeline.errors import MeldError
from pipeline.extract.extract import ExtractConfig, extract
from pipeline.schema import SPLITS
from pipeline.system.files import write_whole
from pipeline.system.json_values import json_bytes

log = logging.getLogger(__name__)

SEEDS = 5
MODEL = ModelConfig(context="dialogue")
FIT = FitConfig()

DEV, TEST = "evaluation-dev.json", "evaluation-test.json"
UNNAMED = "evaluation-test-unnamed.json"  # test with nobody's name given
CARD = "README.md"
FILES = (CONFIG, WEIGHTS, DEV, TEST, UNNAMED, CARD)


@dataclass(frozen=True, kw_only=True)
class Evaluations:
    """What the card says; `unnamed`: test, where no speaker has a name."""

    dev: EvalReport
    test: EvalReport
    unnamed: EvalReport


def make_bundled_model(data: Path, out: Path) -> Evaluations:
    """data: the folder with MELD's CSV files; out: the run's folder, whose files are replaced.

    Raises what extraction, training and evaluation raise; see `pipeline.errors`.
    """
    with tempfile.TemporaryDirectory() as work:
        features = Path(work) / "features"
        log.info("1/3 extracting text features of %s", data)
        extract(
            ExtractConfig(
                data=data,
                features=features,
                splits=SPLITS,  # named, so that one that is not there is refused
                modalities=("text",),
                encoders=EncoderRequest(text="minilm"),
                device="cpu",
                precision="float32",
            ),
            lambda done, total, failures: log.info("  %d of %d", done, total),
        )
        return train_bundled(features, Path(work) / "runs", out)


def train_bundled(features: Path, runs: Path, out: Path) -> Evaluations:
    """The same from the features of all three splits on; `runs`: a folder for what is not kept."""
    log.info("2/3 training %d models side by side", SEEDS)
    results = _train(features, runs)
    best = max(results, key=lambda result: result.dev.score or 0.0)  # the first of equals
    log.info("3/3 dev chose %s; measuring it on test", best.run.name)
    evaluations = _measure(best)
    _write(out, best.run, evaluations)
    return evaluations


def _train(features: Path, runs: Path) -> list[TrainResult]:
    configs = [
        TrainConfig(
            features=features,
            out=runs / f"seed{seed}",
            seed=seed,
            device="cpu",
            model=MODEL,
            fit=FIT,
        )
        for seed in range(SEEDS)
    ]
    results = train_seeds(configs, draw=lambda config: False)
    for result in results:
        dev = result.dev
        log.info(
            "  %s: dev %.4f / %.4f",
            result.run.name,
            dev.emotion.model.weighted_f1,
            dev.sentiment.model.weighted_f1,
        )
    return results


def _measure(chosen: TrainResult) -> Evaluations:
    """Test is evaluated here and nowhere else. No text of the corpus stays in a report."""
    config = EvaluateConfig(run=chosen.run, split="test")
    checkpoint, data = open_split(config)
    test = replace(measure_split(config).report, errors=None)
    unnamed = report_of(checkpoint, predict_rows(checkpoint, _without_names(data), run=test.run))
    return Evaluations(
        dev=_as_bundled(chosen.dev), test=_as_bundled(test), unnamed=_as_bundled(unnamed)
    )


def _without_names(data: FusionData) -> FusionData:
    """As subtitles are and what a recogniser hears: it is not said who speaks."""
    return replace(data, speaker=("",) * len(data))


def _as_bundled(report: EvalReport) -> EvalReport:
    return replace(report, run=bundled_run().name)


def _write(out: Path, run: Path, evaluations: Evaluations) -> None:
    """The config last, as of every run."""
    out.mkdir(parents=True, exist_ok=True)
    reports = {
        DEV: evaluations.dev.to_dict(),
        TEST: evaluations.test.to_dict(),
        UNNAMED: evaluations.unnamed.to_dict(),
    }
    for name, values in reports.items():
        write_whole(out / name, json_bytes(values))
    write_checkpoint(out, read_checkpoint(run).to_pass_on())
    write_whole(out / CARD, write_card(out).encode())


def write_card(run: Path) -> str:
    """The card, from the files beside which it lies."""
    config, test, unnamed, dev = (
        json.loads((run / name).read_bytes()) for name in (CONFIG, TEST, UNNAMED, DEV)
    )
    return render_card(config, test, unnamed, dev)


def main(arguments: Sequence[str] | None = None) -> int:
    """Ends with the status of the error, where there is one."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with MELD's CSV files")
    parser.add_argument("--out", type=Path, default=bundled_run(), help="default: the package's")
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        made = make_bundled_model(chosen.data, chosen.out)
    except MeldError as error:
        log.error("%s", error)
        return error.exit_status
    for name, report in (("test", made.test), ("nobody named", made.unnamed)):
        heads = (report.emotion, report.sentiment)
        log.info("%s: %s", name, " / ".join(str(head.weighted_f1_interval) for head in heads))
    log.info("written: %s", chosen.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
