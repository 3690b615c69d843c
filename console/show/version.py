"""`meld --version`: the versions of this program and of the libraries that decide values."""

import platform
from importlib.metadata import PackageNotFoundError, version

from pipeline.decode.versions import ffmpeg_versions
from pipeline.recipe import REVISION

_DECIDING = (
    ("PyTorch", "torch"),
    ("torchvision", "torchvision"),
    ("torchaudio", "torchaudio"),
    ("transformers", "transformers"),
    ("PyAV", "av"),
    ("faster-whisper", "faster-whisper"),
    ("CTranslate2", "ctranslate2"),
    ("tokenizers", "tokenizers"),
    ("ONNX Runtime", "onnxruntime"),
)
# Of FFmpeg's, those that clips go through.
_DECODING = ("libavformat", "libavcodec", "libswscale", "libswresample")


def show_version() -> None:
    lines = [
        ("meld", _version("meld")),
        ("features", f"revision {REVISION}"),
        ("Python", platform.python_version()),
        *((name, _version(package)) for name, package in _DECIDING),
    ]
    found = ffmpeg_versions()
    lines += [(name, found[name]) for name in _DECODING if name in found]
    for name, told in lines:
        print(f"{name:<15} {told}")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # an extra, or meld run from a folder
        return "not installed"
