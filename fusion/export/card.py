"""Writes a bundle's model card, `README.md`, from its config, its scores and `export.json`."""

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from fusion.export.scores import (
    NOT_MEASURED,
    Say,
    Values,
    accuracy,
    calibration_error,
    classes_table,
    hard_classes,
    leakage_text,
    macro_f1,
    majority_f1,
    scores_table,
    weighted_f1,
)

_RANDOM = "RANDOM WEIGHTS: what it says of this modality means nothing by itself"


def render_card(
    name: str, config: Mapping[str, Any], reports: Mapping[str, Values], export: Mapping[str, Any]
) -> str:
    """Markdown with a YAML head, as the Hugging Face hub reads it.

    name:    of the model
    config:  the bundle's `config.json`
    reports: {split: its `evaluation-<split>.json`}; a split that was not evaluated is left out
    export:  the bundle's `export.json`
    """
    return f"""\
---
{_head(name, config, reports)}
---

# {name}

Says of each utterance of a video which of 7 emotions and 3 sentiments it carries, from
{_list(_modalities(config))}. Made with meld.

## What it is

{_encoders(config, export)}
* Fusion: {_fusion(config)}.
* Trained on {_trained_on(config)}.
* {_calibration(config)}

## How good it is

{_scores(reports)}

{_gate(export)}## What it cannot do

* {_limits(reports)}
* {_what_was_measured(reports)} On other people, languages,
  rooms, cameras and kinds of talk expect worse, and measure it there: `meld evaluate`.
* Its labels are what annotators took an utterance for. It says how an utterance appears, not what a
  person feels.

## Who must be told

In the European Union, whoever uses a system that recognises emotions from biometric data (a face,
a voice) must tell the people exposed to it (AI Act, Regulation (EU) 2024/1689, Art. 50(3), applied
since 2 August 2026). At work and in education such systems are forbidden, except for medical or
safety reasons (Art. 5(1)(f), since 2 February 2025). No decision about a person should rest on
this model. This is no legal advice.

## Data and licences

* Training data: {_count(config, "emotion")} utterances with an emotion label,
  {_count(config, "sentiment")} with a sentiment label. The corpus is not part of this folder: it
  holds no text, picture, sound or label of it. The golden clips are a film of meld's own.
* The encoders keep the licences of their origin: {_list(_encoder_names(config))}.
* Under which licence these weights may be used, their maker says in `license` above. The
  annotations of MELD, if it was trained on them, are published under GPL-3.0.

## How to use it

    meld predict talk.mp4 --model {name}
    meld serve --model {name}
    meld verify {name}     # computes the golden clips on this machine, and compares

Loading it runs no code from this folder: weights are safetensors and ONNX graphs of known
operators, everything else is JSON. To
publish it: `hf upload USER/{name} {name}`.

## Made by

{_made_by(config, export)}
"""


