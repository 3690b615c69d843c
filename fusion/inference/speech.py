"""Finds the utterances in a media file's sound: voice detection, then speech recognition.

    sound -> regions (voice.py) -> stretches of at most 28 s -> words (recogniser.py) -> utterances

With a recogniser, an utterance needs both: a detected voice and recognised words. Recognisers alone
invent words in silence, music and applause.

Each stretch is recognised independently: its utterances depend on its sound alone. So a killed run
resumes after the last saved stretch and ends with the same utterances.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.inference.cutting import (
    CuttingConfig,
    Line,
    PlacedWord,
    cut_at_pauses,
    cut_words,
    lengthen,
    place_words,
    shorten,
)
from fusion.inference.recogniser import Recognised, Recogniser
from fusion.inference.segments import SpokenSpan
from fusion.inference.voice import (
    DETECTOR,
    RATE_HZ,
    OnProgress,
    RegionFinder,
    SpeechRegion,
    VoiceConfig,
    VoiceDetector,
    hash_detector,
    read_sound,
)
from pipeline.decode.process import HERE, Decoder
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from pipeline.settings import describe_config

# Recognisers of the Whisper family hear 30 s at a time.
_MAX_STRETCH_MS = 28_000
# The settings of `SpeechConfig` that change nothing where no recogniser runs.
OF_THE_RECOGNISER = (
    *("language", "min_evidence"),
    *("min_word_probability", "min_log_probability", "max_compression"),
    "cutting.pause_ms",
)


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """How speech is found and recognised, and which recognised words are kept.

    join_ms:      voice regions that are closer than this are recognised together, up to 28 s
    language:     code of the spoken language, such as "en"; None lets a multilingual recogniser
                  detect it for each stretch
    min_evidence: least evidence for an utterance: the mean probability of a voice times the
                  recogniser's probability that somebody speaks
    min_word_probability: least mean probability of an utterance's words; below it the utterance is
                  kept without words. Fewer than four words need less
    min_log_probability: least mean log probability of the tokens that were recognised together;
                  below it the words are left out
    max_compression: largest compression ratio of the recognised text; above it, it repeats itself
                  and the words are left out
    """

    voice: VoiceConfig = field(default_factory=VoiceConfig)
    cutting: CuttingConfig = field(default_factory=CuttingConfig)
    join_ms: int = 2_000
    language: str | None = None
    min_evidence: float = 0.3
    min_word_probability: float = 0.6
    min_log_probability: float = -1.0
    max_compression: float = 2.4

    def __post_init__(self) -> None:
        shortest_ms = self.voice.min_speech_ms + self.voice.min_silence_ms
        if self.cutting.min_utterance_ms > shortest_ms:
            raise ValueError(
                f"min_utterance_ms must be at most {shortest_ms}, the shortest voice and the "
                f"shortest silence together, not {self.cutting.min_utterance_ms}"
            )
        for name in ("join_ms", "min_evidence", "min_word_probability"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, not {getattr(self, name)}")


# Where somebody waits for the answer: each voice is heard by itself as soon as it pauses, so that
# its words are there soon after it ends. The recogniser hears less around them then.
PROMPT = SpeechConfig(voice=VoiceConfig(min_silence_ms=480, max_region_ms=12_000), join_ms=0)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A finished part of a file with its utterances, in order.

    Stretches are adjacent and cover the file from its start to the end of its sound. Their borders
    depend on the voice detector alone.

    num_unclear: number of utterances whose words are left out for low confidence
    unheard_ms:  time of detected voice in which the recogniser finds no speech
    language:    as the recogniser detected it; None where it detects none
    """

    start_ms: int
    end_ms: int
    utterances: tuple[SpokenSpan, ...] = ()
    num_unclear: int = 0
    unheard_ms: int = 0
    language: str | None = None


