"""The choices of options, and the options that several commands share.

An option that one command alone has stands with that command in cli.py. Defaults live in the
configs, so an option that was not typed is None, and what its help says of a default is written
out by hand.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer


class SplitChoice(StrEnum):
    train = "train"
    dev = "dev"
    test = "test"
    all = "all"


class EvaluationSplit(StrEnum):
    train = "train"
    dev = "dev"
    test = "test"


class MeasuredSplit(StrEnum):
    dev = "dev"
    test = "test"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class PrecisionChoice(StrEnum):
    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class LogChoice(StrEnum):
    plain = "plain"
    json = "json"


class FusionChoice(StrEnum):
    late = "late"
    early = "early"
    hybrid = "hybrid"
    gated = "gated"
    attention = "attention"


class GroupChoice(StrEnum):
    dialogue = "dialogue"
    speaker = "speaker"


class ContextChoice(StrEnum):
    none = "none"
    dialogue = "dialogue"


class TestClipsChoice(StrEnum):
    fixed = "fixed"
    legacy = "legacy"


class InputChoice(StrEnum):
    raw = "raw"
    embedding = "embedding"


AsJson = Annotated[
    bool, typer.Option("--json", help="One JSON object on stdout; progress and logs on stderr.")
]
ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", help="TOML file with settings; the command line wins.", dir_okay=False
    ),
]

# What is read: a corpus, caches, a run, weights.
Corpus = Annotated[
    Path | None, typer.Option(help="Folder with the CSVs and split folders.  [default: data]")
]
Features = Annotated[
    Path | None, typer.Option(help="Folder of the feature caches.  [default: features]")
]
FeaturesOfRun = Annotated[
    Path | None, typer.Option(help="Folder of the feature caches.  [default: the run's own]")
]
TrainedRun = Annotated[Path, typer.Argument(help="Folder of a trained run.")]
WeightsDir = Annotated[
    Path | None, typer.Option(help="Folder with weights, looked at before the usual caches.")
]
MeasuredOn = Annotated[EvaluationSplit, typer.Option(help="Which split.")]
ModalityNames = Annotated[
    str | None, typer.Option(help="Comma-separated subset of text,video,audio.")
]

# The machine that does the work.
DeviceOption = Annotated[
    Device | None, typer.Option(help="auto is a GPU where there is one.  [default: auto]")
]
Cores = Annotated[int | None, typer.Option(help="CPU cores.  [default: all]")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        help="Existing Ray cluster, as auto or host:port. What --device and --precision leave open "
        "is decided where the work runs."
    ),
]

# A training, and the run it leaves.
InputKindOption = Annotated[
    InputChoice | None,
    typer.Option("--input", help="Raw features or 128-d embeddings.  [default: raw]"),
]
FusionOption = Annotated[
    FusionChoice | None, typer.Option("--fusion", help="How modalities meet.  [default: late]")
]
ContextOption = Annotated[
    ContextChoice | None,
    typer.Option(
        "--context",
        help="dialogue: each utterance sees the features of those said before it.  [default: none]",
    ),
]
FutureOption = Annotated[
    bool, typer.Option("--future", help="With --context dialogue: those said after it as well.")
]
DevShare = Annotated[
    float | None,
    typer.Option(
        "--dev-share",
        help="Share of train's dialogues, above 0 and below 1, that chooses the epoch in place of "
        "dev and is not learned from.  [default: 0.1 where there is no dev cache, else none]",
    ),
]
Seed = Annotated[int | None, typer.Option(help="Decides everything that is random.  [default: 0]")]
MostEpochs = Annotated[int | None, typer.Option(help="At most so many.  [default: 20]")]
OverwriteRun = Annotated[
    bool, typer.Option("--overwrite", help="Replace the run in --out; any other folder is refused.")
]
