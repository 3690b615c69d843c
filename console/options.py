"""The choices of options, and the options that several commands share.

An option of a single command is declared with it in console/commands/. Defaults are set in the
configs, so an option that was not typed is None, and the default in its help text is written by
hand (tests/console/test_defaults.py compares them).
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


class RuntimeChoice(StrEnum):
    auto = "auto"
    torch = "torch"
    onnx = "onnx"


class QuantiseChoice(StrEnum):
    int8 = "int8"
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


class TrackerChoice(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"


class InputChoice(StrEnum):
    raw = "raw"
    embedding = "embedding"


AsJson = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON object on stdout; progress and logs go to stderr."),
]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="TOML file with settings; options override it.", dir_okay=False),
]

# What is read: a corpus, caches, a run, weights.
Corpus = Annotated[
    Path | None,
    typer.Option(help="Corpus: folder with the CSVs and the folders of clips.  [default: data]"),
]
Features = Annotated[
    Path | None, typer.Option(help="Folder of the feature caches.  [default: features]")
]
FeaturesOfRun = Annotated[
    Path | None, typer.Option(help="Folder of the feature caches.  [default: the run's own]")
]
TrainedRun = Annotated[Path, typer.Argument(help="Folder of a trained run.")]
WeightsDir = Annotated[
    Path | None,
    typer.Option(
        help="Folder that is searched for pretrained weights before the libraries' caches."
    ),
]
PredictingModel = Annotated[
    Path | None,
    typer.Option(help="Folder of a trained run.  [default: meld-text, which reads text only]"),
]
EncoderOwner = Annotated[
    Path | None,
    typer.Option(
        help="Fine-tuned run that owns the model's encoders, if it is not found by itself."
    ),
]
MeasuredOn = Annotated[EvaluationSplit, typer.Option(help="Split to measure on.")]
ModalityNames = Annotated[
    str | None, typer.Option(help="Comma-separated subset of text,video,audio.")
]

# The machine that does the work.
DeviceOption = Annotated[
    Device | None, typer.Option(help="auto uses a GPU if there is one.  [default: auto]")
]
ServedPrecision = Annotated[
    PrecisionChoice | None,
    typer.Option(
        help="Precision that the encoders compute in; auto is that of the training.  "
        "[default: auto]"
    ),
]
RuntimeOption = Annotated[
    RuntimeChoice | None,
    typer.Option(
        help="What computes the model: torch, or onnx for a bundle with ONNX graphs; auto is torch "
        "if it is installed and the encoders are there for it.  [default: auto]"
    ),
]
Port = Annotated[
    int | None, typer.Option(help="Port to listen on; 0 takes a free one.  [default: 8000]")
]
Cores = Annotated[int | None, typer.Option(help="Number of CPU cores to use.  [default: all]")]
ClusterAddress = Annotated[
    str | None,
    typer.Option(
        help="Existing Ray cluster to run on: auto or host:port. A --device or --precision of "
        "auto is then decided by the cluster's machines."
    ),
]

# A training, and the run it leaves.
InputKindOption = Annotated[
    InputChoice | None,
    typer.Option(
        "--input", help="Input of the model: raw features or 128-d embeddings.  [default: raw]"
    ),
]
FusionOption = Annotated[
    FusionChoice | None,
    typer.Option("--fusion", help="Fusion type: how the modalities are combined.  [default: late]"),
]
ContextOption = Annotated[
    ContextChoice | None,
    typer.Option(
        "--context",
        help="dialogue: the model sees the features of the dialogue's earlier utterances as well.  "
        "[default: none]",
    ),
]
FutureOption = Annotated[
    bool,
    typer.Option(
        "--future", help="With --context dialogue: the model sees the later utterances as well."
    ),
]
DevShare = Annotated[
    float | None,
    typer.Option(
        "--dev-share",
        help="Share of train's dialogues (above 0, below 1) that is held out as dev: it chooses "
        "the epoch and is not trained on.  [default: 0.1 if there is no dev cache, else none]",
    ),
]
Seed = Annotated[
    int | None, typer.Option(help="Random seed; decides everything that is random.  [default: 0]")
]
Ensemble = Annotated[
    int | None,
    typer.Option(
        help="Number of models to train, of so many seeds; their probabilities are averaged, and "
        "the run is used as one model.  [default: 1]"
    ),
]
Teacher = Annotated[
    Path | None,
    typer.Option(
        "--distil",
        help="Teacher: a trained run, such as an ensemble, from whose probabilities the model "
        "learns beside the labels.",
    ),
]
MostEpochs = Annotated[int | None, typer.Option(help="Maximum number of epochs.  [default: 20]")]
OverwriteRun = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace the run that is in --out; a folder that is not a run is refused.",
    ),
]
TrackerOption = Annotated[
    TrackerChoice | None,
    typer.Option(
        "--tracker",
        help="wandb: write a run of Weights & Biases too, offline unless WANDB_MODE=online.  "
        "[default: tensorboard]",
    ),
]
