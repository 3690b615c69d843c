"""Media file and source of words -> timeline.

file -> length, SHA-256 -> utterances (subtitles, transcript, words, or speech recognition)
     -> predictions -> Timeline
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from fusion.inference.hearing import SavedStretches, hear
from fusion.inference.media import PredictedUtterance, predict_spans
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import BUNDLED_RECOGNISER
from fusion.inference.saved_features import SavedFeatures
from fusion.inference.segments import Heard, SpokenSpan, fit_into
from fusion.inference.speech import OF_THE_RECOGNISER, SpeechConfig
from fusion.inference.subtitles import SUFFIXES, choose_track, read_subtitles
from fusion.inference.timeline import (
    MediaDescription,
    ModelDescription,
    Segmentation,
    Timeline,
)
from fusion.inference.transcript import read_transcript
from pipeline.corpus.texts import normalise_text
from pipeline.decode.measure import MediaLength
from pipeline.decode.process import HERE, Decoder
from pipeline.errors import ClipError, InputError, StorageError, UsageError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from pipeline.system.one_line import is_utf_8

log = logging.getLogger(__name__)

OnProgress = Callable[[int, int], None]  # milliseconds of media done, and in all


@dataclass(frozen=True, kw_only=True)
class WordsConfig:
    """Where the utterances of a file and their words come from: at most one of the first four.

    subtitles:  a .srt, .vtt, .ass or .ssa file
    transcript: a CSV with the columns Utterance, StartTime and EndTime, or lines with times
    text:       the words of the whole file, which is then one utterance; "" if they are unknown
    asr:        speech recogniser to use: "tiny.en", the folder of a Whisper model in CTranslate2
        format, or the name of an installed package
    no_text:    give the model no words, even if they are known
    start_s, end_s: part of the file to predict, in seconds; None is its start, and its end
    speech:     settings of speech recognition

    With none of the four, the words are taken from a subtitle file that lies beside the media file
    and has its name, else from a subtitle track in it, else by recognition with "tiny.en".
    """

    subtitles: Path | None = None
    transcript: Path | None = None
    text: str | None = None
    asr: str | None = None
    no_text: bool = False
    start_s: float | None = None
    end_s: float | None = None
    speech: SpeechConfig = field(default_factory=SpeechConfig)

    def __post_init__(self) -> None:
        given = [
            f"--{name}"
            for name in ("subtitles", "transcript", "text", "asr")
            if getattr(self, name) is not None
        ]
        if len(given) > 1:
            raise UsageError(f"{' and '.join(given)}: the words come from one place; leave one out")
        if self.text is not None and not is_utf_8(self.text):
            raise UsageError("--text: holds a byte that is no UTF-8, or half a character")
        if self.no_text and self.text:
            raise UsageError(f"--no-text leaves out --text {self.text!r}; leave one of the two out")
        if self.no_text and self.asr is not None:
            raise UsageError(f"--no-text recognises nothing; leave --asr {self.asr} out")
        if given and given != ["--asr"] and self.speech != SpeechConfig():
            raise UsageError(
                f"words.speech says how a file is heard, and {given[0]} says what is said in it; "
                "leave one of the two out"
            )
        for name in OF_THE_RECOGNISER:
            value = attrgetter(name)(self.speech)
            if self.no_text and value != attrgetter(name)(SpeechConfig()):
                raise UsageError(
                    f"words.speech.{name} = {value}: with --no-text nothing is recognised, and a "
                    "voice detector alone finds the utterances; leave one of the two out"
                )
        for name in ("start_s", "end_s"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1e9:
                raise UsageError(f"--{name[:-2]} {value}: seconds from the file's start, 0 or more")
        if self.end_s is not None and self.end_s <= (self.start_s or 0):
            raise UsageError(f"--end {self.end_s} must be after --start {self.start_s or 0}")


@dataclass(frozen=True, kw_only=True)
class PreparedMedia:
    """A readable file and its utterances.

    path: absolute: the file is read while utterances are asked for, in whatever folder the process
        is by then
    saved: its saved recognition, to be removed once its timeline is written
    """

    path: Path
    media: MediaDescription
    segmentation: Segmentation
    spans: tuple[SpokenSpan, ...]
    saved: SavedStretches | None = None


def prepare_media(
    path: Path,
    words: WordsConfig,
    predictor: Predictor,
    *,
    saved_in: Path | None = None,
    on_progress: OnProgress = lambda done_ms, total_ms: None,
    decoder: Decoder = HERE,
    recogniser: str = BUNDLED_RECOGNISER,
) -> PreparedMedia:
    """Reads headers, hashes the file and finds its utterances; its sound is decoded only if no
    other source gives them.

    Args:
        saved_in: a folder for what is unfinished
        on_progress: of hearing
        decoder: who reads the file
        recogniser: who hears it where nothing else says what is said, and `words` name none

    Raises:
        InputError: not a readable media file, or no utterances can be found.
        UsageError: the model needs words, and there are none.
        WeightsMissing, MismatchError: a speech recogniser is needed and not available.
        StorageError: the disk.
    """
    _check_words(words, predictor)
    try:
        length = decoder.measure(path)
    except ClipError as error:
        raise InputError(f"{path}: {error.message}") from error
    if length.duration_ms == 0:
        raise InputError(f"{path}: it lasts 0.0 s, so there is nothing in it to predict from")
    digest = _digest(path)
    found = _find_utterances(
        path, words, length, predictor, digest, saved_in, on_progress, decoder, recogniser
    )
    fitted = fit_into(
        found.heard.spans,
        length.duration_ms,
        start_ms=round((words.start_s or 0) * 1000),
        end_ms=None if words.end_s is None else round(words.end_s * 1000),
    )
    if found.heard.spans and not fitted.spans:
        told = f" ({found.file.name})" if found.file is not None else ""
        end_s = length.duration_ms / 1000 if words.end_s is None else words.end_s
        raise InputError(
            f"{path}: none of its {len(found.heard.spans)} utterances{told} lies between "
            f"{words.start_s or 0:.1f} s and {end_s:.1f} s of it"
        )
    source = found.source if found.file is None else f"{found.source} {found.file.name}"
    log.info(
        "%s: %.1f s, utterances: %d, from %s",
        path.name,
        length.duration_ms / 1000,
        len(fitted.spans),
        source,
    )
    return PreparedMedia(
        path=path.absolute(),
        media=MediaDescription(
            file=path.name,
            duration_ms=length.duration_ms,
            sha256=digest,
            has_video=length.has_video,
        ),
        segmentation=Segmentation(
            source=found.source,
            file=None if found.file is None else found.file.name,
            speech=found.speech,
            notes=(*found.heard.notes, *fitted.notes),
        ),
        spans=tuple(map(_without_words, fitted.spans)) if words.no_text else fitted.spans,
        saved=found.saved,
    )


def predict_media(
    predictor: Predictor,
    prepared: PreparedMedia,
    *,
    saved: SavedFeatures | None = None,
    on_progress: OnProgress = lambda done_ms, total_ms: None,
    decoder: Decoder = HERE,
) -> Iterator[PredictedUtterance]:
    """Yields each predicted utterance as soon as it is final.

    Args:
        saved: saved progress, to read and to extend
        decoder: who reads the file

    Raises InputError where the file ends the decoder's process.
    """
    total_ms = max((_end_ms(each) for each in prepared.spans), default=0)
    on_progress(0, total_ms)
    last_ms = 0
    try:
        for each in predict_spans(
            predictor,
            prepared.path,
            prepared.spans,
            duration_ms=prepared.media.duration_ms,
            saved=saved,
            decoder=decoder,
        ):
            last_ms = _end_ms(each.spoken)
            on_progress(last_ms, total_ms)
            yield each
    except ClipError as error:
        raise InputError(
            f"{prepared.path}: {error.message} after {last_ms / 1000:.1f} s of it; convert it to "
            "another format, or take the part that can be read: --end"
        ) from error


def finish(
    predictor: Predictor, prepared: PreparedMedia, utterances: list[PredictedUtterance]
) -> Timeline:
    return Timeline(
        media=prepared.media,
        model=describe_model(predictor),
        segmentation=prepared.segmentation,
        utterances=tuple(utterances),
    )


def describe_model(predictor: Predictor) -> ModelDescription:
    recipe = predictor.recipe
    return ModelDescription(
        name=predictor.name,
        fingerprint=predictor.fingerprint,
        recipe=recipe.fingerprint,
        modalities=predictor.modalities,
        random_weights=recipe.random_modalities,
        precision=predictor.precision,
    )


def find_sidecar(path: Path) -> Path | None:
    """The subtitle file beside a media file that has its name, as players find it."""
    for suffix in SUFFIXES:
        for beside in (path.with_suffix(suffix), path.with_name(path.name + suffix)):
            if beside.is_file():
                return beside
    return None


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Utterances and their source: see `Segmentation`."""

    source: str
    heard: Heard
    file: Path | None = None
    speech: Mapping[str, Any] | None = None
    saved: SavedStretches | None = None


