"""The next steps after a checkup: the commands to run, or what is missing for them."""

import shlex

from pipeline.doctor.machine import EncoderState
from pipeline.doctor.report import DoctorReport


def next_steps(report: DoctorReport) -> tuple[str, ...]:
    """Lines in the order in which they are done; a command begins with "meld "."""
    train = next((split for split in report.splits if split.split == "train"), None)
    if train is None or train.facts is None:
        return (
            "train_sent_emo.csv is what a model learns from: make one, or predict your files with "
            "the bundled model",
            "meld predict FILE",
        )
    if not any((*train.facts.emotions.values(), *train.facts.sentiments.values())):
        return (
            "no row of train has an emotion or a sentiment: fill the columns Emotion and "
            "Sentiment, or predict your files with the bundled model",
            "meld predict FILE",
        )
    extraction = _extraction(report)
    return (f"{extraction} --dry-run", extraction, "meld train-fusion")


def _extraction(report: DoctorReport) -> str:
    """The extraction command, with encoders whose weights are available; none is downloaded for
    this."""
    words = ["meld", "extract", "--split", "all", "--data", str(report.data)]
    lacks = {each.modality for each in report.machine.encoders if _is_lacking(each)}
    has_bundled = any(not each.is_default and each.is_present for each in report.machine.encoders)
    if not any(split.found for split in report.splits):
        words += ["--modalities", "text"]
    elif "video" in lacks:
        words += ["--modalities", "text,audio"]
    if "text" in lacks and has_bundled:
        words += ["--text", "minilm"]
    return shlex.join(words)


def _is_lacking(encoder: EncoderState) -> bool:
    return encoder.is_default and not encoder.is_present
