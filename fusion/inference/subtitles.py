"""Subtitle files to utterances: SubRip (.srt), WebVTT (.vtt), SubStation Alpha (.ass, .ssa)."""

import re
from pathlib import Path

import pysubs2

from fusion.inference.segments import Heard, SpokenSpan, in_order
from fusion.inference.texts import read_text
from pipeline.corpus.texts import normalise_text
from pipeline.errors import InputError
from pipeline.schema import MediaSpan

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
_FORMATS = ("srt", "vtt", "ass", "ssa")

# WebVTT's own name of who speaks; pysubs2 hands it on where it is told to keep what it does not
# know.
_VOICE = re.compile(r"<v(?:\.[^\s>]*)*\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>")
# What the deaf are told of sounds, and the notes around sung words: nobody says it.
_SOUNDS = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫#*]+(?=\s|$)|(?:^|(?<=\s))[♪♫#*]+")
_DASH = re.compile(r"(?:^|(?<=\s))[-‐‑–—]\s+")
_LABEL = re.compile(r"([A-Z][A-Z0-9 .'-]{0,30}):\s+")


def read_subtitles(path: Path) -> Heard:
    """Every cue in which something is said, in order of its start.

    UTF-8, UTF-16 with a byte-order mark, and else cp1252. Descriptions of sounds in brackets,
    formatting, dashes and comments are left out. Who speaks is what the file says of it: a voice
    tag of WebVTT, the name of a SubStation line, or "JOEY: " before the words.

    Raises InputError where the file is no such file, or holds no words.
    """
    text, notes = read_text(path)
    try:
        # Times decide: a cue of SubRip with a broken time would be passed over else.
        file = pysubs2.SSAFile.from_string(text, keep_unknown_html_tags=True)
    except (pysubs2.exceptions.Pysubs2Error, ValueError, OverflowError) as error:
        raise InputError(
            f"{path}: no subtitles of a known kind ({', '.join(SUFFIXES)}): {error}"
        ) from error
    if file.format not in _FORMATS:
        raise InputError(
            f"{path}: subtitles of the kind {file.format}; known are {', '.join(SUFFIXES)}"
        )
    spans, backward, negative = [], [], []
    for number, event in enumerate(file.events, start=1):
        if event.is_comment or event.is_drawing:
            continue
        speaker, words = _words_of(event)
        if not words:
            continue
        if event.start < 0:
            negative.append(number)
        if event.end <= max(event.start, 0):
            backward.append(number)
            continue
        spans.append(
            SpokenSpan(
                span=MediaSpan(start_ms=max(event.start, 0), end_ms=event.end),
                text=words,
                text_source="subtitles",
                speaker=speaker,
            )
        )
    if backward:
        notes += (f"{_cues(backward)}: over before they start; left out",)
    if negative:
        notes += (f"{_cues(negative)}: start before the file does; cut there",)
    if not spans:
        raise InputError(f"{path}: {len(file.events)} cues, and none in which something is said")
    return Heard(spans=in_order(spans), notes=notes)


def _words_of(event: "pysubs2.SSAEvent") -> tuple[str | None, str]:
    """Who speaks, if the file says so, and the words, plain and on one line."""
    text = event.plaintext
    voice = _VOICE.search(text)
    words = _DASH.sub(" ", _SOUNDS.sub(" ", _TAG.sub("", text)))
    words = normalise_text(words)
    speaker = normalise_text(voice[1] if voice else event.name) or None
    if speaker is None and (label := _LABEL.match(words)):
        speaker, words = label[1].title(), words[label.end() :]
    return speaker, words


def _cues(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    rest = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{'cue' if len(numbers) == 1 else 'cues'} {shown}{rest}"
