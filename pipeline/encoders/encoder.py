"""The interface of all encoders.

    name, options      EncoderWish
      │ choose         finds and hashes the files, loads nothing     `registry.ENCODERS[name]`
    spec, path         EncoderChoice; the spec goes into the recipe
      │ prepare        Preparation: needs no weights, can be pickled
      │ build          Encoder: the network, an nn.Module in evaluation mode

    clip ── prepare ──> item ──(augment)──> items ── collate ──> batch ── encoder ──> features
            None: nothing to encode          in training only        float32 [rows, layers, dim]

Extraction, fine-tuning and prediction go this one way. What an item and a batch are is known to
the encoder alone; a batch has `to(device)`. Another backbone is a file with these parts and one
entry in `registry.py`; nothing else asks for a modality or a name.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar, runtime_checkable

from pipeline.errors import ClipError, UsageError
from pipeline.recipe import DecodeConfig, DialogueReading, EncoderSpec, FrameView, Precision
from pipeline.schema import DecodedClip, Modality

if TYPE_CHECKING:  # choosing an encoder must not wait for PyTorch
    from torch import Generator, Tensor, nn

    from pipeline.encoders.augment import AugmentConfig

WeightsChoice = Literal["pretrained", "random"]

Item = TypeVar("Item")
BatchOut = TypeVar("BatchOut", covariant=True)
BatchIn = TypeVar("BatchIn", contravariant=True)


@dataclass(frozen=True, kw_only=True)
class EncoderWish:
    """The requested options of one encoder; encoders without layers or context ignore those.

    layers:      hidden states to keep, 0 = embeddings, -1 = last; empty keeps all
    context:     previous utterances that are read before the current one
    dialogue:    whether utterances are read in their dialogue
    weights_dir: searched before the libraries' caches

    Raises UsageError where weights_dir is a file.
    """

    name: str
    weights: WeightsChoice = "pretrained"
    layers: tuple[int, ...] = ()
    context: int = 0
    dialogue: DialogueReading = "none"
    weights_dir: Path | None = None

    def __post_init__(self) -> None:
        folder = self.weights_dir
        if folder is not None and folder.exists() and not folder.is_dir():
            raise UsageError(f"--weights-dir {folder}: a file; name the folder that it lies in")

    @classmethod
    def of(cls, spec: EncoderSpec, *, weights_dir: Path | None = None) -> "EncoderWish":
        """Asks for the pretrained or random encoder that `spec` describes."""
        return cls(
            name=spec.name,
            weights="random" if spec.weights == "random" else "pretrained",
            layers=spec.layers,
            context=spec.context,
            dialogue=spec.dialogue,
            weights_dir=weights_dir,
        )


@dataclass(frozen=True, kw_only=True)
class EncoderChoice:
    """An encoder and where its files lie. Only `spec` goes into the recipe.

    path: what `choose` found, or a folder that `Encoder.save` wrote; None where there is no file
    parts: of several encoders as one, the choices that were found for each
    """

    spec: EncoderSpec
    path: Path | None = None
    parts: tuple["EncoderChoice", ...] = ()


class Reading(Protocol):
    """What encoding clips asks of a preparation, whatever computes the encoder."""

    def prepare(self, clips: Sequence[DecodedClip]) -> Sequence[Any | None]: ...

    def shortfall(self, item: Any) -> ClipError | None: ...

    def length(self, item: Any) -> int: ...


class Preparation(Protocol[Item, BatchOut]):
    """Prepares clips as input of the network; data loading processes use it too.

    most_rows: rows whose intermediate values fit into memory in training; None sets no limit
    """

    most_rows: int | None

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Item | None]:
        """In the order of `clips`; None for a clip without the modality, and for one in which the
        encoder finds nothing to encode: that is no measurement, and zeros would pass for one."""

    def shortfall(self, item: Item) -> ClipError | None:
        """Describes the part of the clip that is not in the item, for the ledger; None if there is
        none."""

    def length(self, item: Item) -> int:
        """Length of the item, if it matters: rows of similar length share a batch."""

    def augment(self, item: Item, config: "AugmentConfig", generator: "Generator") -> Item:
        """The item changed as training changes it; every draw comes from `generator`."""

    def collate(self, items: Sequence[Item]) -> BatchOut:
        """Batches items, at least one."""


class Encoder(Protocol[Item, BatchIn]):
    """A network in evaluation mode (frozen BatchNorm, no dropout). It is an nn.Module as well.

    batch_size: rows that extraction encodes together, None all that there are. Part of what makes
        a run repeatable to the last bit: float results depend on who shares a batch.
    dim: features of one layer
    """

    batch_size: int | None

    @property
    def dim(self) -> int: ...

    @property
    def preparation(self) -> Preparation[Item, Any]: ...

    def __call__(self, batch: BatchIn) -> "Tensor":
        """float32 [rows, layers, dim], with gradients."""

    def layer_depths(self) -> dict[str, int]:
        """Names of the parameters that features depend on -> depth, 0 is the lowest. Fine-tuning
        trains these alone, and lower ones slower."""

    def checkpoint_gradients(self) -> None:
        """Recomputes intermediate values in the backward pass where that saves much memory.

        Raises:
            UsageError: this network cannot.
        """

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        """An estimate of what a backward pass keeps of `rows` items, the longest of that length;
        value_bytes: 2 in bfloat16, 4 in float32."""

    def save(self, folder: Path) -> None:
        """Writes everything that is needed to build it from `folder`."""


@dataclass(frozen=True, kw_only=True)
class GraphSource:
    """An encoder's network as it is traced into a graph, which another runtime computes.

    net:     takes the tensors of `inputs` in their order and gives those of `outputs`; None where
        there is no network: the reading computes the features
    inputs:  an example of each by name; an axis of length 1 is 1 in the graph for ever
    lengths: {input: {axis: name}}: the axes that may have another length; those of one name are
        equally long
    reading: what prepares the inputs without PyTorch, and with which settings: {"kind": ...} as
        `pipeline.onnx.reading` knows them
    files:   {name: content} of what the reading needs besides
    """

    reading: Mapping[str, Any]
    net: "nn.Module | None" = None
    inputs: "Mapping[str, Tensor]" = field(default_factory=dict)
    lengths: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    files: Mapping[str, str] = field(default_factory=dict)


@runtime_checkable
class HasGraph(Protocol):
    """An encoder that can be written as a graph; not every encoder can."""

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        """decode: how the clips were decoded that it will read.

        Raises:
            UsageError: this one cannot; the message says why.
        """


@dataclass(frozen=True)
class EncoderAsSeen:
    """One of several encoders of a modality.

    view:   of the clips' frames that it wants; None where it wants none
    decode: how the clips were decoded, as far as it sees them
    """

    name: str
    encoder: "AnyEncoder"
    view: FrameView | None
    decode: DecodeConfig | None


@runtime_checkable
class StandsForSeveral(Protocol):
    """Several encoders of one modality as one."""

    def as_seen(self) -> list[EncoderAsSeen]:
        """In the order in which their features are concatenated."""


@runtime_checkable
class SharesWork(Protocol):
    """A preparation some of whose items are encoded for the price of one, in one batch."""

    def group(self, item: Any) -> Hashable:
        """Equal for items that share their work."""


AnyPreparation = Preparation[Any, Any]
AnyEncoder = Encoder[Any, Any]


@runtime_checkable
class SaysWhatIsNotThere(Protocol):
    """A preparation that tells why a clip has no item, in words that a user reads."""

    nothing: str


@dataclass(frozen=True, kw_only=True)
class EncoderEntry:
    """How a registered encoder is found and built. These functions import what they need when they
    are called, because planning a run must not wait for PyTorch.

    choose:     raises UsageError or WeightsMissing
    build:      raises MismatchError where the files are not this encoder's weights
    autocast:   whether it may compute in bfloat16; its spec says float32 where not
    searches:   whether its files are searched for, in `weights_dir` first
    has_batchnorm: whether fine-tuning may let running statistics move
    is_layered: whether its layers have different depths (`Encoder.layer_depths`) and may recompute
        their intermediate values (`Encoder.checkpoint_gradients`)
    count_layers: of a layered encoder, how many layers the one in a folder has
    learns:     whether it has parameters that fine-tuning can train
    has_weights: whether it has trained weights, in whose place random ones may be asked for
    frames:     name -> the views of a clip's frames that it wants, of an encoder of pictures: one,
        or of several encoders as one each that any of them wants; may raise UsageError
    knows:      of an entry for any name, whether there is an encoder of that name
    """

    modality: Modality
    choose: Callable[[EncoderWish, Precision], EncoderChoice]
    prepare: Callable[[EncoderChoice, DecodeConfig | None], AnyPreparation]
    build: Callable[[EncoderChoice, DecodeConfig | None], AnyEncoder]
    autocast: bool = True
    searches: Callable[[EncoderWish], bool] = lambda wish: False
    has_batchnorm: bool = False
    is_layered: bool = False
    count_layers: Callable[[Path], int] | None = None
    learns: bool = True
    has_weights: bool = True
    frames: Callable[[str], tuple[FrameView, ...]] | None = None
    knows: Callable[[str], bool] = lambda name: True