def listen(
    path: Path,
    decode: DecodeConfig,
    config: SpeechConfig,
    recogniser: Recogniser | None,
    *,
    duration_ms: int,
    from_ms: int = 0,
    on_progress: OnProgress = lambda done_ms: None,
    decoder: Decoder = HERE,
) -> Iterator[Stretch]:
    """Yields the stretches of a file in order, each as soon as it is finished.

    Args:
        decode: which channel is used; rate and length are those of the detector
        recogniser: None leaves the words out: utterances are cut at pauses alone
        duration_ms: of the file; later sound is not read
        from_ms: the end of the last known stretch: it and those before it are neither recognised
            again nor yielded. Their sound is read, because the detector has a state, which costs
            seconds per hour of media
        on_progress: called with the number of finished milliseconds
        decoder: who reads the file

    Raises:
        WeightsMissing: the detector is not installed.
        UsageError: the recogniser does not know the language.
        ClipError: the file has no sound that can be decoded.
        ValueError: no stretch of this file ends at `from_ms`.
    """
    language = config.language
    if recogniser is not None and language is not None and language not in recogniser.languages:
        raise UsageError(
            f"the recogniser {recogniser.name} does not know the language {language!r}, it knows "
            f"{', '.join(recogniser.languages)}; name another (--asr FOLDER), or leave the words "
            "out (--no-text)"
        )
    return _listen(path, decode, config, recogniser, duration_ms, from_ms, on_progress, decoder)


def _listen(
    path: Path,
    decode: DecodeConfig,
    config: SpeechConfig,
    recogniser: Recogniser | None,
    duration_ms: int,
    from_ms: int,
    on_progress: OnProgress,
    decoder: Decoder,
) -> Iterator[Stretch]:
    done_ms = 0
    for regions, finder in _stretches(path, decode, config, duration_ms, on_progress, decoder):
        start_ms, done_ms = done_ms, finder.heard_ms if not regions else regions[-1].end_ms
        if start_ms < from_ms < done_ms:
            raise ValueError(f"{path}: no stretch ends at {from_ms} ms")
        if done_ms > from_ms:
            stretch = Stretch(start_ms=start_ms, end_ms=done_ms)
            if regions:
                sound = finder.sound(regions[0].start_ms, done_ms)
                heard = hear_stretch(regions, sound, config, recogniser, end_ms=duration_ms)
                stretch = replace(heard, start_ms=start_ms)
            yield stretch
        on_progress(done_ms)
    on_progress(duration_ms)


def describe_speech(config: SpeechConfig, recogniser: Recogniser | None) -> dict[str, Any]:
    """How the utterances were found, for the timeline; values that `json.dumps` takes."""
    model = None
    if recogniser is not None:
        model = {"name": recogniser.name, "fingerprint": recogniser.fingerprint}
    return {
        "detector": {"name": DETECTOR, "fingerprint": hash_detector()},
        "recogniser": model,
        "settings": describe_config(config),
    }


def describe_doubts(stretches: Sequence[Stretch]) -> tuple[str, ...]:
    """Remarks about a file's recognised utterances, for the user, each in one line."""
    notes = []
    num = sum(len(each.utterances) for each in stretches)
    num_unclear = sum(each.num_unclear for each in stretches)
    unheard_s = sum(each.unheard_ms for each in stretches) / 1000
    if num_unclear:
        hint = "; is it the recogniser's language?" if 2 * num_unclear > num else ""
        notes.append(
            f"{num_unclear} of {num} utterances have no words: the recogniser's confidence in them "
            f"is too low{hint}"
        )
    if unheard_s >= 0.5:
        notes.append(
            f"{unheard_s:.1f} s of detected voice are left out: the recogniser finds no speech "
            "there"
        )
    spoken: dict[str, int] = {}
    for each in stretches:
        if each.language is not None and each.utterances:
            spoken[each.language] = spoken.get(each.language, 0) + len(each.utterances)
    told = ", ".join(
        f"{code}: {count} utterances" for code, count in spoken.items() if code != "en"
    )
    if told:
        notes.append(f"languages other than English were detected ({told})")
    return tuple(notes)


# --------------------------------------------------------------------------------- the stretches


