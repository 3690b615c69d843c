"""What the trial of live sessions says of them, beside what their sounds would be as uploads."""

from typing import Any

import pytest

pytest.importorskip("websockets", reason="the extra serve is not installed")
pytest.importorskip("psutil", reason="the extra dev is not installed")

from bench.live import Told, choose, compare


def said(start_ms: int, text: str, joy: float = 0.5) -> dict[str, Any]:
    probabilities = {"joy": joy, "neutral": 1 - joy}
    return {
        "start_ms": start_ms,
        "end_ms": start_ms + 900,
        "text": text,
        "emotion": {"probabilities": probabilities},
        "sentiment": None,
    }


def session(*utterances: dict[str, Any]) -> Told:
    messages = [
        {"type": "measurement.result", "final": True, "utterance": each} for each in utterances
    ]
    provisional = {"type": "measurement.result", "final": False, "utterance": said(1, "")}
    return Told(messages=[provisional, *messages], code=1000)


def test_each_utterance_is_that_of_the_upload_unlike_it_or_anothers() -> None:
    mine, yours = [said(0, "Hello."), said(2_000, "Bye.")], [said(0, "Good morning.")]
    wanted = [mine, yours]
    assert compare([session(*mine), session()], wanted) == {
        "as the upload": 2,
        "unlike": 0,
        "another's": 0,
    }
    within = session(said(0, "Hello.", joy=0.50005))
    apart, other_words = session(said(0, "Hello.", joy=0.51)), session(said(0, "Hallo."))
    stolen = session(said(0, "Good morning."))
    for first, kind in (
        (within, "as the upload"),
        (apart, "unlike"),
        (other_words, "unlike"),
        (stolen, "another's"),
    ):
        assert compare([first, session()], wanted)[kind] == 1


def test_clients_begin_with_different_sounds() -> None:
    pieces = [b"a", b"b", b"c"]
    played = [b"".join(choose(pieces, number, 2)) for number in range(4)]
    assert played == [b"ab", b"bc", b"ca", b"ab"]
