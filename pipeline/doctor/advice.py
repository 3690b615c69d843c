"""The next steps after a checkup: the commands to run, or what is missing for them."""

import shlex

from pipeline.doctor.examine import DoctorConfig
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
    extraction = shlex.join(_extraction(report))
    training = shlex.join(["meld", "train-fusion", *_features(report)])
    return (f"{extraction} --dry-run", extraction, training)


def _features(report: DoctorReport) -> list[str]:
    is_default = report.features == DoctorConfig().features
    return [] if is_default else ["--features", str(report.features)]


def _extraction(report: DoctorReport) -> list[str]:
    """The extraction command, with encoders whose weights are available; none is downloaded for
    this. Options that would have no effect are left out, because extraction refuses them."""
    words = ["meld", "extract", "--split", "all", "--data", str(report.data), *_features(report)]
    lacks = {each.modality for each in report.machine.encoders if _is_lacking(each)}
    has_bundled = any(not each.is_default and each.is_present for each in report.machine.encoders)
    has_clips = any(split.found for split in report.splits)
    if not has_clips:
        words += ["--modalities", "text"]
    elif "video" in lacks:
        words += ["--modalities", "text,audio"]
    if "text" in lacks and has_bundled:
        words += ["--text", "minilm"]
    searched = {"text", "video"} if has_clips else {"text"}
    if report.weights_dir is not None and searched - lacks:
        words += ["--weights-dir", str(report.weights_dir)]
    if has_clips and report.test_clips != DoctorConfig().test_clips:
        words += ["--test-clips", report.test_clips]
    return words


def _is_lacking(encoder: EncoderState) -> bool:
    return encoder.is_default and not encoder.is_present
