"""Loads and checks the rows to train on and the rows that choose the epoch."""

from dataclasses import dataclass
from pathlib import Path

from fusion.data.load import load_split
from fusion.data.set_aside import DEFAULT_SHARE, SetAside, choose_dialogues
from fusion.data.split import FusionData, check_trainable
from fusion.inference.checkpoint import Checkpoint
from fusion.labels import HEADS, Head
from fusion.model.dims import InputKind
from fusion.training.losses import LossConfig
from pipeline.errors import InputError, MismatchError, UsageError
from pipeline.schema import Modality


@dataclass(frozen=True, kw_only=True)
class Parts:
    """train: rows to train on; dev: rows that choose the epoch

    set_aside: the dialogues of train that dev is; None where dev has a cache
    untrained: untrained heads; their labels are removed from dev, so that they do not choose the
    epoch
    """

    train: FusionData
    dev: FusionData
    set_aside: SetAside | None
    untrained: tuple[Head, ...]


def load_parts(
    features: Path,
    *,
    modalities: tuple[Modality, ...] | None,
    input: InputKind,
    dev_share: float | None,
    loss: LossConfig,
    start: Checkpoint | None = None,
) -> Parts:
    """Train and dev of a features folder.

    dev_share: as in `TrainConfig`
    start: the run of a warm start; the dialogues that it held out stay held out

    Raises UsageError, InputError, StorageError or MismatchError; the message says what to do.
    """
    whole = load_split(features, "train", modalities=modalities, input=input)
    set_aside = _set_aside(features, whole, dev_share, start)
    if set_aside is None:
        train = whole
        dev = load_split(features, "dev", modalities=train.modalities, input=input)
    else:
        train, dev = set_aside.part(whole, "train"), set_aside.part(whole, "dev")
    check_trainable(train, dev)
    untrained = find_untrained(train, loss, start)
    dev = dev.without_labels(untrained)
    check_choosable(dev, untrained)
    return Parts(train=train, dev=dev, set_aside=set_aside, untrained=untrained)


def find_untrained(
    train: FusionData, loss: LossConfig, start: Checkpoint | None = None
) -> tuple[Head, ...]:
    """Heads without labels in train, or with a loss weight of 0, that `start` has not trained
    either. Raises InputError where no head can be trained."""
    weights: dict[Head, float] = {
        "emotion": loss.emotion_weight,
        "sentiment": loss.sentiment_weight,
    }
    reached = [head for head in train.labelled_heads if weights[head] > 0]
    if not reached:
        labels = " and ".join(train.labelled_heads) or "no"
        raise InputError(
            f"nothing to learn from {len(train)} rows of train: they have {labels} labels, and the "
            f"losses count {loss.emotion_weight:g} (emotion) and {loss.sentiment_weight:g} "
            "(sentiment)"
        )
    before = HEADS if start is None else start.untrained
    return tuple(head for head in HEADS if head in before and head not in reached)


def check_choosable(dev: FusionData, untrained: tuple[Head, ...]) -> None:
    """dev: less the labels of `untrained`. Raises InputError where nothing of it can choose."""
    if not dev.has_labels:
        learned = " and ".join(head for head in HEADS if head not in untrained)
        raise InputError(
            f"none of {len(dev)} rows of dev has a label of what is learned from train "
            f"({learned}), so nothing can choose the epoch; label dev as train is, or set "
            "dialogues of train aside with --dev-share"
        )


def _set_aside(
    features: Path, train: FusionData, dev_share: float | None, start: Checkpoint | None
) -> SetAside | None:
    if start is not None and start.set_aside is not None:
        _check_same_share(dev_share, start.set_aside)
        return start.set_aside
    if dev_share is None and (features / "dev.h5").is_file():
        return None
    asked = f"--dev-share {dev_share}" if dev_share is not None else f"{features}: no dev.h5"
    if start is not None:
        kind = InputError if dev_share is None else UsageError
        raise kind(
            f"{asked}: the run of --start learned from all of train, so nothing of it can choose "
            "the epoch; extract dev as train was, or train without --start"
        )
    tuned = [spec.modality for spec in train.recipe.encoders if spec.weights == "finetuned"]
    learned = [name for name in tuned if name in train.modalities]
    if learned:
        raise MismatchError(
            f"{asked}: these encoders ({', '.join(learned)}) were fine-tuned on the labels of "
            "train, so no dialogue of it is unseen; go on from that run with --start, which keeps "
            "the dialogues that it set aside, or extract dev with its encoders"
        )
    has_dev = (features / "dev.h5").is_file()
    instead = "leave --dev-share out: dev has a cache" if has_dev else "extract a dev split"
    return choose_dialogues(train, dev_share or DEFAULT_SHARE, asked=asked, instead=instead)


def _check_same_share(dev_share: float | None, set_aside: SetAside) -> None:
    if dev_share is not None and dev_share != set_aside.share:
        raise UsageError(
            f"--dev-share {dev_share}: the run of --start set {set_aside.share} of train aside and "
            "learned from the rest, so the same dialogues must choose; leave it out"
        )
