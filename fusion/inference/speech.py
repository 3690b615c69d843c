"""From a media file's sound to its utterances: where somebody speaks, and what is said.

    sound -> regions (voice.py) -> stretches of at most 28 s -> words (recogniser.py) -> utterances

An utterance needs two witnesses where there is a recogniser: the detector hears a voice, and the
recogniser hears words. Recognisers alone invent them in silence, music and applause.

A stretch is heard by itself: its utterances depend on its sound alone. So a run that was killed
goes on behind the last stretch that was saved, and ends with the same utterances.
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


@dataclass(frozen=True, kw_only=True)
class SpeechConfig:
    """How a file's sound is cut into utterances, and which recognised words are believed.

    join_ms:      regions that are closer are heard together, as far as they fit into 28 s
    language:     code of the language spoken ("en"); None: a recogniser that knows several detects
                  it, stretch by stretch
    min_evidence: an utterance is one from this on: the mean probability of a voice, times the
                  recogniser's own that somebody speaks
    min_word_probability: mean over an utterance's words; below it the words are left out, and the
                  utterance stays. Fewer than four words need less
    min_log_probability: the same for the mean over the tokens of all that was recognised together
    max_compression: the same for words that compress better than this: they repeat themselves
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
# its words are there a second after it ends. The recogniser hears less around them then.
PROMPT = SpeechConfig(voice=VoiceConfig(min_silence_ms=480, max_region_ms=12_000), join_ms=0)


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A finished part of a file, with the utterances that were heard in it, in order.

    Stretches touch, and cover the file from its start to the end of its sound. Their borders are
    the detector's alone.

    num_unclear: of the utterances, those whose words are left out because they are not believed
    unheard_ms:  voice, as the detector has it, in which the recogniser hears nobody speak
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
    """The utterances of a file, stretch by stretch, in order, each as soon as it is finished.

    Args:
        decode: which channel is heard; rate and length are the detector's own
        recogniser: None leaves the words out: utterances are cut at pauses alone
        duration_ms: of the file; what comes later is not heard
        from_ms: the end of the last stretch that is known already: it and those before it are not
            recognised again, nor given. Their sound is read, as the detector carries a state: that
            costs seconds per hour of media
        on_progress: is told how many milliseconds of the file are finished
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
    """What a timeline keeps of how its utterances were found: what `json.dumps` takes."""
    model = None
    if recogniser is not None:
        model = {"name": recogniser.name, "fingerprint": recogniser.fingerprint}
    return {
        "detector": {"name": DETECTOR, "fingerprint": hash_detector()},
        "recogniser": model,
        "settings": describe_config(config),
    }


def describe_doubts(stretches: Sequence[Stretch]) -> tuple[str, ...]:
    """What is to be told of a file's utterances, each in one line."""
    notes = []
    num = sum(len(each.utterances) for each in stretches)
    num_unclear = sum(each.num_unclear for each in stretches)
    unheard_s = sum(each.unheard_ms for each in stretches) / 1000
    if num_unclear:
        hint = "; is it the recogniser's language?" if 2 * num_unclear > num else ""
        notes.append(
            f"of {num} utterances {num_unclear} have no words: the recogniser is not sure enough "
            f"of them{hint}"
        )
    if unheard_s >= 0.5:
        notes.append(
            f"{unheard_s:.1f} s that sound like a voice are left out: the recogniser hears nobody "
            "speak"
        )
    spoken: dict[str, int] = {}
    for each in stretches:
        if each.language is not None and each.utterances:
            spoken[each.language] = spoken.get(each.language, 0) + len(each.utterances)
    told = ", ".join(
        f"{code}: {count} utterances" for code, count in spoken.items() if code != "en"
    )
    if told:
        notes.append(f"languages other than English were heard ({told})")
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
    """The regions of each stretch, in order, and the sound to hear them in; at last what is left of
    the file, with no regions."""
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
    """Takes from `waiting` the regions of the next stretch; none where more have to be known.

    settled_ms: no region is to come that begins before; None: none is to come at all
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
    """How many of these are heard together, when the next does not fit: those before the longest
    silence of the second half, so that hardly a sentence is cut."""
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
    """That somebody speaks here, by both witnesses."""
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
    # Of few words a recogniser is never sure: of one, half is wanted.
    num_together = sum(len(passage.words) for passage in passages)
    wanted = config.min_word_probability * min((num_together + 2) / 6, 1)
    return sum(word.probability for word in words) / len(words) >= wanted


def _as_span(line: Line) -> SpokenSpan:
    return SpokenSpan(
        span=MediaSpan(start_ms=line.start_ms, end_ms=line.end_ms),
        text=line.text,
        text_source="recognised" if line.text else "none",
    )
