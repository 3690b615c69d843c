"""Measures how well audio encoders recognise emotions of speakers they were not trained on.

    python -m bench.speech_emotion --data FOLDER [--audio spectrogram --audio prosody ...]

The folder holds EmoDB (Burkhardt et al. 2005): acted German sentences as 16 kHz WAV files whose
names give the speaker (characters 1 and 2) and the emotion (6: W anger, F joy, N neutral, T
sadness; other emotions are not used). Each speaker is left out once. The table has the unweighted
average recall of

    regression   logistic regression on standardised features; its strength is chosen by leaving
                 out one more of the training speakers
    fusion       the fusion model as `meld train-fusion` trains it without a dev cache: a speaker
                 (a dialogue here) is held out to choose the epoch; mean over seeds
    refit        the same with `--refit`
    ensemble     the seeds of refit as one model: `--refit --ensemble SEEDS`

the last three with `model.layers` as `--layers` says, and with 95 % bootstrap intervals over the
utterances of each speaker and emotion (percentiles of 2,000 samples). There are too few speakers
to resample them.
"""

import argparse
import sys
import time
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import recall_score
from sklearn.model_selection import GridSearchCV, LeaveOneGroupOut
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fusion.data.batches import Rows
from fusion.data.set_aside import DEFAULT_SHARE, choose_dialogues
from fusion.data.split import FusionData
from fusion.inference.predict import predict
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from fusion.training.config import check_layers
from fusion.training.fit import FitConfig, Training, fit_together
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import EMOTIONS, SENTIMENTS, ClipKey, DecodedClip, Utterance

EMOTION_OF = {"W": "anger", "F": "joy", "N": "neutral", "T": "sadness"}
SENTIMENT_OF = {"anger": "negative", "joy": "positive", "neutral": "neutral", "sadness": "negative"}
CLASSES = sorted(EMOTIONS.index(name) for name in EMOTION_OF.values())
STRENGTHS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
DRAWS = 2000

Labels = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """One row per utterance; speakers are numbers from 0."""

    clips: tuple[DecodedClip, ...]
    speaker: Labels
    emotion: Labels


def main() -> None:
    arguments = _parse()
    corpus = _read(arguments.data)
    if corpus is None:
        print(f"skipped: no WAV files of EmoDB in {arguments.data}", file=sys.stderr)
        return
    torch.set_num_threads(1)
    names = [EMOTIONS[number] for number in CLASSES]
    table = Table("audio", "dim", "ms / clip", "model", "recall", "95 %", *names)
    for audio in arguments.audio:
        data, milliseconds = _encode(corpus, audio)
        config = ModelConfig(layers=arguments.layers)
        check_layers(data.features, config)
        refit = _fusion(data, corpus, config, arguments.seeds, refit=True)
        rows = {
            "regression": [_regression(data, corpus)],
            "fusion": _labels(_fusion(data, corpus, config, arguments.seeds, refit=False)),
            "refit": _labels(refit),
            "ensemble": _labels([np.mean(refit, axis=0)]),
        }
        for model, predicted in rows.items():
            low, high = _interval(corpus, predicted)
            table.add_row(
                audio,
                str(data.features["audio"].shape[1:].numel()),
                f"{milliseconds:.0f}",
                model,
                f"{_recall(corpus.emotion, predicted):.3f}",
                f"{low:.3f} to {high:.3f}",
                *(f"{each:.2f}" for each in _recalls(corpus.emotion, predicted)),
            )
    console = Console(width=120)  # printed to a file too
    speakers = len(set(corpus.speaker.tolist()))
    console.print(f"{len(corpus.clips)} utterances, {speakers} speakers, {arguments.seeds} seeds")
    console.print(table)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder with EmoDB's WAV files")
    parser.add_argument("--audio", action="append", help="audio encoder; may be given repeatedly")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--layers", choices=("mix", "beside"), default="mix", help="model.layers")
    arguments = parser.parse_args()
    arguments.audio = arguments.audio or ["spectrogram", "prosody", "spectrogram,prosody"]
    return arguments


def _read(folder: Path) -> Corpus | None:
    files = [path for path in sorted(folder.glob("*.wav")) if path.stem[5:6] in EMOTION_OF]
    if not files:
        return None
    speakers = sorted({path.stem[:2] for path in files})
    clips = [
        DecodedClip(
            utterance=Utterance(
                key=ClipKey("train", speakers.index(path.stem[:2]), row),
                text="",
                speaker=path.stem[:2],
            ),
            waveform=_waveform(path),
        )
        for row, path in enumerate(files)
    ]
    return Corpus(
        clips=tuple(clips),
        speaker=np.array([clip.utterance.key.dialogue_id for clip in clips]),
        emotion=np.array([EMOTIONS.index(EMOTION_OF[path.stem[5]]) for path in files]),
    )


def _waveform(path: Path) -> NDArray[np.float32]:
    with wave.open(str(path)) as file:
        if (file.getframerate(), file.getnchannels(), file.getsampwidth()) != (16_000, 1, 2):
            raise SystemExit(f"{path}: not 16 kHz, mono, 16 bit, as EmoDB is")
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return (samples / 32768).astype(np.float32)


