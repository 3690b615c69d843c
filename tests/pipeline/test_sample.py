"""The generated corpus: MELD's layout, real media, known answers, defects on demand."""

import csv
import hashlib
import json
import math
import re
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import PictureType

from pipeline.errors import InputError, UsageError
from pipeline.sample import corpus as sample_corpus
from pipeline.sample.clip import write_clip
from pipeline.sample.corpus import (
    MEDIA_FOLDERS,
    SampleConfig,
    SampleResult,
    make_sample,
    media_path,
)
from pipeline.sample.defects import MIN_DIALOGUES, plan_defects
from pipeline.sample.motion import FRAME_S
from pipeline.sample.plan import ClipPlan, plan_corpus
from pipeline.sample.texts import AMBIGUOUS, CARRYING, SLOTS
from pipeline.schema import EMOTIONS, SPLITS, ClipKey

HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,"
    "Season,Episode,StartTime,EndTime\r\n"
)
DEFECTS = {
    "truncated_file",
    "truncated_data",
    "missing_file",
    "empty_file",
    "no_audio",
    "no_video",
    "two_frames",
    "overlong",
    "apple_double",
    "curly_text",
}


@dataclass
class Again:
    """The small corpus made once more, and what making it reported."""

    root: Path
    calls: list[tuple[int, int]]


@pytest.fixture(scope="module")
def again(sample: SampleResult, tmp_path_factory: pytest.TempPathFactory) -> Again:
    """Made in this process, where the first was made by two others. Every fourth clip is drawn
    anew and the rest copied; a slow test draws them all."""
    made = Again(root=tmp_path_factory.mktemp("again"), calls=[])
    config = SampleConfig(out=made.root, dialogues=3, seed=852)
    drawn = plan_corpus(dialogues=3, seed=852)[::4]

    def draw_or_copy(plan: ClipPlan, path: Path) -> float:
        if plan in drawn:
            return write_clip(plan, path)
        with av.open(str(shutil.copy(media_path(sample.root, plan.key), path))) as container:
            return container.streams.video[0].frames * FRAME_S

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sample_corpus, "write_clip", draw_or_copy)
        patch.setattr(sample_corpus, "spawn_pool", lambda size: ThreadPoolExecutor(1))
        make_sample(config, lambda done, total: made.calls.append((done, total)))
    return made


def rows_of(root: Path, split: str) -> list[dict[str, str]]:
    path = root / f"{split}_sent_emo.csv"
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def key_of(row: dict[str, str], split: str) -> ClipKey:
    return ClipKey(split, int(row["Dialogue_ID"]), int(row["Utterance_ID"]))  # type: ignore[arg-type]


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(rest.replace(",", "."))


def digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def media_of(result: SampleResult, kind: str) -> Path:
    (key,) = {planted.key for planted in result.defects if planted.kind == kind}
    return media_path(result.root, key)


# --- layout and tables


def test_the_tables_have_melds_columns_and_line_ends(sample: SampleResult) -> None:
    for split in SPLITS:
        raw = (sample.root / f"{split}_sent_emo.csv").read_bytes()
        assert raw.startswith(HEADER.encode())
        assert raw.count(b"\n") == raw.count(b"\r\n") == sample.rows[split] + 1


def test_every_row_has_its_file_and_every_file_its_row(sample: SampleResult) -> None:
    for split, folder in MEDIA_FOLDERS.items():
        named = {media_path(sample.root, key_of(row, split)) for row in rows_of(sample.root, split)}
        assert set((sample.root / folder).iterdir()) == named
        assert len(named) == sample.rows[split] >= 3


def test_nothing_is_left_over_from_making_it(sample: SampleResult) -> None:
    tables = {f"{split}_sent_emo.csv" for split in SPLITS}
    expected = {*MEDIA_FOLDERS.values(), *tables, "sample.json", "carriers.csv"}
    assert {path.name for path in sample.root.iterdir()} == expected
    assert json.loads((sample.root / "sample.json").read_text())["complete"] is True


def test_times_say_how_long_the_clip_is(sample: SampleResult) -> None:
    for row in rows_of(sample.root, "train"):
        with av.open(str(media_path(sample.root, key_of(row, "train")))) as container:
            clip_s = container.streams.video[0].frames * 1001 / 24000
        assert seconds(row["EndTime"]) - seconds(row["StartTime"]) == pytest.approx(
            clip_s, abs=2e-3
        )


def test_carriers_are_documented_for_every_row(sample: SampleResult) -> None:
    with (sample.root / "carriers.csv").open(newline="", encoding="utf-8") as file:
        carriers = {
            ClipKey(row["Split"], int(row["Dialogue_ID"]), int(row["Utterance_ID"])): row  # type: ignore[arg-type]
            for row in csv.DictReader(file)
        }
    for split in SPLITS:
        for row in rows_of(sample.root, split):
            shown = carriers.pop(key_of(row, split))
            assert shown["Emotion"] == row["Emotion"]
            assert shown["Carriers"]
            assert (shown["Text"] == "ambiguous") == (row["Utterance"] in AMBIGUOUS)
            for modality in ("Text", "Voice", "Face"):
                carries = modality.lower() in shown["Carriers"].split("+")
                assert (shown[modality] == row["Emotion"]) >= carries
                assert carries or shown[modality] in ("ambiguous", "neutral")
    assert not carriers


