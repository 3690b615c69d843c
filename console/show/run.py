"""A run's settings, its results and the commands that reproduce it (`meld info RUN`)."""

import json

from console.printing import print_json
from console.show.recipe import print_foreign, print_random
from fusion.evaluation.test_evaluations import describe_evaluations
from fusion.reporting.run_info import RunInfo


def show_run(info: RunInfo, as_json: bool) -> None:
    if as_json:
        print_json(info.to_dict())
        return
    features = "features that were not passed on" if info.features is None else info.features
    members = f"{info.members} models averaged, " if info.members > 1 else ""
    print(f"{info.run}: {members}{' + '.join(info.modalities)}, trained on {features}")
    for spec in info.recipe.encoders:
        tuned = " (the run's own)" if spec.modality in info.finetuned else ""
        print(f"  {spec.modality}: {spec.name}, weights {spec.weights}{tuned}, {spec.precision}")
    print(f"  recipe of the features: {info.recipe.fingerprint[:12]} (meld info CACHE shows it)")
    print("  settings other than the defaults:" if info.settings else "  settings: all defaults")
    for name, value in info.settings.items():
        print(f"    {name} = {json.dumps(value)}")
    if info.set_aside is not None:
        print(f"  {info.set_aside}")
    _show_training(info)
    for split in info.evaluated:
        print(f"  evaluated: {info.run / f'evaluation-{split}.json'}")
    if info.test_evaluations:
        print(f"  {describe_evaluations(info.test_evaluations)}")
    if info.versions:
        print(
            "  made with " + ", ".join(f"{name} {value}" for name, value in info.versions.items())
        )
    print_random(info.recipe.random_modalities)
    print_foreign(info.recipe.foreign)
    print("commands that reproduce it:")
    if info.remake.note:
        print(f"  ({info.remake.note})")
    for command in info.remake.commands:  # unbroken, to be copied
        print(f"  {command}")
    for name, text in info.remake.files.items():
        print(f"with {name}:")
        print("\n".join(f"  {line}" for line in text.splitlines()))


def _show_training(info: RunInfo) -> None:
    if info.best is None:
        return
    scores = (("emotion", info.best.dev_emotion_f1), ("sentiment", info.best.dev_sentiment_f1))
    told = ", ".join(f"{head} {score:.3f}" for head, score in scores if score is not None)
    mean = ", mean of the members" if info.members > 1 else ""
    print(
        f"  best epoch {info.best.epoch} of {info.history[-1].epoch}, weighted F1 on dev{mean}: "
        f"{told} "
        f"(all epochs: {info.run / 'history.jsonl'})"
    )
