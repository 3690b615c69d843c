"""Plans the generated corpus before anything is drawn or spoken.

Every clip's plan has its own seed, so that a clip does not depend on the worker that makes it or
on the order. The carriers are the known answer: the modalities that show the emotion, while the
others stay neutral.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.sample.texts import sentence
from pipeline.schema import EMOTIONS, ClipKey, Split

# Must be raised whenever the same settings give another corpus.
REVISION = 1

# MELD's own shares, with fear and disgust (2.7 % each) raised so that a small split has both.
EMOTION_SHARES = {
    "neutral": 0.47,
    "surprise": 0.11,
    "fear": 0.045,
    "sadness": 0.07,
    "joy": 0.15,
    "disgust": 0.045,
    "anger": 0.11,
}

# Most utterances have one carrier, so that no single modality knows most of the answers. The face
# is a carrier less often, because it is the easiest to recognise.
CARRIER_SHARES = {
    ("text",): 0.23,
    ("voice",): 0.21,
    ("face",): 0.17,
    ("text", "voice"): 0.11,
    ("text", "face"): 0.10,
    ("voice", "face"): 0.10,
    ("text", "voice", "face"): 0.08,
}

SPEAKERS = (
    "Nadia",
    "Oskar",
    "Priya",
    "Tomas",
    "Wren",
    "Idris",
    "Maren",
    "Felix",
    "Yuki",
    "Lola",
    "Bruno",
    "Anouk",
)

DEV_SHARE, TEST_SHARE = 0.14, 0.19
GAP_PROBABILITY = 0.03  # MELD skips an utterance id now and then
SURROUND_SHARE = 0.88  # of MELD's clips are 5.1, the rest stereo

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ClipPlan:
    """One row and its clip. `text` is what is spoken; defects are added later.

    carriers: the modalities that show `emotion`; the others are neutral. Voice and face of a
              neutral row are always carriers, because they show nothing else.
    room:     number of the background, the same for all clips of a dialogue
    season, episode: as in MELD's CSVs
    """

    key: ClipKey
    seed: str
    text: str
    speaker: str
    emotion: str
    sentiment: str
    carriers: tuple[str, ...]
    room: int
    surround: bool
    season: int
    episode: int

    @property
    def voice(self) -> str:
        return self.emotion if "voice" in self.carriers else "neutral"

    @property
    def face(self) -> str:
        return self.emotion if "face" in self.carriers else "neutral"


def plan_corpus(*, dialogues: int, seed: int) -> list[ClipPlan]:
    """Plans every clip, in the order of the CSVs."""
    return [
        clip
        for split, count in split_dialogues(dialogues).items()
        for clip in _plan_split(split, count, seed)
    ]


def split_dialogues(dialogues: int) -> dict[Split, int]:
    """The number of dialogues of each split, at least one."""
    dev = max(1, round(DEV_SHARE * dialogues))
    test = max(1, round(TEST_SHARE * dialogues))
    return {"train": dialogues - dev - test, "dev": dev, "test": test}


def _plan_split(split: Split, dialogues: int, seed: int) -> list[ClipPlan]:
    rng = random.Random(f"{seed}/{split}")
    keys = [key for dialogue in range(dialogues) for key in _dialogue_keys(split, dialogue, rng)]
    emotions = _emotions(len(keys), rng)
    carriers = _carriers(emotions, rng)
    return [
        _plan_clip(key, emotion, carrying, seed)
        for key, emotion, carrying in zip(keys, emotions, carriers, strict=True)
    ]


def _dialogue_keys(split: Split, dialogue: int, rng: random.Random) -> list[ClipKey]:
    keys, utterance = [], 0
    for _ in range(rng.randint(3, 8)):
        utterance += rng.random() < GAP_PROBABILITY
        keys.append(ClipKey(split, dialogue, utterance))
        utterance += 1
    return keys


def _emotions(count: int, rng: random.Random) -> list[str]:
    """Emotions in shares as exact as whole rows allow; each occurs if there are enough rows."""
    emotions = _spread(tuple(EMOTION_SHARES), tuple(EMOTION_SHARES.values()), count, rng)
    missing = [name for name in EMOTIONS if name not in emotions]
    if count >= 2 * len(EMOTIONS):
        for name in missing:
            commonest = Counter(emotions).most_common(1)[0][0]
            emotions[emotions.index(commonest)] = name
    rng.shuffle(emotions)
    return emotions


def _carriers(emotions: list[str], rng: random.Random) -> list[tuple[str, ...]]:
    """Carriers in equal shares within every emotion, so that they do not predict the emotion."""
    by_emotion = {}
    for name in EMOTIONS:
        drawn = _spread(
            tuple(CARRIER_SHARES), tuple(CARRIER_SHARES.values()), emotions.count(name), rng
        )
        rng.shuffle(drawn)
        by_emotion[name] = drawn
    return [by_emotion[name].pop() for name in emotions]


def _spread(
    values: Sequence[T], shares: Sequence[float], count: int, rng: random.Random
) -> list[T]:
    """`count` values whose numbers differ from share * count by less than one (systematic)."""
    start, drawn, cumulated, index = rng.random(), [], shares[0], 0
    for position in range(count):
        while (start + position) / count > cumulated and index < len(values) - 1:
            index += 1
            cumulated += shares[index]
        drawn.append(values[index])
    return drawn


def _plan_clip(key: ClipKey, emotion: str, carriers: tuple[str, ...], seed: int) -> ClipPlan:
    clip_seed = f"{seed}/{key.split}/{key.dialogue_id}/{key.utterance_id}"
    rng = random.Random(clip_seed)
    dialogue = random.Random(f"{seed}/{key.split}/{key.dialogue_id}")
    present = dialogue.sample(SPEAKERS, 3)
    sentiment = _sentiment(emotion, rng)
    if emotion == "neutral":
        carriers = (*(("text",) if "text" in carriers else ()), "voice", "face")
    return ClipPlan(
        key=key,
        seed=clip_seed,
        text=sentence(emotion, sentiment, carries="text" in carriers, rng=rng),
        speaker=rng.choice(present),
        emotion=emotion,
        sentiment=sentiment,
        carriers=carriers,
        room=dialogue.randrange(1000),
        surround=rng.random() < SURROUND_SHARE,
        season=dialogue.randint(1, 9),
        episode=dialogue.randint(1, 24),
    )


def _sentiment(emotion: str, rng: random.Random) -> str:
    if emotion == "neutral":
        return "neutral"
    if emotion == "surprise":
        return rng.choice(("positive", "negative"))
    return "positive" if emotion == "joy" else "negative"
