"""Checks the machine for what an extraction needs, without downloading."""

import importlib.metadata
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.encoders import weights
from pipeline.encoders.choice import DEFAULT_ENCODERS
from pipeline.errors import WeightsMissing
from pipeline.system.extras import is_installed
from pipeline.system.resources import (
    OBJECT_STORE_BYTES,
    Space,
    disk,
    memory,
    num_cores,
    shared_memory,
)

# Of development, and those that others have in them.
_UNTOLD_EXTRAS = ("dev", "http", "all")
_REQUIREMENT = re.compile(r"([A-Za-z0-9._-]+).*extra\s*==\s*['\"]([a-z0-9-]+)['\"]")


@dataclass(frozen=True, kw_only=True)
class EncoderState:
    """where: its weights, if they are there; how: the ways to get them, if they are not"""

    modality: str
    name: str
    is_default: bool
    is_present: bool
    where: str = ""
    how: str = ""
    needs_weights: bool = True


@dataclass(frozen=True, kw_only=True)
class ExtraState:
    """An optional part of this program, and its packages that are not installed."""

    name: str
    missing: tuple[str, ...]

    @property
    def command(self) -> str:
        return f"pip install 'meld[{self.name}]'"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """None: the system does not tell.

    shared_memory: where Ray keeps what workers hand on; None where there is no such thing
    gpus:          names with their memory; empty where PyTorch finds none, or is not installed
    """

    cores: int
    memory: Space
    shared_memory: Space | None
    disks: dict[str, Space]
    gpus: tuple[str, ...]
    encoders: tuple[EncoderState, ...]
    extras: tuple[ExtraState, ...]

    @property
    def concerns(self) -> tuple[str, ...]:
        """What will be slow or will not work, a line each."""
        lines = []
        free = self.shared_memory.free_bytes if self.shared_memory is not None else None
        if free is not None and free < OBJECT_STORE_BYTES:
            lines.append(
                f"shared memory: {gib(free)} free of the {gib(OBJECT_STORE_BYTES)} that Ray wants; "
                "it falls back on the disk, slowly (docker run --shm-size=1g)"
            )
        return tuple(lines)

    def to_dict(self) -> dict[str, Any]:
        extras = [{**asdict(each), "command": each.command} for each in self.extras]
        return {**asdict(self), "extras": extras, "concerns": list(self.concerns)}


def look_at_machine(data: Path, features: Path, weights_dir: Path | None) -> Machine:
    return Machine(
        cores=num_cores(),
        memory=memory(),
        shared_memory=shared_memory(),
        disks={str(folder): disk(folder) for folder in (data, features)},
        gpus=_find_gpus(),
        encoders=_find_encoders(weights_dir),
        extras=_find_extras(),
    )


def gib(num_bytes: int | None) -> str:
    return "unknown" if num_bytes is None else f"{num_bytes / 2**30:.1f} GiB"


def _find_gpus() -> tuple[str, ...]:
    if not is_installed("torch"):
        return ()
    import torch  # slow to import

    if not torch.cuda.is_available():
        return ()
    found = [torch.cuda.get_device_properties(n) for n in range(torch.cuda.device_count())]
    return tuple(f"{each.name}, {gib(each.total_memory)}" for each in found)


def _find_encoders(weights_dir: Path | None) -> tuple[EncoderState, ...]:
    """The defaults, and the text encoder that needs no download."""
    text, video = DEFAULT_ENCODERS["text"], DEFAULT_ENCODERS["video"]
    bundled = weights.BUNDLED_TEXT_ENCODER
    return (
        _find_encoder("text", text, lambda: _text_folder(text, weights_dir)),
        _find_encoder("text", bundled, lambda: _text_folder(bundled, weights_dir)),
        _find_encoder(
            "video",
            video,
            lambda: weights.find_video_weights(video, weights_dir, download=False),
        ),
        EncoderState(
            modality="audio",
            name=DEFAULT_ENCODERS["audio"],
            is_default=True,
            is_present=True,
            where="needs no weights",
            needs_weights=False,
        ),
    )


def _find_encoder(modality: str, name: str, find: Callable[[], Path]) -> EncoderState:
    is_default = name != weights.BUNDLED_TEXT_ENCODER
    try:
        where = find()
    except WeightsMissing as error:
        return EncoderState(
            modality=modality, name=name, is_default=is_default, is_present=False, how=str(error)
        )
    return EncoderState(
        modality=modality, name=name, is_default=is_default, is_present=True, where=str(where)
    )


def _text_folder(name: str, weights_dir: Path | None) -> Path:
    """A download that was broken off leaves a folder with its config and no weights."""
    folder = weights.find_text_encoder(name, weights_dir, download=False)
    if not any(folder.glob("*.safetensors")):
        raise WeightsMissing(
            f"text encoder {name}: {folder} holds no *.safetensors; connect once, so that the "
            "download is completed, or copy the file there"
        )
    return folder


def _find_extras() -> tuple[ExtraState, ...]:
    try:
        told = importlib.metadata.requires("meld") or []
    except importlib.metadata.PackageNotFoundError:  # run from a folder, never installed
        return ()
    packages: dict[str, list[str]] = {}
    for match in filter(None, map(_REQUIREMENT.match, told)):
        packages.setdefault(match[2], []).append(match[1])
    return tuple(
        ExtraState(name=name, missing=tuple(each for each in needed if not _is_installed(each)))
        for name, needed in packages.items()
        if name not in _UNTOLD_EXTRAS
    )


def _is_installed(package: str) -> bool:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