# --- the plan


def test_sentiment_follows_from_emotion_except_for_surprise() -> None:
    sentiments: dict[str, set[str]] = {}
    for clip in plan_corpus(dialogues=78, seed=0):
        sentiments.setdefault(clip.emotion, set()).add(clip.sentiment)
    assert sentiments.pop("surprise") == {"positive", "negative"}
    assert sentiments == {
        "neutral": {"neutral"},
        "joy": {"positive"},
        **{name: {"negative"} for name in ("anger", "disgust", "fear", "sadness")},
    }


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_emotions_are_distributed_like_melds_and_all_occur_in_each_split(seed: int) -> None:
    plans = plan_corpus(dialogues=78, seed=seed)
    for split in SPLITS:
        counts = Counter(clip.emotion for clip in plans if clip.key.split == split)
        assert set(counts) == set(EMOTIONS)
        assert 0.4 < counts["neutral"] / counts.total() < 0.55


def test_no_modality_carries_more_than_two_thirds_of_the_emotions() -> None:
    emotional = [clip for clip in plan_corpus(dialogues=78, seed=0) if clip.emotion != "neutral"]
    for modality in ("text", "voice", "face"):
        share = sum(modality in clip.carriers for clip in emotional) / len(emotional)
        assert 1 / 3 < share < 2 / 3


def test_there_are_enough_sentences_for_each_emotion() -> None:
    counts: Counter[str] = Counter()
    for (emotion, _), templates in CARRYING.items():
        for template in templates:
            slots = re.findall(r"\{(\w+)\}", template)
            counts[emotion] += math.prod(len(SLOTS[slot]) for slot in slots)
    assert min(counts.values()) >= 40


def test_utterance_ids_have_gaps_now_and_then() -> None:
    keys = {clip.key for clip in plan_corpus(dialogues=78, seed=0)}
    gaps = [key for key in keys if key.utterance_id and (*key[:2], key[2] - 1) not in keys]
    assert 0 < len(gaps) < len(keys) / 10


# --- media


def test_every_clip_is_h264_and_aac_like_melds(sample: SampleResult) -> None:
    for path in sample.root.rglob("*.mp4"):
        with av.open(str(path)) as container:
            video, audio = container.streams.video[0], container.streams.audio[0]
            assert video.codec_context.name == "h264"
            assert (video.width, video.height, video.pix_fmt) == (1280, 720, "yuv420p")
            assert float(video.average_rate) == pytest.approx(24000 / 1001, abs=1e-3)
            assert audio.codec_context.name == "aac"
            assert audio.rate == 48_000
            assert 2 <= float(video.duration * video.time_base) <= 6
            frames = list(container.decode(video))
        assert len(frames) == video.frames
        assert sum(frame.pict_type == PictureType.B for frame in frames) > len(frames) / 2


def test_most_clips_are_surround_and_some_stereo(sample: SampleResult) -> None:
    layouts: Counter[str] = Counter()
    for path in sample.root.rglob("*.mp4"):
        with av.open(str(path)) as container:
            layouts[container.streams.audio[0].layout.name] += 1
    assert set(layouts) == {"5.1", "stereo"}
    assert layouts["5.1"] > layouts["stereo"]


def test_the_front_centre_speaks_over_a_quieter_bed(sample: SampleResult) -> None:
    for path in sample.root.rglob("*.mp4"):
        with av.open(str(path)) as container:
            if container.streams.audio[0].channels != 6:
                continue
            sound = np.concatenate([f.to_ndarray() for f in container.decode(audio=0)], axis=1)
        rms = np.sqrt(np.mean(sound**2, axis=1))
        assert rms[2] > max(rms[0], rms[1], rms[3], rms[4], rms[5]) > 0


def test_the_face_moves(sample: SampleResult) -> None:
    path = next(sample.root.rglob("*.mp4"))
    with av.open(str(path)) as container:
        first, *_, last = [frame.to_ndarray() for frame in container.decode(video=0)][::6]
    assert np.abs(first.astype(int) - last).max() > 50


# --- the same again


def test_the_same_seed_gives_the_same_bytes_in_whatever_process(
    sample: SampleResult, again: Again
) -> None:
    assert digests(again.root) == digests(sample.root)


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_workers(
    sample: SampleResult, tmp_path: Path
) -> None:
    make_sample(SampleConfig(out=tmp_path / "again", dialogues=3, seed=852, workers=1))
    assert digests(tmp_path / "again") == digests(sample.root)


