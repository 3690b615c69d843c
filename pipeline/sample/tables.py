"""The tables of the generated corpus: MELD's CSVs, the carriers, and the settings."""

import csv
import io
from collections.abc import Iterable, Mapping

from pipeline.sample.plan import ClipPlan
from pipeline.schema import ClipKey

COLUMNS = (
    "Sr No.",
    "Utterance",
    "Speaker",
    "Emotion",
    "Sentiment",
    "Dialogue_ID",
    "Utterance_ID",
    "Season",
    "Episode",
    "StartTime",
    "EndTime",
)
CARRIER_COLUMNS = (
    "Split",
    "Dialogue_ID",
    "Utterance_ID",
    "Emotion",
    "Carriers",
    "Text",
    "Voice",
    "Face",
)

_PAUSE_S = 0.4  # pause between two utterances
_FIRST_SCENE_S, _SCENE_S, _SCENES = 61, 97, 12


def annotations_csv(
    plans: Iterable[ClipPlan], texts: Mapping[ClipKey, str], durations_s: Mapping[ClipKey, float]
) -> str:
    """The CSV of one split; times continue within a dialogue, as in an episode."""
    rows, clock_s, dialogue = [], 0.0, -1
    for number, plan in enumerate(plans, start=1):
        key = plan.key
        if key.dialogue_id != dialogue:
            dialogue = key.dialogue_id
            clock_s = _FIRST_SCENE_S + _SCENE_S * (dialogue % _SCENES)
        end_s = clock_s + durations_s[key]
        rows.append(
            (
                number,
                texts[key],
                plan.speaker,
                plan.emotion,
                plan.sentiment,
                key.dialogue_id,
                key.utterance_id,
                plan.season,
                plan.episode,
                _clock(clock_s),
                _clock(end_s),
            )
        )
        clock_s = end_s + _PAUSE_S
    return _table(COLUMNS, rows)


def carriers_csv(plans: Iterable[ClipPlan]) -> str:
    """The emotion that each modality of each row shows; "ambiguous" texts fit every emotion."""
    return _table(
        CARRIER_COLUMNS,
        [
            (
                plan.key.split,
                plan.key.dialogue_id,
                plan.key.utterance_id,
                plan.emotion,
                "+".join(plan.carriers),
                plan.emotion if "text" in plan.carriers else "ambiguous",
                plan.voice,
                plan.face,
            )
            for plan in plans
        ],
    )


def _table(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> str:
    # MELD's style: CRLF, quotes only where needed.
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerows([columns, *rows])
    return text.getvalue()


def _clock(seconds: float) -> str:
    """MELD's HH:MM:SS,mmm."""
    whole, thousandths = divmod(round(seconds * 1000), 1000)
    return f"{whole // 3600:02d}:{whole // 60 % 60:02d}:{whole % 60:02d},{thousandths:03d}"
