"""A bundle: a run's folder that holds all that it predicts with, to be copied anywhere.

README.md               the model card
config.json             what a run's has, without the paths of the machine that trained it
model.safetensors       weights of the fusion model
encoders/               every encoder with its tokenizer, as in a fine-tuned run; not there in
                        a bundle with linked encoders
onnx/                   the same as ONNX graphs, if it was exported with them
golden/                 a short film of ours, and what the model says of it
evaluation-<split>.json its scores, without the corpus's texts
export.json             what was exported, what can compute it, and the hash of each file that
                        decides a prediction
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fusion.inference.runtime import RuntimeName
from pipeline.errors import CacheCorrupt, MismatchError, StorageError
from pipeline.system.extras import is_installed

EXPORT = "export.json"
CARD = "README.md"
GOLDEN = "golden"
GRAPHS = "onnx"  # graphs of encoders and fusion model, where it was exported with them
FUSION_GRAPH = "fusion.onnx"
GRAPH_INDEX = f"{GRAPHS}/onnx.json"
RUNTIMES = ("torch", "onnx")
GOLDEN_FILES = ("talk.mp4", "golden.json", "features.safetensors")
FORMAT = "meld-bundle"
FORMAT_VERSION = 1


def read_export(folder: Path) -> Mapping[str, Any] | None:
    """The content of `export.json`; None where there is none: a run that was not exported.

    Raises:
        CacheCorrupt: it is damaged.
        MismatchError: another version of the format.
        StorageError: it cannot be read.
    """
    path = folder / EXPORT
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
    except (ValueError, RecursionError) as error:
        raise CacheCorrupt(f"{path}: not JSON ({error}); export the run again") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise CacheCorrupt(f"{path}: not the description of a {FORMAT}")
    if values.get("format_version") != FORMAT_VERSION:
        raise MismatchError(
            f"{path}: format version {values.get('format_version')}, this program reads "
            f"{FORMAT_VERSION}; export the run again"
        )
    runtimes = values.get("runtimes")
    known = isinstance(runtimes, list) and all(each in RUNTIMES for each in runtimes)
    if not known or not runtimes:
        raise CacheCorrupt(f"{path}: it is computed by {runtimes!r}; export the run again")
    return values


def choose_runtime(exported: Mapping[str, Any] | None) -> RuntimeName:
    """What computes a folder where nobody chose: PyTorch, and the graphs of a bundle that has
    nothing else, or where PyTorch is not installed.

    exported: as of `read_export`
    """
    runtimes = ["torch"] if exported is None else exported["runtimes"]
    if "onnx" in runtimes and ("torch" not in runtimes or not is_installed("torch")):
        return "onnx"
    return "torch"


def check_files(folder: Path, export: Mapping[str, Any]) -> None:
    """Hashes every file that `export.json` lists.

    Raises:
        CacheCorrupt: one is missing, has changed, or would lie outside of the bundle.
        StorageError: one cannot be read.
    """
    files = export.get("files")
    if not isinstance(files, dict) or not files:
        raise CacheCorrupt(f"{folder / EXPORT}: it lists no files; export the run again")
    for name, wanted in files.items():
        path = folder / name
        try:
            if not path.resolve().is_relative_to(folder.resolve()):
                raise CacheCorrupt(f"{folder / EXPORT}: {name} lies outside of the bundle")
            found = hash_file(path)
        except ValueError as error:  # a zero byte, or half a character
            raise CacheCorrupt(f"{folder / EXPORT}: no file is called {name!r}") from error
        if found != wanted:
            raise CacheCorrupt(
                f"{path}: not the file that was exported (its hash differs from {EXPORT}'s); "
                "copy the bundle again"
            )


def hash_file(path: Path) -> str:
    """SHA-256 (hex) of its bytes. Raises CacheCorrupt where it is missing, StorageError."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise CacheCorrupt(f"{path} is missing; copy the bundle again") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error}") from error