def test_another_seed_gives_another_corpus(sample: SampleResult, tmp_path: Path) -> None:
    plans, others = plan_corpus(dialogues=3, seed=852), plan_corpus(dialogues=3, seed=853)
    assert [plan.text for plan in plans] != [plan.text for plan in others]
    write_clip(others[0], tmp_path / "other.mp4")
    first = media_path(sample.root, plans[0].key)
    assert (tmp_path / "other.mp4").read_bytes() != first.read_bytes()


def test_progress_counts_every_clip_once(sample: SampleResult, again: Again) -> None:
    total = sum(sample.rows.values())
    assert again.calls == [(done, total) for done in range(1, total + 1)]


# --- refusals


def test_a_folder_of_someone_elses_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "holiday.mp4").write_bytes(b"mine")
    with pytest.raises(InputError, match="was not written by meld sample"):
        make_sample(SampleConfig(out=tmp_path, dialogues=3))
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.mp4"]


def test_a_sample_with_other_settings_is_refused_by_name(sample: SampleResult) -> None:
    with pytest.raises(InputError, match="it has seed 852, not 853"):
        make_sample(SampleConfig(out=sample.root, dialogues=3, seed=853))


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "corpus"
    path.write_text("notes")
    with pytest.raises(InputError, match="is a file"):
        make_sample(SampleConfig(out=path, dialogues=3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dialogues": 2}, "at least 3 dialogues"),
        ({"dialogues": 7, "corrupt": True}, "at least 8 dialogues"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        SampleConfig(out=Path("anywhere"), **settings)  # type: ignore[arg-type]


# --- defects


def test_each_kind_of_defect_is_planted_on_a_row_of_its_own(corrupt_corpus: SampleResult) -> None:
    assert {planted.kind for planted in corrupt_corpus.defects} == DEFECTS
    assert len({planted.key for planted in corrupt_corpus.defects}) == len(corrupt_corpus.defects)
    kept = json.loads((corrupt_corpus.root / "sample.json").read_text(encoding="utf-8"))["defects"]
    assert [(entry["kind"], tuple(entry["key"].values())) for entry in kept] == [
        (planted.kind, tuple(planted.key)) for planted in corrupt_corpus.defects
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_smallest_corrupt_corpus_has_room_for_all_of_them(seed: int) -> None:
    plans = plan_corpus(dialogues=MIN_DIALOGUES, seed=seed)
    assert {planted.kind for planted in plan_defects(plans, seed=seed)} == DEFECTS


def test_missing_and_empty_files(corrupt_corpus: SampleResult) -> None:
    assert not media_of(corrupt_corpus, "missing_file").exists()
    assert media_of(corrupt_corpus, "empty_file").stat().st_size == 0


def test_a_truncated_file_cannot_be_opened(corrupt_corpus: SampleResult) -> None:
    with pytest.raises(av.error.InvalidDataError):
        av.open(str(media_of(corrupt_corpus, "truncated_file")))


def test_truncated_data_gives_some_of_its_frames(corrupt_corpus: SampleResult) -> None:
    decoded = 0
    with av.open(str(media_of(corrupt_corpus, "truncated_data"))) as container:
        declared = container.streams.video[0].frames
        for packet in container.demux(video=0):
            try:
                decoded += len(packet.decode())
            except av.error.InvalidDataError:
                continue
    assert 0 < decoded < declared


def test_streams_are_missing_where_they_should(corrupt_corpus: SampleResult) -> None:
    with av.open(str(media_of(corrupt_corpus, "no_audio"))) as container:
        assert [stream.type for stream in container.streams] == ["video"]
    with av.open(str(media_of(corrupt_corpus, "no_video"))) as container:
        assert [stream.type for stream in container.streams] == ["audio"]


def test_the_two_frames_clip_has_two_frames(corrupt_corpus: SampleResult) -> None:
    with av.open(str(media_of(corrupt_corpus, "two_frames"))) as container:
        assert len(list(container.decode(video=0))) == 2


def test_the_overlong_clip_is_longer_than_a_minute(corrupt_corpus: SampleResult) -> None:
    path = media_of(corrupt_corpus, "overlong")
    assert path.stat().st_size < 3_000_000
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert float(video.duration * video.time_base) > 60
        assert float(audio.duration * audio.time_base) > 60


def test_apple_double_files_lie_beside_their_clips(corrupt_corpus: SampleResult) -> None:
    companions = list(corrupt_corpus.root.rglob("._*.mp4"))
    assert len(companions) == 2
    for companion in companions:
        assert companion.read_bytes().startswith(b"\x00\x05\x16\x07")
        assert companion.with_name(companion.name[2:]).exists()


def test_typographic_characters_are_where_they_are_said_to_be(corrupt_corpus: SampleResult) -> None:
    curled = {planted.key for planted in corrupt_corpus.defects if planted.kind == "curly_text"}
    for split in SPLITS:
        for row in rows_of(corrupt_corpus.root, split):
            typographic = any(character in row["Utterance"] for character in "’…—")
            assert typographic == (key_of(row, split) in curled)