class StretchFinder:
    """Sound that comes piece by piece to the regions of each stretch, and the sound to hear them
    in: what a file is cut by, and what a microphone is. The sizes of the pieces change nothing.
    """

    def __init__(self, config: SpeechConfig) -> None:
        """Raises WeightsMissing: the detector is not installed."""
        self._config = config
        self._detector, self._finder = VoiceDetector.load(), RegionFinder(config.voice)
        self._waiting: list[SpeechRegion] = []
        self._blocks: list[NDArray[np.float32]] = []
        self._first = self._past = 0  # samples of the whole that the blocks hold

    @property
    def heard_ms(self) -> int:
        """Of the sound, what was taken."""
        return self._past * 1000 // RATE_HZ

    @property
    def finished_ms(self) -> int:
        """No stretch that is still to come begins before."""
        return self._waiting[0].start_ms if self._waiting else self._finder.settled_ms

    @property
    def open_ms(self) -> int | None:
        """Where the stretch begins that has not ended; None where nobody speaks."""
        return self._waiting[0].start_ms if self._waiting else self._finder.open_ms

    def take(self, samples: NDArray[np.float32]) -> Iterator[list[SpeechRegion]]:
        """The regions of each stretch that these samples end, in order.

        samples: float32 [samples] at `RATE_HZ`, those that follow the ones taken before
        """
        self._blocks.append(samples)
        self._past += len(samples)
        self._waiting += self._finder.take(self._detector.take(samples))
        while group := take_stretch(self._waiting, self._finder.settled_ms, self._config):
            yield group

    def finish(self) -> Iterator[list[SpeechRegion]]:
        """The regions of what has not ended, as if silence followed."""
        self._waiting += self._finder.take(self._detector.finish())
        self._waiting += self._finder.finish(self.heard_ms)
        while group := take_stretch(self._waiting, None, self._config):
            yield group

    def sound(self, start_ms: int, end_ms: int) -> NDArray[np.float32]:
        """float32 [samples] between two moments, as far as it is there and not forgotten."""
        first, past = (max(ms * RATE_HZ // 1000 - self._first, 0) for ms in (start_ms, end_ms))
        return np.concatenate([*self._blocks, np.zeros(0, np.float32)])[first:past]

    def forget_before(self, start_ms: int) -> None:
        """Drops the blocks that lie wholly before."""
        first = start_ms * RATE_HZ // 1000
        while self._blocks and self._first + len(self._blocks[0]) <= first:
            self._first += len(self._blocks.pop(0))


def _stretches(
    path: Path,
    decode: DecodeConfig,
    config: SpeechConfig,
    duration_ms: int,
    on_progress: OnProgress,
    decoder: Decoder,
) -> Iterator[tuple[list[SpeechRegion], StretchFinder]]:
    """Yields the regions of each stretch, in order, and their sound; at last the rest of the file,
    with no regions."""
    finder = StretchFinder(config)
    for samples in read_sound(path, decode, duration_ms=duration_ms, decoder=decoder):
        for group in finder.take(samples):
            yield group, finder
        finder.forget_before(finder.finished_ms)
        on_progress(min(finder.finished_ms, duration_ms))
    last_ms = 0
    for group in finder.finish():
        yield group, finder
        last_ms = group[-1].end_ms
    if finder.heard_ms > last_ms:
        yield [], finder


def take_stretch(
    waiting: list[SpeechRegion], settled_ms: int | None, config: SpeechConfig
) -> list[SpeechRegion]:
    """Takes the regions of the next stretch from `waiting`; none if more regions are needed to
    decide.

    settled_ms: no later region begins before it; None: no region follows
    """
    num = 0
    for number, region in enumerate(waiting):
        if number and region.start_ms - waiting[number - 1].end_ms >= config.join_ms:
            break
        if region.end_ms - waiting[0].start_ms > _MAX_STRETCH_MS:
            num = _last_good_border(waiting[:number])
            break
        num = number + 1
    else:
        is_settled = settled_ms is None or (
            num > 0 and settled_ms - waiting[-1].end_ms >= config.join_ms
        )
        if not is_settled:
            return []
    taken = waiting[:num]
    del waiting[:num]
    return taken


def _last_good_border(regions: Sequence[SpeechRegion]) -> int:
    """Number of these regions that form a stretch when the next does not fit: those before the
    longest silence of the second half, so that a sentence is rarely cut."""
    half_ms = (regions[0].start_ms + regions[-1].end_ms) / 2
    silences = [
        (after.start_ms - before.end_ms, number)
        for number, (before, after) in enumerate(pairwise(regions), start=1)
        if before.end_ms >= half_ms
    ]
    return max(silences)[1] if silences else len(regions)


# -------------------------------------------------------------------------------- what is heard


def hear_stretch(
    regions: Sequence[SpeechRegion],
    samples: NDArray[np.float32],
    config: SpeechConfig,
    recogniser: Recogniser | None,
    *,
    end_ms: int,
) -> Stretch:
    """What is said in the regions of one stretch, cut into utterances.

    Args:
        samples: float32 [samples] at `RATE_HZ`, from the first region's start to the last one's end
        recogniser: None leaves the words out
        end_ms: where the sound ends; no utterance goes on behind it
    """
    language = None
    if recogniser is None:
        lines = [line for region in regions for line in cut_at_pauses(region, config.cutting)]
        heard_regions = set(range(len(regions)))
    else:
        heard = recogniser.recognise(samples, config.language)
        language = heard.language if heard.language_probability is not None else None
        groups = [
            group
            for group in cut_words(place_words(heard, regions), regions, config.cutting)
            if _evidence(group, regions, heard) >= config.min_evidence
        ]
        lines = shorten(
            [_as_line(group, heard, config) for group in groups], config.cutting.max_utterance_ms
        )
        heard_regions = {word.region for group in groups for word in group}
    margin_ms = config.voice.min_silence_ms // 2 - config.voice.padding_ms
    lines = lengthen(
        lines,
        config.cutting.min_utterance_ms,
        lower_ms=max(regions[0].start_ms - margin_ms, 0),
        upper_ms=min(regions[-1].end_ms + margin_ms, end_ms),
    )
    return Stretch(
        start_ms=regions[0].start_ms,
        end_ms=regions[-1].end_ms,
        utterances=tuple(map(_as_span, lines)),
        num_unclear=0 if recogniser is None else sum(not line.text for line in lines),
        unheard_ms=sum(
            region.end_ms - region.start_ms
            for number, region in enumerate(regions)
            if number not in heard_regions
        ),
        language=language,
    )


def _evidence(
    words: Sequence[PlacedWord], regions: Sequence[SpeechRegion], heard: Recognised
) -> float:
    """Evidence of speech: voice detector and recogniser combined."""
    each = [
        regions[word.region].confidence * (1 - heard.passages[word.passage].no_speech)
        for word in words
    ]
    return sum(each) / len(each)


def _as_line(words: Sequence[PlacedWord], heard: Recognised, config: SpeechConfig) -> Line:
    text = "".join(word.text for word in words).strip() if _is_sure(words, heard, config) else ""
    return Line(start_ms=words[0].start_ms, end_ms=words[-1].end_ms, text=text)


def _is_sure(words: Sequence[PlacedWord], heard: Recognised, config: SpeechConfig) -> bool:
    passages = [heard.passages[number] for number in {word.passage for word in words}]
    if any(
        passage.log_probability < config.min_log_probability
        or passage.compression > config.max_compression
        for passage in passages
    ):
        return False
    # A recogniser is less sure of few words: the limit for a single word is half.
    num_together = sum(len(passage.words) for passage in passages)
    wanted = config.min_word_probability * min((num_together + 2) / 6, 1)
    return sum(word.probability for word in words) / len(words) >= wanted


def _as_span(line: Line) -> SpokenSpan:
    return SpokenSpan(
        span=MediaSpan(start_ms=line.start_ms, end_ms=line.end_ms),
        text=line.text,
        text_source="recognised" if line.text else "none",
    )