def _find_utterances(
    path: Path,
    words: WordsConfig,
    length: MediaLength,
    predictor: Predictor,
    digest: str,
    saved_in: Path | None,
    on_progress: OnProgress,
    decoder: Decoder,
    recogniser: str,
) -> _Found:
    if words.text is not None:
        text = normalise_text(words.text)
        whole = SpokenSpan(span=MediaSpan(), text=text, text_source="given" if text else "none")
        return _Found(source="whole", heard=Heard(spans=(whole,)))
    if words.transcript is not None:
        heard = read_transcript(words.transcript)
        return _Found(source="transcript", heard=heard, file=words.transcript)
    subtitles = words.subtitles or (find_sidecar(path) if words.asr is None else None)
    if subtitles is not None:
        return _Found(source="subtitles", heard=read_subtitles(subtitles), file=subtitles)
    notes: tuple[str, ...] = ()
    if words.asr is None:
        try:
            inside = choose_track(decoder.subtitles(path))
        except ClipError as error:
            raise InputError(f"{path}: {error.message}") from error
        if inside.spans:
            return _Found(source="subtitles", heard=inside)
        notes = inside.notes
    end_ms = length.duration_ms if words.end_s is None else round(words.end_s * 1000)
    heard, speech, saved = hear(
        path,
        predictor.decode or DecodeConfig(),
        words.speech,
        asr=words.asr or recogniser,
        no_text=words.no_text,
        media=digest,
        duration_ms=min(end_ms, length.duration_ms),
        saved_in=saved_in,
        on_progress=on_progress,
        decoder=decoder,
    )
    heard = replace(heard, notes=(*notes, *heard.notes))
    return _Found(source="speech", heard=heard, speech=speech, saved=saved)


def _check_words(words: WordsConfig, predictor: Predictor) -> None:
    if words.no_text and predictor.modalities == predictor.word_modalities:
        raise UsageError(
            f"--no-text: {predictor.name} reads text alone; name a --model that uses video or audio"
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
