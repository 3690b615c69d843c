"""Media files and folders -> a timeline for each, written beside one another.

paths -> media files -> one Predictor -> utterances, as they come -> Timeline -> files
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fusion.inference.load import load_model
from fusion.inference.media import PredictedUtterance
from fusion.inference.predict_media import (
    PreparedMedia,
    WordsConfig,
    finish,
    predict_media,
    prepare_media,
)
from fusion.inference.predictor import Predictor
from fusion.inference.saved_features import SavedFeatures
from fusion.inference.timeline import Timeline
from fusion.prediction.timeline_files import WRITERS
from pipeline.corpus.clips import EXTENSIONS
from pipeline.decode.process import Decoder, DecoderProcess
from pipeline.errors import InputError, MeldError, StorageError, UsageError
from pipeline.system.files import write_whole

# Ends the names of what is written: a person's own talk.srt is never in the way.
_OURS = ".meld"

OnUtterance = Callable[[Path, PredictedUtterance], None]
OnProgress = Callable[[Path, int, int], None]  # milliseconds of this file done, and in all


@dataclass(frozen=True, kw_only=True)
class PredictConfig:
    """Which files, what predicts, and what is written.

    media:   files, and folders whose media files are taken, theirs below included
    model:   a trained run; None takes the one that comes with this program
    out:     folder of what is written; "-" writes nothing, and the caller prints the one format
        of the one file
    formats: some of json, csv, srt, vtt
    """

    media: tuple[Path, ...]
    model: Path | None = None
    words: WordsConfig = field(default_factory=WordsConfig)
    out: Path = Path("predictions")
    formats: tuple[str, ...] = ("json",)
    weights_dir: Path | None = None
    encoders: Path | None = None
    device: Literal["auto", "cpu", "cuda"] = "auto"

    def __post_init__(self) -> None:
        if not self.media:
            raise UsageError("name at least one media file, or a folder of them")
        unknown = [name for name in self.formats if name not in WRITERS]
        if unknown or not self.formats:
            raise UsageError(
                f"--format {','.join(self.formats)}: some of {', '.join(WRITERS)}, with commas"
            )
        if not self.writes and len(self.formats) > 1:
            raise UsageError(f"--out -: one format alone goes to stdout, not {len(self.formats)}")

    @property
    def writes(self) -> bool:
        return str(self.out) != "-"


@dataclass(frozen=True, kw_only=True)
class FileResult:
    """timeline: None where the file could not be predicted, and `error` says why"""

    path: Path
    timeline: Timeline | None
    written: tuple[Path, ...] = ()
    error: MeldError | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "path": str(self.path),
            "timeline": None if self.timeline is None else self.timeline.to_dict(),
            "written": [str(path) for path in self.written],
            "error": None if self.error is None else str(self.error),
        }


@dataclass(frozen=True, kw_only=True)
class PredictReport:
    """One result a file, in the order in which they were named; files of a folder by name."""

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
) -> PredictReport:
    """Predicts every file; what an earlier call that was killed finished of one is taken over.

    A file that cannot be predicted, even one that crashes its decoder, is told in its result, and
    the others are not held up by it.

    Raises:
        UsageError: options that do not go together.
        InputError: there is no such file, or only one was named and it cannot be predicted.
        MismatchError, WeightsMissing, StorageError: the model, or the disk.
    """
    files = find_media(config.media)
    _check_several(files, config)
    if config.writes:
        _check_folder(config.out)
    results = []
    with DecoderProcess() as decoder:  # it starts while the model is loaded
        predictor = load_model(
            config.model,
            weights_dir=config.weights_dir,
            encoders=config.encoders,
            device=config.device,
        )
        for path in files:
            try:
                prepared = prepare_media(
                    path,
                    config.words,
                    predictor,
                    saved_in=config.out if config.writes else None,
                    on_progress=partial(on_progress, path),
                    decoder=decoder,
                )
                results.append(
                    _predict_one(config, predictor, prepared, on_utterance, on_progress, decoder)
                )
            except InputError as error:
                if len(files) == 1:
                    raise
                results.append(FileResult(path=path, timeline=None, error=error))
    return PredictReport(model=predictor.name, files=tuple(results))


def find_media(paths: Sequence[Path]) -> list[Path]:
    """Files as they are named, and those of folders by name, with a media file's extension.

    What begins with a dot is left out of a folder.
    Raises InputError where there is no such file, or no media file in a folder.
    """
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(each for each in path.rglob("*") if _is_media_name(each, path))
            if not inside:
                raise InputError(f"{path}: a folder without a media file in it")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or folder")
        else:
            found.append(path)
    return list(dict.fromkeys(found))


def _is_media_name(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.suffix.lower() in EXTENSIONS and path.is_file()


def _predict_one(
    config: PredictConfig,
    predictor: Predictor,
    prepared: PreparedMedia,
    on_utterance: OnUtterance,
    on_progress: OnProgress,
    decoder: Decoder,
) -> FileResult:
    path = prepared.path
    saved = None
    if config.writes:
        saved = SavedFeatures(
            config.out,
            media=prepared.media.sha256,
            model=predictor.identity,
            spans=prepared.spans,
        )
    utterances = []
    for each in predict_media(
        predictor,
        prepared,
        saved=saved,
        on_progress=partial(on_progress, path),
        decoder=decoder,
    ):
        on_utterance(path, each)
        utterances.append(each)
    timeline = finish(predictor, prepared, utterances)
    written = []
    if config.writes:
        for name in config.formats:
            target = config.out / f"{path.name}{_OURS}.{name}"
            write_whole(target, WRITERS[name](timeline).encode())
            written.append(target)
    for unfinished in (saved, prepared.saved):
        if unfinished is not None:
            unfinished.remove()
    return FileResult(path=path, timeline=timeline, written=tuple(written))


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
            f"{twice} stands in several folders, and what is written is named after the file; "
            "predict them in several calls with an --out of their own"
        )


def _check_folder(out: Path) -> None:
    """Before minutes of work for it. The folder is made with the first file in it."""
    if out.exists() and not out.is_dir():
        raise StorageError(f"{out}: not a folder; --out takes one")