def _encode(corpus: Corpus, audio: str) -> tuple[FusionData, float]:
    """The features, and CPU milliseconds per clip."""
    choice = choose_encoder("audio", EncoderRequest(audio=audio), "float32")
    encoders = Encoders([choice], DecodeConfig())
    encode_clips(encoders, corpus.clips[:2])
    started_s = time.process_time()
    encoded = encode_clips(encoders, corpus.clips)
    milliseconds = 1000 * (time.process_time() - started_s) / len(encoded)
    features = torch.from_numpy(np.stack([each.raw["audio"] for each in encoded]))
    sentiments = [SENTIMENT_OF[EMOTIONS[label]] for label in corpus.emotion]
    data = FusionData(
        split="train",
        recipe=FeatureRecipe(encoders=(choice.spec,), decode=DecodeConfig()),
        input="raw",
        modalities=("audio",),
        features={"audio": features},
        present=torch.ones(len(encoded), 1, dtype=torch.bool),
        emotion=torch.from_numpy(corpus.emotion),
        sentiment=torch.tensor([SENTIMENTS.index(name) for name in sentiments]),
        keys=tuple(clip.utterance.key for clip in corpus.clips),
        text=("",) * len(encoded),
        speaker=tuple(clip.utterance.speaker for clip in corpus.clips),
    )
    return data, milliseconds


def _folds(corpus: Corpus) -> list[tuple[Labels, Labels]]:
    """(training rows, test rows) for each speaker."""
    return [
        (np.flatnonzero(corpus.speaker != each), np.flatnonzero(corpus.speaker == each))
        for each in np.unique(corpus.speaker)
    ]


def _regression(data: FusionData, corpus: Corpus) -> Labels:
    values = data.features["audio"].flatten(1).numpy()
    predicted = np.empty_like(corpus.emotion)
    for train, test in _folds(corpus):
        model = GridSearchCV(
            make_pipeline(
                StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=2000)
            ),
            {"logisticregression__C": STRENGTHS},
            scoring="recall_macro",
            cv=LeaveOneGroupOut(),
        )
        model.fit(values[train], corpus.emotion[train], groups=corpus.speaker[train])
        predicted[test] = model.predict(values[test])
    return predicted


def _labels(probabilities: Sequence[NDArray[np.float64]]) -> list[Labels]:
    return [each.argmax(axis=1) for each in probabilities]


def _fusion(
    data: FusionData, corpus: Corpus, config: ModelConfig, seeds: int, *, refit: bool
) -> list[NDArray[np.float64]]:
    """For each seed, the probabilities [rows, emotions] of every row by the model trained without
    its speaker."""
    device = torch.device("cpu")
    predicted = [np.zeros((len(corpus.emotion), len(EMOTIONS))) for _ in range(seeds)]
    measured: list[tuple[int, Labels]] = []
    trainings: list[Training] = []
    for train, test in _folds(corpus):
        whole = data.take(train)
        aside = choose_dialogues(whole, DEFAULT_SHARE)
        own, dev = (
            (whole, whole) if refit else (aside.part(whole, "train"), aside.part(whole, "dev"))
        )
        for seed in range(seeds):
            model = build_model(own, config, seed=seed)
            trainings.append(
                Training(
                    model=model,
                    train=Rows.prepare(model, own, device),
                    dev=Rows.prepare(model, dev, device),
                    seed=seed,
                    chooses_epoch=not refit,
                )
            )
            measured.append((seed, test))
    fit_together(trainings, FitConfig())
    for training, (seed, test) in zip(trainings, measured, strict=True):
        rows = Rows.prepare(training.model, data.take(test), device)
        logits = predict(training.model, rows).emotion_logits
        predicted[seed][test] = logits.double().softmax(dim=1).numpy()
    return predicted


def _recalls(emotion: Labels, predicted: Sequence[Labels]) -> NDArray[np.float64]:
    """[classes], mean over seeds."""
    each = [recall_score(emotion, one, average=None, labels=CLASSES) for one in predicted]
    return np.mean(each, axis=0)


def _recall(emotion: Labels, predicted: Sequence[Labels]) -> float:
    return float(_recalls(emotion, predicted).mean())


def _interval(corpus: Corpus, predicted: Sequence[Labels]) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    strata = [
        np.flatnonzero((corpus.speaker == speaker) & (corpus.emotion == emotion))
        for speaker in np.unique(corpus.speaker)
        for emotion in CLASSES
    ]
    right = np.mean([one == corpus.emotion for one in predicted], axis=0)  # [rows]
    counts = {each: (corpus.emotion == each).sum() for each in CLASSES}
    weight = np.array([1 / (counts[label] * len(CLASSES)) for label in corpus.emotion])
    draws = np.zeros(DRAWS)
    for rows in (rows for rows in strata if len(rows)):
        drawn = rng.choice(rows, (DRAWS, len(rows)))
        draws += (right[drawn] * weight[drawn]).sum(axis=1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


if __name__ == "__main__":
    main()