def _head(name: str, config: Mapping[str, Any], reports: Mapping[str, Values]) -> str:
    results = [
        EvalResult(
            task_type=_task(config),
            task_name=f"{head} recognition",
            dataset_type="unknown",
            dataset_name=_measured_on(report) or "the corpus it was trained on",
            dataset_split=split,
            metric_type="f1",
            metric_name=f"weighted F1, {head}",
            metric_value=round(report[head]["model"]["weighted_f1"], 4),
        )
        for split, report in reports.items()
        for head in ("emotion", "sentiment")
        if report[head]["model"]["weighted_f1"] is not None
    ]
    data = ModelCardData(
        license="unknown",
        library_name="meld",
        pipeline_tag=_task(config),
        tags=["emotion-recognition", "sentiment-analysis", "multimodal", *_modalities(config)],
        metrics=["f1"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return data.to_yaml().rstrip()


def _task(config: Mapping[str, Any]) -> str:
    """The hub has no task of several modalities that are classified together."""
    decodes = config["recipe"]["decode"] is not None
    return "video-classification" if decodes else "text-classification"


def _modalities(config: Mapping[str, Any]) -> list[str]:
    return [each["modality"] for each in config["dims"]["modalities"]]


def _encoder_names(config: Mapping[str, Any]) -> list[str]:
    return [each["name"] for each in config["recipe"]["encoders"]]


def _list(words: list[str]) -> str:
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _encoders(config: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    taken = _modalities(config)
    where = {
        "included": "in this folder",
        "linked": "not in this folder",
        "int8": "in this folder with 8-bit weights",
    }[export["encoders"]]
    lines = []
    for each in config["recipe"]["encoders"]:
        if each["modality"] not in taken:
            continue
        kinds = {
            "finetuned": f"fine-tuned from {each['started_from']} weights",
            "none": "no trained weights",
            "random": _RANDOM,
        }
        kind = kinds.get(each["weights"], f"{each['weights']} weights")
        if "random" in each["started_from"]:
            kind += f"; {_RANDOM}"
        lines.append(
            f"* {each['modality'].capitalize()}: `{each['name']}`, {kind}, {each['precision']}, "
            f"{where}{_hashes(each['weights_hash'])}."
        )
    return "\n".join(lines)


def _hashes(told: str) -> str:
    """Of each file that was loaded the beginning of its hash, of random weights their seed."""
    found = re.findall(r"sha256:(\w{12})|(seed \d+)", told)
    return "".join(f", SHA-256 `{digest}`" if digest else f", {seed}" for digest, seed in found)


def _fusion(config: Mapping[str, Any]) -> str:
    model = config["dims"]["model"]
    told = f"{model['fusion']}, {model['hidden']} hidden units"
    if model["context"] == "none":
        return f"{told}, each utterance by itself"
    seen = "before and after" if model["future"] else "before"
    return f"{told}, and what was said {seen} it in the dialogue"


def _trained_on(config: Mapping[str, Any]) -> str:
    told = f"{_count(config, 'emotion')} utterances"
    if config["finetuned"]:
        told += f"; the encoders of {_list(list(config['finetuned']))} were trained with it"
    return told


def _count(config: Mapping[str, Any], head: str) -> str:
    return f"{sum(config['label_counts'][head]):,}"


def _calibration(config: Mapping[str, Any]) -> str:
    if config["decoding"] is None:
        return "Its probabilities are not calibrated: there was no dev split with labels."
    return (
        "Calibrated on dev: one temperature per head, and the labels of both heads chosen together."
    )


def _scores(reports: Mapping[str, Values]) -> str:
    if not reports:
        return (
            "It was not measured: `meld evaluate` on its run writes scores, which an export takes "
            "over."
        )
    parts = [] if "test" in reports else ["It was never evaluated on test."]
    for split, report in reversed(list(reports.items())):  # test first
        chosen = (
            "; it was chosen by this split" if split == "dev" and not _measured_on(report) else ""
        )
        rows: dict[str, tuple[Say, Values]] = {
            "**weighted F1**": (weighted_f1, report),
            "accuracy": (accuracy, report),
            "macro F1": (macro_f1, report),
            "weighted F1 of always saying the most frequent class": (majority_f1, report),
            "expected calibration error": (calibration_error, report),
        }
        parts += [
            f"### {split}\n\n{report['rows']:,} utterances{_of_what(report)}{chosen}. In brackets: "
            "the 95 % interval of\na bootstrap over dialogues.",
            scores_table(rows),
            _subsets(report),
        ]
        if split == "test" or "test" not in reports:
            parts += [classes_table(report, head) for head in ("emotion", "sentiment")]
            parts.append(leakage_text(report))
    return "\n\n".join(filter(None, parts))


def _measured_on(report: Values) -> str | None:
    """The corpus or features that were named for the evaluation; None where it read the run's own.
    They may be another corpus: a run does not know."""
    return report["data"] or report["features"]


def _of_what(report: Values) -> str:
    named = _measured_on(report)
    return f" of `{named}`, which was named for this evaluation" if named else ""


def _what_was_measured(reports: Mapping[str, Values]) -> str:
    if not reports:
        return "It was trained on one corpus, and measured on none."
    named = [_measured_on(each) for each in reports.values()]
    corpora = dict.fromkeys("the corpus above" if each is None else f"`{each}`" for each in named)
    return f"It was measured on {_list([*corpora])} and on nothing else."


def _gate(export: Mapping[str, Any]) -> str:
    """What a smaller model cost, or nothing."""
    gate = export["gate"]
    if gate is None:
        return ""
    lines = [
        "| | MB | ms, 1 core | ms, all cores | times faster | emotion F1 | change | sentiment F1 "
        "| change | same emotion |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for each in gate["variants"]:
        heads = " | ".join(_head_cost(each[head]) for head in ("emotion", "sentiment"))
        lines.append(
            f"| {each['name']} | {each['num_bytes'] / 1e6:.1f} | {each['ms_one_core']:.1f} "
            f"| {each['ms_all_cores']:.1f} | {each['speed_one_core']:.2f}, "
            f"{each['speed_all_cores']:.2f} | {heads} | {each['emotion']['agreement']:.1%} |"
        )
    table = "\n".join(lines)
    return f"""\
### What the smaller model costs

{_made_smaller(export)} On
{gate["split"]} ({gate["rows"]:,} utterances) it was compared with the run, utterance by utterance;
the change is in points of weighted F1, with the 95 % interval of a paired bootstrap over dialogues.
Times are of one utterance by itself, without decoding, on the machine that exported; how many times
faster, on one core and on all, is measured in turns with the run.

{table}

"""


def _made_smaller(export: Mapping[str, Any]) -> str:
    """What was done, and whose the scores above are."""
    if export["pruned"] is not None:
        told = (
            f"This bundle is the run `{export['run']}` with {100 * export['pruned']:g} % of the "
            "units of each\nlayer removed, and fine-tuned again."
        )
        computes = {"int8": " It computes with 8-bit weights."}
        return told + computes.get(export["encoders"], "")
    weights = "8-bit weights" if export["encoders"] == "int8" else "encoders in bfloat16"
    return f"The scores above are those of the run in float32. This bundle computes with {weights}."


def _head_cost(cost: Mapping[str, Any]) -> str:
    f1, change = cost["f1"], cost["change"]
    if f1 is None or change is None:
        return f"{NOT_MEASURED} | {NOT_MEASURED}"
    low, high = 100 * change["low"], 100 * change["high"]
    return f"{f1['value']:.3f} | {100 * change['value']:+.2f} [{low:+.2f}, {high:+.2f}]"


def _subsets(report: Values) -> str:
    if len(report["subsets"]) < 2:
        return ""
    lines = ["| from these modalities alone | emotion F1 | sentiment F1 |", "| --- | --- | --- |"]
    for each in report["subsets"]:
        scores = [each[f"{head}_f1"] for head in ("emotion", "sentiment")]
        told = ["-" if score is None else f"{score:.3f}" for score in scores]
        lines.append(f"| {' + '.join(each['modalities'])} | {' | '.join(told)} |")
    return "\n".join(lines)


def _limits(reports: Mapping[str, Values]) -> str:
    report = reports.get("test") or reports.get("dev")
    if report is None or report["emotion"]["model"]["weighted_f1"] is None:
        return "Which emotions it cannot tell was not measured."
    return hard_classes(report)


def _made_by(config: Mapping[str, Any], export: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {number}" for name, number in export["versions"].items())
    return (
        f"`meld export`, from the run `{export['run']}`; feature recipe "
        f"`{config['fingerprint'][:12]}`, revision\n{config['recipe']['revision']}; {versions}. "
        "This file is written from\n`config.json`, the evaluations and `export.json` beside it."
    )
