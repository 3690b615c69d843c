"""A media file and where its words come from -> its timeline.

file -> length, SHA-256 -> utterances (subtitles, transcript, words) -> predictions -> Timeline
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from fusion.inference.media import PredictedUtterance, predict_spans
from fusion.inference.predictor import Predictor
from fusion.inference.saved_features import SavedFeatures
from fusion.inference.segments import Heard, SpokenSpan, fit_into
from fusion.inference.subtitles import SUFFIXES, read_subtitles
from fusion.inference.timeline import (
    MediaDescription,
    ModelDescription,
    Segmentation,
    Timeline,
)
from fusion.inference.transcript import read_transcript
from pipeline.corpus.texts import normalise_text
from pipeline.decode.measure import MediaLength, measure_media
from pipeline.errors import ClipError, InputError, StorageError, UsageError
from pipeline.schema import MediaSpan

OnProgress = Callable[[int, int], None]  # milliseconds of media done, and in all


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Where the utterances of a file are, and what is said in them: at most one of the first three.

    subtitles:  a .srt, .vtt, .ass or .ssa file
    transcript: a table in MELD's shape, or lines with times
    text:       what is said in the whole file, which is one utterance then; "" where that is not
                known
    no_text:    the model gets no words, whatever is known of them
    start_s, end_s: the part of the file that counts; None is its start, and its end

    None of the three takes the subtitles that lie beside the file under its name.
    """

    subtitles: Path | None = None
    transcript: Path | None = None
    text: str | None = None
    no_text: bool = False
    start_s: float | None = None
    end_s: float | None = None

    def __post_init__(self) -> None:
        given = [
            f"--{name}"
            for name in ("subtitles", "transcript", "text")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: the words come from one place; leave one out")
        if self.no_text and self.text:
            raise UsageError(f"--no-text leaves out --text {self.text!r}; leave one of the two out")
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"--{name[:-2]} {value}: seconds from the file's start, 0 or more")
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise UsageError(f"--end {self.end_s} must be after --start {self.start_s or 0}")


@dataclass(frozen=True, kw_only=True)
class PreparedMedia:
    """A file that can be read, and its utterances."""

    path: Path
    media: MediaDescription
    segmentation: Segmentation
    spans: tuple[SpokenSpan, ...]


def prepare_media(path: Path, words: WordsConfig, predictor: Predictor) -> PreparedMedia:
    """Reads headers, hashes the file and finds its utterances; nothing is decoded.

    Raises:
        InputError: no media file that can be read, or no utterances are to be had for it.
        UsageError: the model reads words alone, and gets none.
        StorageError: the disk.
    """
    _check_words(words, predictor)
    try:
        length = measure_media(path)
    except ClipError as error:
        raise InputError(f"{path}: {error.message}") from error
    source, file, heard = _find_utterances(path, words, length)
    fitted = fit_into(
        heard.spans,
        length.duration_ms,
        start_ms=round((words.start_s or 0) * 1000),
        end_ms=None if words.end_s is None else round(words.end_s * 1000),
    )
    if not fitted.spans:
        told = f" ({file.name})" if file is not None else ""
        end_s = length.duration_ms / 1000 if words.end_s is None else words.end_s
        raise InputError(
            f"{path}: of {len(heard.spans)} utterances{told} none lies between "
            f"{words.start_s or 0:.1f} s and {end_s:.1f} s of it"
        )
    spans = tuple(map(_without_words, fitted.spans)) if words.no_text else fitted.spans
    return PreparedMedia(
        path=path,
        media=MediaDescription(
            file=path.name, duration_ms=length.duration_ms, sha256=_digest(path)
        ),
        segmentation=Segmentation(
            source=source,
            file=None if file is None else file.name,
            notes=(*heard.notes, *fitted.notes),
        ),
        spans=spans,
    )


def predict_media(
    predictor: Predictor,
    prepared: PreparedMedia,
    *,
    saved: SavedFeatures | None = None,
    on_progress: OnProgress = lambda done_ms, total_ms: None,
) -> Iterator[PredictedUtterance]:
    """Each utterance, as soon as what is said of it can change no more.

    saved: where unfinished work is kept, and found again
    """
    total_ms = max((_end_ms(each) for each in prepared.spans), default=0)
    on_progress(0, total_ms)
    for each in predict_spans(
        predictor,
        prepared.path,
        prepared.spans,
        duration_ms=prepared.media.duration_ms,
        saved=saved,
    ):
        on_progress(_end_ms(each.spoken), total_ms)
        yield each


def finish(
    predictor: Predictor, prepared: PreparedMedia, utterances: list[PredictedUtterance]
) -> Timeline:
    recipe = predictor.checkpoint.recipe
    return Timeline(
        media=prepared.media,
        model=ModelDescription(
            name=predictor.name,
            fingerprint=predictor.fingerprint,
            recipe=recipe.fingerprint,
            modalities=predictor.modalities,
            random_weights=recipe.random_modalities,
        ),
        segmentation=prepared.segmentation,
        utterances=tuple(utterances),
    )


def find_sidecar(path: Path) -> Path | None:
    """Subtitles that lie beside a media file under its name, as players look for them."""
    for suffix in SUFFIXES:
        for beside in (path.with_suffix(suffix), path.with_name(path.name + suffix)):
            if beside.is_file():
                return beside
    return None


def _find_utterances(
    path: Path, words: WordsConfig, length: MediaLength
) -> tuple[str, Path | None, Heard]:
    if words.text is not None:
        text = normalise_text(words.text)
        whole = SpokenSpan(span=MediaSpan(), text=text, text_source="given" if text else "none")
        return "whole", None, Heard(spans=(whole,))
    if words.transcript is not None:
        return "transcript", words.transcript, read_transcript(words.transcript)
    subtitles = words.subtitles or find_sidecar(path)
    if subtitles is not None:
        return "subtitles", subtitles, read_subtitles(subtitles)
    raise InputError(
        f"{path}: nothing says where its utterances are: name --subtitles FILE, --transcript FILE, "
        'or --text "WORDS" where it is one utterance'
    )


def _check_words(words: WordsConfig, predictor: Predictor) -> None:
    if words.no_text and predictor.modalities == predictor.word_modalities:
        raise UsageError(
            f"--no-text: {predictor.name} reads words alone; name a --model that sees or hears"
        )


def _without_words(spoken: SpokenSpan) -> SpokenSpan:
    return replace(spoken, text="", text_source="none")


def _end_ms(spoken: SpokenSpan) -> int:
    return spoken.span.end_ms or spoken.span.start_ms


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
