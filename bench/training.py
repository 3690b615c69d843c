"""Compares training on the cache with its bare arithmetic and a DataLoader over HDF5 rows."""

import time
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from fusion.data.batches import Rows
from fusion.data.split import FusionData
from fusion.model.dialogue import Turns
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from fusion.training.fit import FitConfig, fit
from fusion.training.losses import MultiTaskLoss
from pipeline.recipe import EncoderSpec, FeatureRecipe
from pipeline.schema import EMOTIONS, MODALITIES, SENTIMENTS, ClipKey, Modality, Split

DIMS: dict[Modality, int] = {"text": 768, "video": 512, "audio": 608}
TRAIN_ROWS = 9_989
DEV_ROWS = 1_109
BATCH_SIZE = 256


@dataclass(frozen=True, kw_only=True)
class TrainingTimes:
    """Seconds per epoch over 9,989 rows of random features, in batches of 256.

    arithmetic_s: on one thread, which `fit` takes too, or on all, whichever is faster: on a busy
        machine threads wait for each other after every kernel
    """

    arithmetic_s: float
    fit_s: float
    dataloader_s: float


def measure_training(folder: Path, epochs: int, num_threads: int) -> TrainingTimes:
    torch.set_num_threads(num_threads)
    train, dev = _made_up("train", TRAIN_ROWS), _made_up("dev", DEV_ROWS)
    config = FitConfig(epochs=epochs, patience=epochs, batch_size=BATCH_SIZE)
    started_s = time.perf_counter()
    fit(_model(train), train, dev, config, seed=0)
    fit_s = (time.perf_counter() - started_s) / epochs
    arithmetic_s = []
    for threads in sorted({1, num_threads}):
        torch.set_num_threads(threads)
        arithmetic_s.append(_time_arithmetic(train, config, epochs))
    return TrainingTimes(
        arithmetic_s=min(arithmetic_s),
        fit_s=fit_s,
        dataloader_s=_time_dataloader(folder / "rows.h5", train, config),
    )


def _made_up(split: Split, rows: int) -> FusionData:
    generator = torch.Generator().manual_seed(0)
    return FusionData(
        split=split,
        input="raw",
        modalities=MODALITIES,
        features={m: torch.randn(rows, 1, DIMS[m], generator=generator) for m in MODALITIES},
        present=torch.ones(rows, len(MODALITIES), dtype=torch.bool),
        emotion=torch.randint(len(EMOTIONS), (rows,), generator=generator),
        sentiment=torch.randint(len(SENTIMENTS), (rows,), generator=generator),
        keys=tuple(ClipKey(split, 0, row) for row in range(rows)),
        text=("",) * rows,
        speaker=("",) * rows,
        recipe=FeatureRecipe(encoders=tuple(map(_made_up_encoder, MODALITIES)), decode=None),
        projection_hash=None,
    )


def _made_up_encoder(modality: Modality) -> EncoderSpec:
    return EncoderSpec(
        modality=modality,
        name="made up",
        weights="none",
        weights_hash="made up",
        pooling="none",
        precision="float32",
    )


def _model(train: FusionData) -> FusionModel:
    dims = FusionDims(
        modalities=tuple(ModalityDims(modality=m, layers=1, dim=DIMS[m]) for m in MODALITIES),
        input="raw",
        model=ModelConfig(),
    )
    model = FusionModel(dims)
    model.fit_standardisation(train.features, train.present)
    return model


def _step(
    model: FusionModel, optimiser: torch.optim.Optimizer, loss: MultiTaskLoss, batch: Rows
) -> None:
    value = loss(model.fuse(batch.features, batch.present), batch.emotion, batch.sentiment)
    optimiser.zero_grad()
    value.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def _time_arithmetic(train: FusionData, config: FitConfig, epochs: int) -> float:
    """Forward, backward and step on one fixed batch, without loading data or measuring scores."""
    model = _model(train)
    rows = Rows.prepare(model, train, torch.device("cpu"))
    batch = rows.pick(torch.arange(BATCH_SIZE))
    loss = MultiTaskLoss.from_labels(config.loss, rows.emotion, rows.sentiment)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    steps = -(-TRAIN_ROWS // BATCH_SIZE)
    model.train()
    started_s = time.perf_counter()
    for _ in range(epochs * steps):
        _step(model, optimiser, loss, batch)
    return (time.perf_counter() - started_s) / epochs


class _Hdf5Rows(Dataset[dict[str, torch.Tensor]]):
    """Reads one row of every array per access, as feature files are usually read."""

    def __init__(self, path: Path) -> None:
        self.file = h5py.File(path, "r")

    def __len__(self) -> int:
        return len(self.file["emotion"])

    def __getitem__(self, row: int) -> dict[str, torch.Tensor]:
        return {name: torch.as_tensor(self.file[name][row]) for name in self.file}


def _time_dataloader(path: Path, train: FusionData, config: FitConfig) -> float:
    with h5py.File(path, "w") as file:
        for name, values in train.features.items():
            file.create_dataset(name, data=values.numpy(), chunks=(128, *values.shape[1:]))
        file["present"] = train.present.numpy()
        file["emotion"] = train.emotion.numpy().astype(np.int64)
        file["sentiment"] = train.sentiment.numpy().astype(np.int64)
    model = _model(train)
    loss = MultiTaskLoss.from_labels(config.loss, train.emotion, train.sentiment)
    optimiser = torch.optim.AdamW(model.parameters(), lr=config.learning_rate, fused=True)
    model.train()
    started_s = time.perf_counter()
    for batch in DataLoader(_Hdf5Rows(path), batch_size=BATCH_SIZE, shuffle=True):
        rows = Rows(
            features={name: batch[name] for name in MODALITIES},
            present=batch["present"],
            turns=Turns(*torch.zeros(3, len(batch["emotion"]), dtype=torch.int64)),
            emotion=batch["emotion"],
            sentiment=batch["sentiment"],
        )
        _step(model, optimiser, loss, rows)
    return time.perf_counter() - started_s
