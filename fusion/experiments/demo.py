"""`meld demo`: the whole pipeline on a generated corpus, and the gain of fusion.

sample -> extract -> train-fusion on each modality and on all, several seeds -> evaluate
       -> predict one clip, by the model that sees all
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fusion.evaluation.evaluate import EvaluateConfig, evaluate
from fusion.evaluation.report import EvalReport
from fusion.evaluation.scores import Scores
from fusion.inference.predict_media import WordsConfig
from fusion.inference.prediction import HeadPrediction
from fusion.model.dims import ModelConfig
from fusion.prediction.predict_files import PredictConfig, predict_files
from fusion.training.config import TrainConfig
from fusion.training.fit import one_thread
from fusion.training.train import train_seeds
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.encoders.choice import EncoderRequest
from pipeline.extract.extract import ExtractConfig, ExtractReport, extract
from pipeline.sample.corpus import SampleConfig, make_sample
from pipeline.schema import EMOTIONS, MODALITIES, Modality
from pipeline.system.processes import spawn_pool
from pipeline.system.resources import num_cores

SUBSETS: tuple[tuple[Modality, ...], ...] = (*((name,) for name in MODALITIES), MODALITIES)
# In this corpus each row says its emotion through one or two modalities, and attention finds out
# which: dev prefers it to the other fusions (LOG.md). One modality alone has nothing to fuse.
FUSED = ModelConfig(fusion="attention")

# A video net costs as much as all else of the demo together, and by the picture: these few show
# what a face says as well as 16 do (LOG.md).
NUM_FRAMES = 8
# One for each subset; each is a process that loads PyTorch: seconds, and half a GB.
_MOST_AT_ONCE = len(SUBSETS)

Say = Callable[[str], None]
OnProgress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """out: holds the corpus, the caches and the runs; seeds: trainings per subset.

    dialogues: about 6 clips each; 44 take some 4 minutes on 2 cores, see LOG.md
    """

    out: Path = Path("demo")
    seed: int = 0
    seeds: int = 5
    dialogues: int = 44

    def __post_init__(self) -> None:
        if self.seeds < 1:
            raise ValueError(f"seeds must be at least 1, not {self.seeds}")


@dataclass(frozen=True, kw_only=True)
class DemoRow:
    """Weighted F1 on test of one subset of modalities, one value per seed."""

    modalities: tuple[Modality, ...]
    emotion_f1: tuple[float, ...]
    sentiment_f1: tuple[float, ...]

    @property
    def name(self) -> str:
        return " + ".join(self.modalities)


@dataclass(frozen=True, kw_only=True)
class DemoPrediction:
    """One generated clip, and what the model of all modalities says of it.

    label: the emotion it was generated with; page: the predicted clip as an HTML page
    """

    clip: Path
    label: str
    emotion: HeadPrediction
    page: Path

    def to_dict(self) -> dict[str, Any]:
        return {
            "clip": str(self.clip),
            "label": self.label,
            "emotion": self.emotion.to_dict(),
            "page": str(self.page),
        }


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """`gain`: fused minus the best single modality, emotion weighted F1, mean over seeds."""

    out: Path
    clips: int
    rows: tuple[DemoRow, ...]
    majority_emotion_f1: float
    majority_sentiment_f1: float
    random_modalities: tuple[Modality, ...]
    seconds: dict[str, float]
    plot: Path
    prediction: DemoPrediction

    @property
    def best_single(self) -> DemoRow:
        singles = [row for row in self.rows if len(row.modalities) == 1]
        return max(singles, key=lambda row: np.mean(row.emotion_f1))

    @property
    def gain(self) -> float:
        return float(np.mean(self.rows[-1].emotion_f1) - np.mean(self.best_single.emotion_f1))

    def names(self, row: DemoRow) -> list[str]:
        """The row's modalities, those with random weights marked."""
        return [
            f"{name} (random weights)" if name in self.random_modalities else name
            for name in row.modalities
        ]

    def to_dict(self) -> dict[str, Any]:
        return {
            "out": str(self.out),
            "clips": self.clips,
            "random_weights": list(self.random_modalities),
            "majority": {
                "emotion_weighted_f1": self.majority_emotion_f1,
                "sentiment_weighted_f1": self.majority_sentiment_f1,
            },
            "results": [
                {
                    "modalities": list(row.modalities),
                    "emotion_weighted_f1": list(row.emotion_f1),
                    "sentiment_weighted_f1": list(row.sentiment_f1),
                }
                for row in self.rows
            ],
            "gain": self.gain,
            "seconds": self.seconds,
            "plot": str(self.plot),
            "prediction": self.prediction.to_dict(),
        }


