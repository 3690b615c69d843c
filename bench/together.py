"""Compares folds x seeds trained as one batched model with one single training, on given caches.

    python -m bench.together --features features [--folds 5] [--seeds 5] [--epochs 3] [--rounds 3]

It also prints the difference between a batched training and the same training alone.
"""

import argparse
import json
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from fusion.data.batches import Rows
from fusion.data.split import FusionData
from fusion.experiments.crossval import CrossvalConfig, load_pooled
from fusion.experiments.folds import make_folds
from fusion.inference.predict import predict
from fusion.training.build import build_model
from fusion.training.fit import FitConfig, Training, fit_together
from pipeline.system.resources import num_cores

CPU = torch.device("cpu")


def make_trainings(config: CrossvalConfig, data: FusionData) -> list[Training]:
    trainings = []
    for fold in make_folds(data, config.folds, seed=0):
        parts = data.take(fold.train), data.take(fold.choose)
        models = [build_model(parts[0], config.model, seed=seed) for seed in range(config.seeds)]
        train, dev = (Rows.prepare(models[0], part, CPU) for part in parts)
        trainings += [
            Training(model=model, train=train, dev=dev, seed=seed)
            for seed, model in enumerate(models)
        ]
    return trainings


def time_fit(trainings: list[Training], config: FitConfig, cores: int) -> tuple[float, float]:
    """(wall seconds, CPU seconds)"""
    wall, cpu = time.perf_counter(), time.process_time()
    fit_together(trainings, config, cores=cores)
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--features", type=Path, required=True)
    for name, default in (("folds", 5), ("seeds", 5), ("epochs", 3), ("rounds", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    config = CrossvalConfig(features=options.features, folds=options.folds, seeds=options.seeds)
    fit = replace(config.fit, epochs=options.epochs, patience=options.epochs)
    data = load_pooled(config)
    time_fit(make_trainings(config, data)[:1], fit, cores=1)  # warm
    rounds = []
    for _ in range(options.rounds):
        alone, together = make_trainings(config, data)[0], make_trainings(config, data)
        one, all_of_them = (
            time_fit([alone], fit, cores=1),
            time_fit(together, fit, cores=num_cores()),
        )
        apart = (
            predict(alone.model, alone.dev).emotion_logits
            - predict(together[0].model, together[0].dev).emotion_logits
        )
        rounds.append(
            {
                "one_s": one[0],
                "together_s": all_of_them[0],
                "ratio_wall": all_of_them[0] / one[0],
                "ratio_cpu": all_of_them[1] / one[1],
                "largest_difference_of_a_logit": float(apart.abs().max()),
            }
        )
    told = {
        "trainings": options.folds * options.seeds,
        "rows": len(data),
        "cores": num_cores(),
        "median": {name: statistics.median(each[name] for each in rounds) for name in rounds[0]},
        "rounds": rounds,
    }
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
