"""A new model for features, and where it is trained."""

import torch

from fusion.data.split import FusionData
from fusion.model.dims import FusionDims, ModalityDims, ModelConfig
from fusion.model.fusion import FusionModel
from fusion.training.fit import seeded
from pipeline.errors import UsageError
from pipeline.system.building import one_builder


def choose_device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but this machine has no usable GPU")
    return torch.device(name)


def build_model(train: FusionData, config: ModelConfig, *, seed: int) -> FusionModel:
    """A new model for train's features, standardised by their mean and std.

    Raises UsageError where it is too large for this machine.
    """
    dims = FusionDims(
        modalities=tuple(
            ModalityDims(
                modality=name,
                layers=train.features[name].shape[1],
                dim=train.features[name].shape[2],
            )
            for name in train.modalities
        ),
        input=train.input,
        model=config,
    )
    try:
        with one_builder(), seeded(seed):
            model = FusionModel(dims)
    except RuntimeError as error:  # PyTorch's word for too little memory
        raise UsageError(
            f"a model of hidden = {config.hidden}, projection = {config.projection} cannot be "
            f"built: {str(error).splitlines()[0]}"
        ) from error
    model.fit_standardisation(train.features, train.present)
    return model