def run_demo(
    config: DemoConfig, say: Say = lambda line: None, on_progress: OnProgress = lambda *_: None
) -> DemoReport:
    """Runs every stage for real; what an earlier demo extracted is kept.

    Raises what the stages raise; see `pipeline.errors`.
    """
    clock = _Clock()
    data, features, runs = (config.out / name for name in ("data", "features", "runs"))
    say("1/5 generating a corpus: spoken sentences, drawn faces, H.264 + AAC")
    sample = SampleConfig(out=data, seed=config.seed, dialogues=config.dialogues)
    rows = make_sample(sample, on_progress).rows
    clock.lap("sample")
    say(f"2/5 extracting features of {sum(rows.values())} clips")
    extraction = _extract(data, features, on_progress)
    clock.lap("extract")
    say(f"3/5 training {len(SUBSETS)} x {config.seeds} fusion models, measuring each on test")
    reports = _train_all(features, runs, config.seeds, on_progress)
    clock.lap("train and evaluate")
    say("4/5 predicting one of the clips, as any video")
    prediction = _predict_one(config, data, runs)
    clock.lap("predict")
    report = _summarise(config, extraction, reports, prediction, clock.laps)
    say("5/5 the result")
    from fusion.evaluation.plots import plot_gain  # matplotlib takes seconds to load

    plot_gain(
        [" +\n".join(report.names(row)) for row in report.rows],
        [float(np.mean(row.emotion_f1)) for row in report.rows],
        [float(np.std(row.emotion_f1)) for row in report.rows],
        report.majority_emotion_f1,
        report.plot,
    )
    return report


class _Clock:
    """Seconds of each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._since = time.monotonic()

    def lap(self, name: str) -> None:
        now = time.monotonic()
        self.laps[name] = now - self._since
        self._since = now


def _extract(data: Path, features: Path, on_progress: OnProgress) -> ExtractReport:
    config = ExtractConfig(
        data=data,
        features=features,
        encoders=EncoderRequest(text="minilm", video_weights="random"),
        num_frames=NUM_FRAMES,
    )
    return extract(config, lambda done, total, _: on_progress(done, total))


def _train_all(
    features: Path, runs: Path, seeds: int, on_progress: OnProgress
) -> list[list[EvalReport]]:
    """Test reports [subset][seed]. The seeds of a subset train side by side on one core, so each
    core gets a subset."""
    work = [
        [
            TrainConfig(
                features=features,
                modalities=subset,
                model=FUSED if len(subset) > 1 else ModelConfig(),
                out=_run_folder(runs, subset, seed),
                seed=seed,
                overwrite=True,
            )
            for seed in range(seeds)
        ]
        for subset in SUBSETS
    ]
    done = 0
    # The largest first: a core that ends early is one that waits.
    order = sorted(range(len(work)), key=lambda index: -len(SUBSETS[index]))
    with spawn_pool(min(num_cores(), _MOST_AT_ONCE)) as pool:
        futures = {index: pool.submit(_train_and_measure, work[index]) for index in order}
        on_progress(done, len(work) * seeds)
        for future in as_completed(futures.values()):
            done += len(future.result())  # an error ends it here, not after all the others
            on_progress(done, len(work) * seeds)
    return [futures[index].result() for index in range(len(work))]


def _train_and_measure(configs: Sequence[TrainConfig]) -> list[EvalReport]:
    """Plots are drawn of the first seed's run alone: they take longer than all the training."""

    def is_first(config: TrainConfig) -> bool:
        return config is configs[0]

    with one_thread():
        results = train_seeds(configs, draw=is_first)
        return [
            evaluate(
                EvaluateConfig(run=result.run, split="test", features=config.features),
                draw=is_first(config),
            )
            for config, result in zip(configs, results, strict=True)
        ]


def _run_folder(runs: Path, subset: Sequence[Modality], seed: int) -> Path:
    return runs / f"{'+'.join(subset)}-seed{seed}"


def _predict_one(config: DemoConfig, data: Path, runs: Path) -> DemoPrediction:
    """Of test, the first clip that shows something."""
    located = locate_clips(data, "test", read_corpus(data, ("test",))["test"], "fixed")
    there = [clip for clip in located if clip.path is not None]
    clip = next((each for each in there if each.utterance.emotion != EMOTIONS[0]), there[0])
    assert clip.path is not None
    report = predict_files(
        PredictConfig(
            media=(clip.path,),
            model=_run_folder(runs, MODALITIES, 0),
            words=WordsConfig(text=clip.utterance.text),
            out=config.out / "predictions",
            formats=("json", "html"),
        )
    )
    [result] = report.files
    assert result.timeline is not None
    [utterance] = result.timeline.utterances
    assert utterance.prediction is not None
    return DemoPrediction(
        clip=clip.path,
        label=str(clip.utterance.emotion),
        emotion=utterance.prediction.emotion,
        page=result.written[-1],
    )


def _summarise(
    config: DemoConfig,
    extraction: ExtractReport,
    reports: Sequence[Sequence[EvalReport]],
    prediction: DemoPrediction,
    seconds: dict[str, float],
) -> DemoReport:
    any_report = reports[0][0]
    return DemoReport(
        out=config.out,
        clips=sum(split.rows for split in extraction.splits),
        rows=tuple(
            DemoRow(
                modalities=subset,
                emotion_f1=tuple(_f1(r.emotion.model) for r in of_subset),
                sentiment_f1=tuple(_f1(r.sentiment.model) for r in of_subset),
            )
            for subset, of_subset in zip(SUBSETS, reports, strict=True)
        ),
        majority_emotion_f1=_f1(any_report.emotion.majority),
        majority_sentiment_f1=_f1(any_report.sentiment.majority),
        random_modalities=extraction.recipe.random_modalities,
        seconds=seconds,
        plot=config.out / "demo.png",
        prediction=prediction,
    )


def _f1(scores: Scores) -> float:
    """Every row of the generated corpus has both labels."""
    assert scores.weighted_f1 is not None
    return scores.weighted_f1
