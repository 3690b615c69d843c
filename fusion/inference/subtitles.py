"""Reads subtitles as utterances: SubRip (.srt), WebVTT (.vtt) and SubStation Alpha (.ass, .ssa)
files, and subtitle tracks in a media file."""

import html
import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from html.entities import html5
from pathlib import Path

import pysubs2

from fusion.inference.segments import Heard, SpokenSpan, in_order
from fusion.inference.texts import read_text
from pipeline.corpus.texts import normalise_text
from pipeline.decode.subtitles import SubtitleCue, SubtitleTrack
from pipeline.errors import InputError
from pipeline.schema import MediaSpan

SUFFIXES = (".srt", ".vtt", ".ass", ".ssa")
_FORMATS = ("srt", "vtt", "ass", "ssa")

# WebVTT's voice tag, which names the speaker; pysubs2 keeps it if it is told to keep unknown tags.
_VOICE = re.compile(r"<v(?:\.[^\s>]*)?\s+([^>]+)>")
_TAG = re.compile(r"<[^>]*>")
_REFERENCE = re.compile(r"&(?:(#\d{1,7}|#[xX][0-9a-fA-F]{1,6})|[a-zA-Z]{2,8});")
# Descriptions of sounds for the deaf, and note signs around sung words: they are not spoken.
_SOUNDS = re.compile(r"\[[^\]]*\]|\([^)]*\)|[♪♫#*]+(?=\s|$)|(?:^|(?<=\s))[♪♫#*]+")
_DASH = re.compile(r"(?:^|(?<=\s))[-‐‑–—]\s+")
_NEGATIVE = re.compile(r"(?:^|(?<=--> ))-\d+:\d\d(?::\d\d)?[.,]\d{1,3}\b", re.MULTILINE)
_DRAWS = re.compile(r"\\p[1-9]")
# Nobody reads more at one time. Without a bound, markup that never ends would be looked for from
# each of its beginnings: hours for a file of some megabytes.
_MOST_CHARACTERS = 4000
_LABEL = re.compile(r"([A-Z][A-Z0-9 .'-]{0,30}):\s+")


def read_subtitles(path: Path) -> Heard:
    """Every cue with spoken words, in order of its start.

    UTF-8, UTF-16 with a byte-order mark, and else cp1252. Descriptions of sounds in brackets,
    formatting, dashes and comments are left out. The speaker is taken from a voice tag of WebVTT,
    the name of a SubStation line, or "JOEY: " before the words.

    Raises InputError where the file is no such file, or holds no words.
    """
    text, notes = read_text(path)
    # Programs that shift subtitles write negative times, and pysubs2 would read them as positive.
    text, num_negative = _NEGATIVE.subn("00:00:00.000", text)
    if num_negative:
        notes += (f"{num_negative} times lie before the file's start and are cut there",)
    try:
        with warnings.catch_warnings():  # of margins and layers, which nobody asks for
            warnings.simplefilter("ignore")
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
    heard = _utterances(file.events)
    if not heard.spans:
        why = f" ({'; '.join(heard.notes)})" if heard.notes else ""
        raise InputError(f"{path}: {len(file.events)} cues, none with spoken words{why}")
    return replace(heard, notes=(*notes, *heard.notes))


def choose_track(tracks: Sequence[SubtitleTrack]) -> Heard:
    """The utterances of the track with the spoken words, and remarks about all tracks.

    A track in English comes first, as the models read English, then the file's default, then the
    first. Bitmap tracks, and those for foreign-language parts only ("forced"), are skipped. Without
    a suitable track there is no utterance.
    """
    notes = tuple(_passed_over(track) for track in tracks if not _tells_speech(track))
    for track in sorted(filter(_tells_speech, tracks), key=_rank):
        heard = _utterances(_as_events(track.cues))
        if not heard.spans:
            notes += (f"{_name(track)}: {len(track.cues)} cues, none with spoken words",)
            continue
        damaged: tuple[str, ...] = ()
        if track.num_damaged:
            damaged = (f"{track.num_damaged} cues of it are damaged and left out",)
        told = f"the words are those of {_name(track)}"
        return replace(heard, notes=(told, *damaged, *heard.notes, *notes))
    return Heard(spans=(), notes=notes)


def _tells_speech(track: SubtitleTrack) -> bool:
    return bool(track.cues) and not track.is_forced


def _rank(track: SubtitleTrack) -> tuple[bool, bool, bool, int]:
    is_english = track.language.lower().startswith("en")
    return track.is_commentary, not is_english, not track.is_default, track.number


def _name(track: SubtitleTrack) -> str:
    told = ", ".join(filter(None, (track.codec, track.language)))
    return f"the file's subtitle track {track.number} ({told})"


def _passed_over(track: SubtitleTrack) -> str:
    if track.is_pictures:
        why = "bitmap subtitles, which are not read"
    elif track.is_forced:
        why = "only for foreign-language parts"
    else:
        why = "no cue that can be read"
    return f"{_name(track)} is skipped: {why}"


def _as_events(cues: Sequence[SubtitleCue]) -> list["pysubs2.SSAEvent"]:
    """A cue without an end lasts until the next one begins; the end of the last one is unknown."""
    cues = sorted(cues, key=lambda cue: cue.start_ms)
    nexts = [cue.start_ms for cue in cues[1:]]
    return [
        pysubs2.SSAEvent(
            start=cue.start_ms,
            end=next_ms if cue.end_ms is None else cue.end_ms,
            text=cue.text,
            name=cue.name,
        )
        for cue, next_ms in zip(cues, [*nexts, cues[-1].start_ms if cues else 0], strict=False)
    ]


def _utterances(events: Sequence["pysubs2.SSAEvent"]) -> Heard:
    """The cues with spoken words, as utterances."""
    spans, backward, negative, too_long = [], [], [], []
    notes: tuple[str, ...] = ()
    for number, event in enumerate(events, start=1):
        if event.is_comment:
            continue
        if len(event.text) > _MOST_CHARACTERS:  # before pysubs2 looks for markup
            if not _DRAWS.search(event.text):
                too_long.append(number)
            continue
        if event.is_drawing:
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
    if too_long:
        notes += (f"{_cues(too_long)}: more than {_MOST_CHARACTERS} characters; left out",)
    if backward:
        notes += (f"{_cues(backward)}: end before start; left out",)
    if negative:
        notes += (f"{_cues(negative)}: start before the file; cut at its start",)
    return Heard(spans=in_order(spans), notes=notes)


def _words_of(event: "pysubs2.SSAEvent") -> tuple[str | None, str]:
    """The speaker, if it is given, and the words as plain text on one line."""
    text = event.plaintext
    voice = _VOICE.search(text)
    words = _DASH.sub(" ", _SOUNDS.sub(" ", _unescape(_TAG.sub("", text))))
    words = normalise_text(words)
    speaker = normalise_text(_unescape(voice[1]) if voice else event.name) or None
    if speaker is None and (label := _LABEL.match(words)):
        speaker, words = label[1].title(), words[label.end() :]
    return speaker, words


def _unescape(text: str) -> str:
    """WebVTT escapes "&" and "<", and many programs do so everywhere, apostrophes too."""

    def read(found: re.Match[str]) -> str:
        if found[1]:
            return html.unescape(found[0])
        return html5.get(found[0][1:], found[0])  # whole names alone

    return _REFERENCE.sub(read, text)


def _cues(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:5]))
    rest = f" and {len(numbers) - 5} more" if len(numbers) > 5 else ""
    return f"{'cue' if len(numbers) == 1 else 'cues'} {shown}{rest}"
