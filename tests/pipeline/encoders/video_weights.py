"""Files of a video net's weights, as torchvision saves them, and small ones of its shapes."""

import torch
from torchvision.models import get_model

R3D_18 = "r3d_18-b3b3357e.pth"


def on_meta(name: str) -> torch.nn.Module:
    """The net without values."""
    with torch.device("meta"):
        net: torch.nn.Module = get_model(name, weights=None)
    return net


def flat(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same names and shapes in a file of some kB: each tensor is one number, expanded."""
    return {
        name: torch.full((), 0.5, dtype=value.dtype).expand(value.shape)
        for name, value in state.items()
    }
