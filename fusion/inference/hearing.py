"""Speech recognition of a media file without given words, with saved progress.

Recognising an hour takes minutes, so every finished stretch is saved: a killed run resumes after
the last one and ends with the same utterances.
"""

import hashlib
import json
import logging
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fusion.inference.recogniser import Recogniser, load_recogniser
from fusion.inference.saved_features import FOLDER
from fusion.inference.segments import Heard, SpokenSpan
from fusion.inference.speech import (
    SpeechConfig,
    Stretch,
    describe_doubts,
    describe_speech,
    listen,
)
from fusion.inference.voice import DETECTOR
from pipeline.decode.process import HERE, Decoder
from pipeline.errors import ClipError, InputError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from pipeline.system.files import write_whole
from pipeline.system.json_values import MALFORMED

log = logging.getLogger(__name__)

OnHeard = Callable[[int, int], None]  # milliseconds of the file heard, and in all


class SavedStretches:
    """The recognised stretches of one file, for one recogniser and one set of settings, in a file
    of its own."""

    def __init__(self, out: Path, *, media: str, speech: dict[str, Any]) -> None:
        """
        media:  identifies the file's bytes and the part that is recognised
        speech: detector, recogniser and settings, as `describe_speech` has them
        """
        digest = hashlib.sha256(json.dumps([media, speech]).encode()).hexdigest()
        self.folder = out / FOLDER / digest[:32]

    @property
    def _file(self) -> Path:
        return self.folder / "stretches.json"

    def read(self) -> list[Stretch]:
        """Empty where nothing is saved or the file is damaged; recognition then starts again."""
        try:
            return [_stretch(values) for values in json.loads(self._file.read_bytes())]
        except (OSError, *MALFORMED):
            return []

    def write(self, stretches: list[Stretch]) -> None:
        """Raises StorageError."""
        write_whole(self._file, json.dumps([asdict(each) for each in stretches]).encode())

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        with suppress(OSError):  # another file's are still in it
            self.folder.parent.rmdir()


def hear(
    path: Path,
    decode: DecodeConfig,
    config: SpeechConfig,
    *,
    asr: str,
    no_text: bool,
    media: str,
    duration_ms: int,
    saved_in: Path | None = None,
    on_progress: OnHeard = lambda done_ms, total_ms: None,
    decoder: Decoder = HERE,
) -> tuple[Heard, dict[str, Any], SavedStretches | None]:
    """A file's utterances, how they were found, and their saved progress.

    Args:
        asr: the recogniser, as in `find_recogniser`
        no_text: detect voices only, and recognise no words
        media: what stands for the file's bytes
        duration_ms: of the file; later sound is not read
        saved_in: folder for saved progress
        decoder: reads the file

    Raises:
        InputError: the file has no sound that can be decoded.
        WeightsMissing, MismatchError: no detector or no recogniser, with the ways to get one.
        UsageError: the recogniser does not know the language.
    """
    with _recogniser(asr, no_text) as recogniser:
        speech = describe_speech(config, recogniser)
        saved = None
        if saved_in is not None:
            saved = SavedStretches(saved_in, media=f"{media} {duration_ms}", speech=speech)
        stretches = saved.read() if saved is not None else []
        words_by = "nobody, as asked" if recogniser is None else recogniser.name
        log.info("%s: voices are found by %s, words by %s", path.name, DETECTOR, words_by)
        if stretches:
            until_s = stretches[-1].end_ms / 1000
            log.info("%s: an earlier call heard the first %.1f s of it", path.name, until_s)
        try:
            for stretch in listen(
                path,
                decode,
                config,
                recogniser,
                duration_ms=duration_ms,
                from_ms=stretches[-1].end_ms if stretches else 0,
                on_progress=lambda done_ms: on_progress(done_ms, duration_ms),
                decoder=decoder,
            ):
                stretches.append(stretch)
                if saved is not None:
                    saved.write(stretches)
        except ClipError as error:
            raise InputError(
                f"{path}: its sound cannot be used ({error.message}); say where its utterances "
                'are: --subtitles FILE, --transcript FILE, or --text "WORDS" where it is one'
            ) from error
    spans = tuple(span for stretch in stretches for span in stretch.utterances)
    notes = describe_doubts(stretches)
    if not spans:
        notes = (*notes, "no speech was found in it, so there is no utterance")
    return Heard(spans=spans, notes=notes), speech, saved


@contextmanager
def _recogniser(asr: str, no_text: bool) -> Iterator[Recogniser | None]:
    if no_text:
        yield None
        return
    with load_recogniser(asr) as recogniser:
        yield recogniser


def _stretch(values: dict[str, Any]) -> Stretch:
    utterances = tuple(
        SpokenSpan(**{**each, "span": MediaSpan(**each["span"])}) for each in values["utterances"]
    )
    return Stretch(**{**values, "utterances": utterances})
