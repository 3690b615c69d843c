"""The text that encoders get: normalised characters, and the context of earlier utterances."""

import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from pipeline.recipe import EncoderSpec
from pipeline.schema import ClipKey, Said, Utterance

_PLAIN = str.maketrans(
    {
        "‘": "'", "’": "'", "“": '"', "”": '"',
        "…": "...", "—": "-", "–": "-", "\u00a0": " ",
    }
)  # fmt: skip


def normalise_text(text: str) -> str:
    """Plain quotes and dashes, C1 controls read as the cp1252 characters they were, NFC,
    single spaces. Applying it twice changes nothing."""
    repaired = "".join(_repair_c1(char) for char in text)
    return " ".join(unicodedata.normalize("NFC", repaired).translate(_PLAIN).split())


def _repair_c1(char: str) -> str:
    if not "\u0080" <= char <= "\u009f":
        return char
    return char.encode("latin-1").decode("cp1252", errors="ignore")


def with_surroundings(
    utterances: Sequence[Utterance], encoders: Sequence[EncoderSpec]
) -> list[Utterance]:
    """Each utterance with what these encoders read of its dialogue beside it."""
    rows = with_context(utterances, max(spec.context for spec in encoders))
    if any(spec.dialogue != "none" for spec in encoders):
        return with_dialogue(rows)
    return rows


def with_dialogue(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Each utterance with all that is said in its dialogue, in the order of Utterance_ID."""
    of_dialogue: dict[tuple[str, int], list[Utterance]] = {}
    for row in sorted(utterances, key=lambda row: row.key):
        of_dialogue.setdefault((row.key.split, row.key.dialogue_id), []).append(row)
    placed: dict[ClipKey, Utterance] = {}
    for rows in of_dialogue.values():
        said = tuple(Said(row.speaker, row.text) for row in rows)
        placed |= {row.key: replace(row, dialogue=said, turn=turn) for turn, row in enumerate(rows)}
    return [placed[row.key] for row in utterances]


def with_context(utterances: Sequence[Utterance], size: int) -> list[Utterance]:
    """Each utterance with the `size` previous ones of its dialogue as context, and all speakers:
    "Joey: Hey! Monica: Hi, Joey. Joey:". Without speakers, the context has the words alone.

    Rows of a dialogue count in the order of their Utterance_ID, wherever they stand in the file.
    """
    if size == 0:
        return list(utterances)
    ordered = sorted(utterances, key=lambda row: row.key)
    context = {}
    for position, row in enumerate(ordered):
        before = [
            said
            for said in ordered[max(0, position - size) : position]
            if said.key.dialogue_id == row.key.dialogue_id
        ]
        context[row.key] = " ".join(
            filter(None, [*(_said(said.speaker, said.text) for said in before), _said(row.speaker)])
        )
    return [replace(row, context=context[row.key]) for row in utterances]


def _said(speaker: str, text: str = "") -> str:
    return f"{speaker}: {text}".strip() if speaker else text
