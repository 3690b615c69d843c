"""The hardware that this machine computes with, found without PyTorch if the system tells: a driver
process, which computes nothing, would import PyTorch for seconds only to ask.
"""

from pathlib import Path
from typing import Literal

from pipeline.recipe import Precision
from pipeline.system.extras import is_installed, needs_extra

_DEVICES = Path("/dev")
_CPU_INFO = Path("/proc/cpuinfo")
# NVIDIA's and AMD's drivers, Windows' GPU in Linux, Jetson boards.
_GPU_FILES = ("nvidia*", "kfd", "dxg", "nvhost*", "nvgpu*")
_BFLOAT16 = ("avx512_bf16", "amx_bf16")


def has_gpu() -> bool:
    """Whether PyTorch can compute on a GPU here."""
    if _DEVICES.is_dir() and not any(any(_DEVICES.glob(name)) for name in _GPU_FILES):
        return False  # no driver
    if not is_installed("torch"):
        return False
    with needs_extra("torch"):
        import torch

    return torch.cuda.is_available()


def native_precision(device: Literal["cpu", "cuda"]) -> Precision:
    """bfloat16 where the hardware multiplies in it, float32 elsewhere."""
    if device == "cuda":
        with needs_extra("torch"):
            import torch

        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_features() & set(_BFLOAT16) else "float32"


def cpu_features() -> set[str]:
    """Names of CPU features as in Linux, which PyTorch uses too. On other systems PyTorch is asked;
    empty if it is not installed."""
    try:
        lines = _CPU_INFO.read_text().splitlines()
    except OSError:
        if not is_installed("torch"):
            return set()
        with needs_extra("torch"):
            import torch

        return {name for name, there in torch.cpu.get_capabilities().items() if there is True}
    flags = (line.partition(":")[2] for line in lines if line.startswith("flags"))
    return set(next(flags, "").split())
