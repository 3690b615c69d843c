"""What computes a run: its encoders and its fusion model, behind numpy values.

PyTorch is one (`pytorch.py`); ONNX Runtime, where a bundle has graphs, another (`onnx.py`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from fusion.labels import Logits
from fusion.model.dims import FusionDims
from pipeline.schema import ClipFeatures, ClipKey, DecodedClip, Modality

RuntimeName = Literal["torch", "onnx"]


@dataclass(frozen=True, kw_only=True)
class FeatureRows:
    """The features of some utterances, as the fusion model takes them.

    features: {modality: float32 [rows, layers, dim]}; zeros where it is absent
    present:  bool [rows, modalities], True = real, columns as in `modalities`
    keys:     which utterance of which dialogue each row is; a model with dialogue context looks
              at them
    """

    modalities: tuple[Modality, ...]
    features: Mapping[Modality, NDArray[np.float32]]
    present: NDArray[np.bool_]
    keys: tuple[ClipKey, ...]
    text: tuple[str, ...]
    speaker: tuple[str, ...]

    @classmethod
    def of(
        cls, dims: FusionDims, clips: Sequence[ClipFeatures], keys: Sequence[ClipKey]
    ) -> "FeatureRows":
        features = {}
        for each in dims.modalities:
            empty = np.zeros((each.layers, each.dim), np.float32)  # masked: it means nothing
            rows = [clip.raw.get(each.modality, empty) for clip in clips]
            features[each.modality] = np.stack(rows)  # [rows, layers, dim]
        return cls(
            modalities=dims.names,
            features=features,
            present=np.array([[name in clip.raw for name in dims.names] for clip in clips]),
            keys=tuple(keys),
            text=tuple(clip.utterance.text for clip in clips),
            speaker=tuple(clip.utterance.speaker for clip in clips),
        )

    def __len__(self) -> int:
        return len(self.keys)

    def hide_all_but(self, visible: Sequence[Modality]) -> "FeatureRows":
        """The same rows with every other modality absent; what was absent stays so."""
        columns = np.array([name in visible for name in self.modalities])
        return replace(self, present=self.present & columns)


class HeadLogits(NamedTuple):
    """emotion: float64 [rows, 7]; sentiment: float64 [rows, 3]"""

    emotion: Logits
    sentiment: Logits


class Runtime(Protocol):
    """name, device: what computes, and on what ("cpu" or "cuda")

    precision: what each encoder computes in, by modality
    """

    name: RuntimeName
    device: str

    @property
    def precision(self) -> Mapping[Modality, str]: ...

    def describe(self) -> Mapping[str, str]:
        """What decides its last digits: "threads", and "kernels" if it tells."""

    def encode(self, clips: Sequence[DecodedClip]) -> list[ClipFeatures]:
        """Features of the run's modalities, one entry per clip; a modality that a clip does not
        have, or that its encoder gives no numbers for, is absent and in `failures`."""

    def fuse(self, rows: FeatureRows) -> HeadLogits:
        """Raises ValueError where there is no row."""
