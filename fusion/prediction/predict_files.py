"""Predicts media files and folders of them, and writes a timeline of each.

paths -> media files -> a Timeline of each, one after another or, from 32 files on, by Ray in
      parallel -> files
"""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fusion.inference.load import ModelChoice
from fusion.inference.media import PredictedUtterance
from fusion.inference.predict_media import WordsConfig, find_sidecar
from fusion.inference.speech import SpeechConfig
from fusion.inference.subtitles import choose_track
from fusion.prediction.formats import FORMATS, PAGE, address_media, check_embedded, write_as
from fusion.prediction.one_file import FileResult, predict_file
from pipeline.corpus.clips import EXTENSIONS
from pipeline.decode.process import DecoderProcess
from pipeline.errors import ClipError, InputError, StorageError, UsageError
from pipeline.parallel.work import Cluster
from pipeline.system.extras import is_installed, needs_extra
from pipeline.system.files import write_whole
from pipeline.system.resources import num_cores

log = logging.getLogger(__name__)

# From here on the seconds that Ray and its workers need to start are worth it.
MANY_FILES = 32
# Ends the names of what is written: a person's own talk.srt is never in the way.
_OURS = ".meld"

OnUtterance = Callable[[Path, PredictedUtterance], None]
OnProgress = Callable[[Path, int, int], None]  # milliseconds of this file done, and in all
OnFiles = Callable[[int, int], None]  # files done, and in all


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which files to predict, with which model, and what to write.

    media:   media files, and folders whose media files are taken, subfolders included
    model:   a trained run; None takes the bundled model
    out:     folder to write to; "-" writes nothing, and the caller prints the one format of the one
        file
    formats: formats to write: json, csv, srt, vtt, html
    embed:   embed the media in the html page; else the page plays the file from where it is
    weights_dir: folder that is searched for pretrained weights before the libraries' caches
    encoders: fine-tuned run that owns the model's encoders, if it is not found by itself
    device:  "auto" uses a GPU if there is one
    precision: precision that the encoders compute in; "auto" is that of the features which the
        model was trained on, and only that gives the probabilities of `meld evaluate`
    runtime: what computes the model: "torch", or "onnx" for the graphs of a bundle; "auto" is torch
        where it is installed and the encoders are there for it
    workers: number of CPU cores, and of files predicted in parallel, if there are 32 files or more;
        1 predicts in this process. None takes all cores, and this process alone where Ray is not
        installed
    address: Ray cluster to predict on, for any number of files: "auto" or "host:port". Its machines
        must see the files, the model and `out` under the same names
    """

    media: tuple[Path, ...]
    model: Path | None = None
    words: WordsConfig = field(default_factory=WordsConfig)
    out: Path = Path("predictions")
    formats: tuple[str, ...] = ("json",)
    embed: bool = False
    weights_dir: Path | None = None
    encoders: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    runtime: Literal["auto", "torch", "onnx"] = "auto"
    workers: int | None = None
    address: str | None = None

    def __post_init__(self) -> None:
        if not self.media:
            raise UsageError("name at least one media file, or a folder of them")
        if self.workers is not None and self.workers < 1:
            raise UsageError(f"--workers must be at least 1, not {self.workers}")
        if self.workers is not None and self.address is not None:
            raise UsageError(
                f"--workers {self.workers}: the cluster at {self.address} has its own cores; leave "
                "one of the two out"
            )
        unknown = [name for name in self.formats if name not in FORMATS]
        if unknown or not self.formats:
            raise UsageError(
                f"--format {','.join(self.formats)}: some of {', '.join(FORMATS)}, with commas"
            )
        if self.embed and PAGE not in self.formats:
            raise UsageError("--embed puts the media into the page: add --format html")
        if not self.writes and len(self.formats) > 1:
            raise UsageError(f"--out -: one format alone goes to stdout, not {len(self.formats)}")

    @property
    def writes(self) -> bool:
        return str(self.out) != "-"

    @property
    def saved_in(self) -> Path | None:
        """The folder for saved progress."""
        return self.out if self.writes else None

    @property
    def model_choice(self) -> ModelChoice:
        return ModelChoice(
            run=self.model,
            weights_dir=self.weights_dir,
            encoders=self.encoders,
            device=self.device,
            precision=self.precision,
            runtime=self.runtime,
        )


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """One result per file, in the given order; files of a folder by name."""

    model: str
    files: tuple[FileResult, ...]

    @property
    def num_failed(self) -> int:
        """Files without a timeline, and utterances without a prediction."""
        return sum(1 if each.timeline is None else each.timeline.num_failed for each in self.files)

    def to_dict(self) -> dict[str, Any]:
        return {"model": self.model, "files": [each.to_dict() for each in self.files]}


def predict_files(
    config: PredictConfig,
    on_utterance: OnUtterance = lambda path, utterance: None,
    on_progress: OnProgress = lambda path, done_ms, total_ms: None,
    on_files: OnFiles = lambda done, total: None,
) -> PredictReport:
    """Predicts every file; results of an earlier call that was killed are reused.

    A file that cannot be predicted, even one that crashes its decoder, has an error in its result
    and does not stop the others. On Ray, `on_files` is called with the number of finished files,
    and the utterances of a file come all at once.

    Raises:
        UsageError: options that do not go together.
        InputError: there is no such file, or only one was named and it cannot be predicted.
        MismatchError, WeightsMissing, StorageError: the model, or the disk.
    """
    files = find_media(config.media)
    _check_several(files, config)
    _check_speech(files, config.words)
    if config.embed:
        for path in files:
            check_embedded(path)
    if config.writes:
        _check_folder(config.out)
    if _needs_ray(config, len(files)):
        name, done = _on_ray(config, files, on_utterance, on_files)
    else:
        name, done = _here(config, files, on_utterance, on_progress)
    by_file: dict[int, FileResult] = {}
    for index, result in done:
        if result.error is not None and len(files) == 1:
            raise result.error
        by_file[index] = _write(config, result)
    results = [by_file[index] for index in range(len(files))]
    # Not before: a call that is killed may have finished some files, and they are not begun again.
    for result in results:
        for saved in result.unfinished if result.timeline is not None else ():
            saved.remove()
    return PredictReport(model=name, files=tuple(results))


def _here(
    config: PredictConfig,
    files: Sequence[Path],
    on_utterance: OnUtterance,
    on_progress: OnProgress,
) -> tuple[str, Iterator[tuple[int, FileResult]]]:
    """One after the other in this process. The name of the model; which file, and its result."""
    log.info("media files: %d, one after another in this process", len(files))
    decoder = DecoderProcess()  # it starts while the model is loaded
    predictor = config.model_choice.load()

    def results() -> Iterator[tuple[int, FileResult]]:
        with decoder:
            for index, path in enumerate(files):
                yield (
                    index,
                    predict_file(
                        path,
                        config.words,
                        predictor,
                        decoder,
                        saved_in=config.saved_in,
                        on_utterance=partial(on_utterance, path),
                        on_progress=partial(on_progress, path),
                    ),
                )

    return predictor.name, results()


def _needs_ray(config: PredictConfig, num_files: int) -> bool:
    if config.address is not None:
        return True
    many_cores = (num_cores() if config.workers is None else config.workers) > 1
    # One GPU is busy with one process.
    if num_files < MANY_FILES or not many_cores or config.model_choice.resolved_device != "cpu":
        return False
    if config.workers is None and not is_installed("ray"):
        log.info("Ray is not installed: the files are predicted one after another")
        return False
    return True


def _on_ray(
    config: PredictConfig,
    files: Sequence[Path],
    on_utterance: OnUtterance,
    on_files: OnFiles,
) -> tuple[str, Iterator[tuple[int, FileResult]]]:
    """Several at a time. The name of the model; which file, and its result, in any order."""
    with needs_extra("train", ", or leave --workers and --address out"):
        from fusion.prediction.many_files import FileWork, predict_on_ray

    name = config.model_choice.check()  # before workers are started for it
    work = FileWork(words=config.words, model=config.model_choice, saved_in=config.saved_in)
    cores = num_cores() if config.workers is None else config.workers
    cluster = Cluster(device=config.device, workers=cores, address=config.address)
    where = f"on {cores} cores" if config.address is None else f"on the cluster {config.address}"
    log.info("media files: %d, several at one time, by Ray %s", len(files), where)

    def results() -> Iterator[tuple[int, FileResult]]:
        on_files(0, len(files))
        for number, (index, result) in enumerate(predict_on_ray(files, work, cluster), start=1):
            for each in () if result.timeline is None else result.timeline.utterances:
                on_utterance(result.path, each)
            yield index, result
            on_files(number, len(files))

    return name, results()


def _write(config: PredictConfig, result: FileResult) -> FileResult:
    """Raises StorageError."""
    if result.timeline is None or not config.writes:
        return result
    written = []
    for name in config.formats:
        target = config.out / f"{result.path.name}{_OURS}.{name}"
        media_url = None
        if name == PAGE:
            media_url = address_media(result.path, folder=config.out, embedded=config.embed)
        text = write_as(name, result.timeline, media_url=media_url)
        write_whole(target, text.encode("utf-8", "replace"))  # names may be no UTF-8
        written.append(target)
    return replace(result, written=tuple(written))


def find_media(paths: Sequence[Path]) -> list[Path]:
    """The given files, and the files with a media extension in given folders, sorted by name.

    Names that begin with a dot are skipped in folders.
    Raises InputError where there is no such file, or no media file in a folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if _is_media_name(each, path))
            if not inside:
                raise InputError(f"{path}: the folder holds no media file")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _is_media_name(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in EXTENSIONS and path.is_file()


def _check_several(files: Sequence[Path], config: PredictConfig) -> None:
    if len(files) == 1:
        return
    words = config.words
    if words.subtitles or words.transcript or words.text is not None:
        raise UsageError(
            f"--subtitles, --transcript and --text belong to one file, not to {len(files)}; put "
            "the subtitles of each beside it under its name"
        )
    if not config.writes:
        raise UsageError(f"--out -: one file alone goes to stdout, not {len(files)}")
    names = [path.name for path in files]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"{twice} occurs in several folders, and the written files are named after the media "
            "file; predict them in several calls, each with its own --out"
        )


def _check_speech(files: Sequence[Path], words: WordsConfig) -> None:
    """Raises UsageError where words.speech is set and no file is heard: all have subtitles."""
    if words.speech == SpeechConfig() or words.asr is not None:
        return
    sources = []
    with DecoderProcess() as decoder:
        for path in files:
            source = find_sidecar(path)
            try:
                if source is None and not choose_track(decoder.subtitles(path)).spans:
                    return
            except ClipError:  # the prediction of that file says so
                return
            sources.append("a track in it" if source is None else source.name)
    raise UsageError(
        f"words.speech says how a file is heard, and the words of {files[0].name} are from "
        f"{sources[0]}; leave words.speech out, or have the file heard all the same: --asr tiny.en"
    )


def _check_folder(out: Path) -> None:
    """Checks the folder before minutes of work. It is made with the first file in it."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out}: not a folder; --out takes one")
