"""When a file's pictures and its sound are: hidden beginnings, late clocks, late streams."""

import struct
import time
import tracemalloc
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.clip import decode_still
from pipeline.decode.inspect import ClipInspection, inspect_clip
from pipeline.decode.spans import decode_media
from pipeline.recipe import DecodeConfig
from pipeline.schema import (
    ClipKey,
    DecodedMedia,
    LocatedClip,
    MediaSpan,
    Modality,
    Utterance,
)
from tests.media import AS_TIMED, FPS, pitch_of, tone, write_clip
from tests.pipeline.decode.decoding import middles_of_parts, numbers

av.logging.set_level(None)

FRAGMENTS = {**AS_TIMED, "movflags": "frag_keyframe+empty_moov+delay_moov"}
NO_B = {"qp": "4", "bf": "0", "g": "999"}
# Extension, FFmpeg's format, picture, its options, sound.
LATE = {
    "mkv": (None, "libx264", {"qp": "4"}, "aac"),
    "webm": (None, "libvpx", {"b": "2M", "deadline": "realtime", "cpu-used": "8"}, "libopus"),
    "ts": ("mpegts", "libx264", {"qp": "4"}, "aac"),
    "wmv": ("asf", "wmv2", {"qscale": "2", "flags": "+qscale"}, "wmav2"),
    "mp4": (None, "libx264", {"qp": "4"}, "aac"),
}


def decoded(
    path: Path,
    start_ms: int = 0,
    end_ms: int | None = None,
    modalities: tuple[Modality, ...] = ("video", "audio"),
    max_duration_s: float = 30,
) -> DecodedMedia:
    span = MediaSpan(start_ms=start_ms, end_ms=end_ms)
    return decode_media(path, span, DecodeConfig(max_duration_s=max_duration_s), modalities)


def look(path: Path, *, deep: bool) -> ClipInspection:
    row = Utterance(key=ClipKey("train", 0, 0), text="")
    return inspect_clip(LocatedClip(utterance=row, path=path), deep=deep)


def write_cut(path: Path, container_options: dict[str, str]) -> Path:
    """Two hidden seconds (48 pictures, sound of 200 Hz), then 30 pictures with 440 and 880 Hz."""
    return write_clip(
        path,
        num_frames=78,
        options=NO_B,
        sound=np.concatenate([tone([200, 200, 440]), tone([880])[:12_000]]),
        sound_starts_s=-2,
        picture_starts_s=-2,
        container_options=container_options,
    )


def write_late(folder: Path, extension: str, picture_s: float, sound_s: float) -> Path:
    container_format, codec, options, sound_codec = LATE[extension]
    return write_clip(
        folder / f"a.{extension}",
        codec=codec,
        options=options,
        sound=tone([440, 880]),
        sound_codec=sound_codec,
        picture_starts_s=picture_s,
        sound_starts_s=sound_s,
        container_format=container_format,
        container_options=AS_TIMED,
    )


# ------------------------------------------------------------------------ what comes before a cut


@pytest.mark.parametrize("options", [AS_TIMED, FRAGMENTS], ids=["edit-list", "fragments"])
def test_hidden_packets_before_a_cut_do_not_shorten_the_clip(
    tmp_path: Path, options: dict[str, str]
) -> None:
    """As `ffmpeg -ss` with `-c copy` and phones write it. FFmpeg marks it but in fragments."""
    path = write_cut(tmp_path / "a.mp4", options)
    media = decoded(path, max_duration_s=2)
    assert media.failures == ()
    assert numbers(media) == [48 + number for number in middles_of_parts(30)]
    assert media.times_s is not None
    assert np.allclose(media.times_s, np.array(middles_of_parts(30)) / FPS, atol=2e-3)
    assert media.waveform is not None
    assert len(media.waveform) / 16_000 == pytest.approx(1.25, abs=0.03)
    assert pitch_of(media.waveform[1_000:15_000]) == pytest.approx(440, abs=3)
    assert np.abs(np.fft.rfft(media.waveform[:800]))[10] < 3  # nothing of 200 Hz


def test_the_limit_counts_from_the_first_picture_shown(tmp_path: Path) -> None:
    media = decoded(write_cut(tmp_path / "a.mp4", AS_TIMED), max_duration_s=0.5)
    assert numbers(media) == [48 + number for number in middles_of_parts(12)]
    assert media.waveform is not None
    assert len(media.waveform) == pytest.approx(8_000, abs=400)
    assert {each.message for each in media.failures if each.code == "overlong"} == {
        "1.2 s long; the first 0 s were used"
    }


@pytest.mark.parametrize("options", [AS_TIMED, FRAGMENTS], ids=["edit-list", "fragments"])
def test_a_span_of_a_cut_file_counts_from_the_cut(tmp_path: Path, options: dict[str, str]) -> None:
    media = decoded(write_cut(tmp_path / "a.mp4", options), 500, 1_000)
    assert media.failures == () or {each.code for each in media.failures} == {"few_frames"}
    assert sorted(set(numbers(media))) == list(range(60, 72))
    assert media.waveform is not None
    assert len(media.waveform) == pytest.approx(8_000, abs=1)
    assert pitch_of(media.waveform) == pytest.approx(440, abs=5)


def write_edited(
    path: Path, edits: list[tuple[float | None, float]], options: dict[str, str]
) -> Path:
    """78 pictures under an edit list (ISO 14496-12, 8.6.6): starts, or None for an empty edit, and
    lengths in seconds."""
    write_clip(path, num_frames=78, options=options, sound=tone([440, 550, 660, 770]))
    content = path.read_bytes()
    moov = content.rindex(b"moov") - 4  # the last box: what comes before it stays where it is
    path.write_bytes(content[:moov] + _with_edits(content[moov:], 0, edits))
    return path


def _with_edits(box: bytes, movie_hz: int, edits: list[tuple[float | None, float]]) -> bytes:
    """A moov or trak box with other edit lists."""
    parts, at = [], 8
    while at < len(box):
        size = struct.unpack_from(">I", box, at)[0]
        parts.append(box[at : at + size])
        at += size
    if box[4:8] == b"moov":
        movie_hz = struct.unpack_from(">I", parts[0], 20)[0]
        parts = [_with_edits(p, movie_hz, edits) if p[4:8] == b"trak" else p for p in parts]
    else:
        media_hz = struct.unpack_from(">I", box, box.index(b"mdhd") + 16)[0]
        first = struct.unpack_from(">i", box, box.index(b"elst") + 16)[0]
        entries = b"".join(
            struct.pack(
                ">IiI",
                round(length_s * movie_hz),
                -1 if start_s is None else first + round(start_s * media_hz),
                1 << 16,
            )
            for start_s, length_s in edits
        )
        elst = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
        edts = struct.pack(">I4s", 8 + len(elst), b"edts") + elst
        parts = [edts if part[4:8] == b"edts" else part for part in parts]
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + box[4:8] + body


@pytest.mark.parametrize("options", [NO_B, {"qp": "4", "x264-params": "keyint=12:bframes=3"}])
@pytest.mark.parametrize(
    "edits",
    [
        [(0.5, 0.5), (2.0, 1.0)],
        [(2.0, 1.0), (0.5, 0.5)],
        [(0.25, 0.5), (1.25, 0.5), (2.25, 0.5)],
    ],
)
def test_of_a_cut_of_several_pieces_each_is_where_it_is_shown(
    tmp_path: Path, edits: list[tuple[float, float]], options: dict[str, str]
) -> None:
    path = write_edited(tmp_path / "a.mp4", [*edits], options)
    shown = np.concatenate(
        [np.arange(round(at * FPS), round((at + length) * FPS)) for at, length in edits]
    )
    whole, part = decoded(path), decoded(path, 250, 1_250)
    assert whole.failures == part.failures == ()
    # Pieces with reordered pictures FFmpeg cuts a picture early or late.
    most = 0 if options is NO_B else 6
    assert np.sum(numbers(whole) != shown[middles_of_parts(36)]) <= most
    assert np.sum(numbers(part) != shown[6:30][middles_of_parts(24)]) <= most
    assert whole.waveform is not None
    assert len(whole.waveform) / 16_000 == pytest.approx(1.5, abs=0.05)
    assert look(path, deep=True).problems == ()


def test_an_empty_edit_before_a_cut_makes_no_file_look_cut_off(tmp_path: Path) -> None:
    path = write_edited(tmp_path / "a.mp4", [(None, 1.0), (0.5, 1.0)], NO_B)
    media = decoded(path)
    assert media.failures == ()
    assert numbers(media) == [12 + number for number in middles_of_parts(24)]
    assert look(path, deep=True).problems == ()


@pytest.mark.parametrize("deep", [False, True])
def test_doctor_sees_only_what_a_cut_shows(tmp_path: Path, deep: bool) -> None:
    found = look(write_cut(tmp_path / "a.mp4", AS_TIMED), deep=deep)
    assert found.problems == ()
    assert found.picture is not None
    assert found.sound is not None
    assert found.picture.num_frames == 30
    assert found.picture.length_s == pytest.approx(1.25, abs=0.01)
    assert found.sound.length_s == pytest.approx(1.25, abs=0.03)


# ----------------------------------------------------------------------------------- false alarms


@pytest.mark.heavy
@pytest.mark.parametrize("late_s", [10, 3_600])
@pytest.mark.parametrize("extension", LATE)
def test_a_file_whose_clock_starts_late_is_whole(
    tmp_path: Path, extension: str, late_s: int
) -> None:
    """Recordings of meetings and browsers; Matroska, WebM and ASF declare a length from zero."""
    path = write_late(tmp_path, extension, late_s, late_s)
    media = decoded(path)
    assert media.failures == ()
    assert np.allclose(numbers(media), middles_of_parts(60), atol=1)
    assert media.waveform is not None
    assert len(media.waveform) / 16_000 == pytest.approx(2, abs=0.1)
    for deep in (False, True):
        found = look(path, deep=deep)
        assert found.problems == ()
        assert found.length_s == pytest.approx(2.5, abs=0.06)


@pytest.mark.heavy
@pytest.mark.parametrize("extension", LATE)
@pytest.mark.parametrize("late", ["picture", "sound"])
def test_a_file_of_which_one_stream_starts_late_is_whole(
    tmp_path: Path, extension: str, late: str
) -> None:
    path = write_late(
        tmp_path, extension, 11 if late == "picture" else 10, 12 - (late == "picture")
    )
    assert decoded(path).failures == ()
    assert look(path, deep=False).problems == ()
    assert look(path, deep=True).problems == ()


def test_a_late_file_that_is_cut_off_is_still_called_so(tmp_path: Path) -> None:
    path = write_late(tmp_path, "mkv", 10, 10)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    codes = {(each.modality, each.code) for each in decoded(path).failures}
    assert ("video", "truncated") in codes
    assert "truncated" in {problem.code for problem in look(path, deep=True).problems}


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_the_shorter_stream_asked_for_alone_is_not_cut_off(
    tmp_path: Path, modality: Modality
) -> None:
    """Matroska tells the length of the longest stream, which need not be the one that is read."""
    path = write_clip(
        tmp_path / "a.mkv",
        num_frames=24 if modality == "video" else 72,
        sound=tone([440, 880, 660] if modality == "video" else [440]),
    )
    assert decoded(path, modalities=(modality,)).failures == ()


def test_the_still_of_a_late_file_is_its_middle(tmp_path: Path) -> None:
    still = decode_still(write_late(tmp_path, "mkv", 10, 10), width=80)
    assert still is not None
    assert round(float(still.mean() - 16) / 3) == pytest.approx(30, abs=1)


# ------------------------------------------------------------------------------------- one clock


@pytest.mark.parametrize("extension", ["mp4", "mkv", "ts"])
def test_times_of_a_late_picture_count_from_the_sound(tmp_path: Path, extension: str) -> None:
    path = write_late(tmp_path, extension, 1, 0)
    for media in (decoded(path), decoded(path, modalities=("video",))):
        assert numbers(media) == middles_of_parts(60)
        assert media.times_s is not None
        assert np.allclose(media.times_s, 1 + np.array(middles_of_parts(60)) / FPS, atol=0.03)
    later = decoded(path, 1_500, 2_000)
    assert 11 <= min(numbers(later)) <= 13
    assert 22 <= max(numbers(later)) <= 24


def onset_s(media: DecodedMedia) -> float:
    assert media.waveform is not None
    return int(np.argmax(np.abs(media.waveform) > 0.05)) / 16_000


@pytest.mark.heavy
@pytest.mark.parametrize("extension", LATE)
def test_a_waveform_begins_with_the_silence_before_late_sound(
    tmp_path: Path, extension: str
) -> None:
    path = write_late(tmp_path, extension, 10, 11)
    for media in (decoded(path), decoded(path, modalities=("audio",))):
        assert media.failures == ()
        assert onset_s(media) == pytest.approx(1, abs=0.05)
        assert media.waveform is not None
        assert len(media.waveform) / 16_000 == pytest.approx(3, abs=0.05)
        assert pitch_of(media.waveform[18_000:30_000]) == pytest.approx(440, abs=5)
        assert pitch_of(media.waveform[34_000:46_000]) == pytest.approx(880, abs=5)


def test_sound_that_begins_a_codecs_delay_late_is_as_it_was(tmp_path: Path) -> None:
    """AAC begins 21 ms before or after the picture in most files of the world."""
    prompt = decoded(write_late(tmp_path, "mkv", 0, 0))
    late = decoded(write_late(tmp_path, "mkv", 0, 0.04))
    assert prompt.waveform is not None
    assert late.waveform is not None
    assert np.array_equal(late.waveform, prompt.waveform)


def test_spans_that_touch_join_to_the_waveform_of_the_whole_with_late_sound(
    tmp_path: Path,
) -> None:
    path = write_late(tmp_path, "mp4", 0, 0.7)
    edges = [0, 900, 1_333, 2_100, None]
    parts = [decoded(path, start or 0, end).waveform for start, end in pairwise(edges)]
    whole = decoded(path).waveform
    assert whole is not None
    joined = np.concatenate([part for part in parts if part is not None])
    assert len(joined) == pytest.approx(len(whole), abs=1)
    num = min(len(joined), len(whole))
    assert np.abs(joined[:num] - whole[:num]).max() < 1e-6
    silent = decoded(path, 100, 600)
    assert silent.waveform is None
    assert [each.message for each in silent.failures if each.lost] == ["no sound in the span"]


def test_a_span_in_which_the_sound_begins_has_silence_before_it(tmp_path: Path) -> None:
    media = decoded(write_late(tmp_path, "mkv", 0, 1), 600, 1_600)
    assert onset_s(media) == pytest.approx(0.4, abs=0.03)
    assert media.waveform is not None
    assert len(media.waveform) == pytest.approx(16_000, abs=16)  # Matroska rounds to 1 ms


def write_with_gap(path: Path, gap_s: float, lost: range = range(0)) -> Path:
    """A second of 440 Hz, `gap_s` without packets, a second of 880 Hz; and without some packets."""
    with av.open(str(path), "w") as container:
        audio = container.add_stream("pcm_s16le", rate=16_000, layout="mono")
        for number, start in enumerate(range(0, 32_000, 320)):
            samples = np.ascontiguousarray(tone([440, 880], 16_000)[None, start : start + 320])
            frame = av.AudioFrame.from_ndarray(
                (samples * 32_767).astype(np.int16), format="s16", layout="mono"
            )
            frame.sample_rate, frame.pts = 16_000, start
            for packet in audio.encode(frame):
                if start >= 16_000:
                    packet.pts += round(gap_s / packet.time_base)
                    packet.dts = packet.pts
                if number not in lost:
                    container.mux(packet)
    return path


def test_a_gap_in_the_sound_is_silence(tmp_path: Path) -> None:
    """Where a recorder or a network lost packets, what comes after stays where it was."""
    path = write_with_gap(tmp_path / "a.mkv", 0.5)
    waveform = decoded(path, modalities=("audio",)).waveform
    assert waveform is not None
    assert len(waveform) == pytest.approx(2.5 * 16_000, abs=16)
    assert np.abs(waveform[16_100:23_900]).max() == 0
    assert pitch_of(waveform[24_500:39_500]) == pytest.approx(880, abs=3)
    later = decoded(path, 1_700, 2_300, modalities=("audio",)).waveform
    assert later is not None
    assert np.allclose(later[100:-100], waveform[27_300:36_700], atol=2e-3)
    assert decoded(path, 1_100, 1_400, modalities=("audio",)).waveform is None


def test_packets_lost_one_by_one_do_not_add_up_to_a_shift(tmp_path: Path) -> None:
    path = write_with_gap(tmp_path / "a.mkv", 0, lost=range(5, 45, 4))  # 10 of 20 ms
    waveform = decoded(path, modalities=("audio",)).waveform
    assert waveform is not None
    assert len(waveform) / 16_000 == pytest.approx(2, abs=0.051)
    assert pitch_of(waveform[17_000:31_000]) == pytest.approx(880, abs=3)


@pytest.mark.parametrize("gap_s", [0.045, 3_600, 1e9])
def test_a_gap_of_any_length_costs_no_memory_and_no_time(tmp_path: Path, gap_s: float) -> None:
    path = write_with_gap(tmp_path / "a.nut.mkv", gap_s)
    began = time.process_time()
    tracemalloc.start()
    try:
        media = decoded(path, modalities=("audio",))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert time.process_time() - began < 10
    assert peak < 30 << 20
    assert media.waveform is not None
    expected_s = 2 if gap_s < 1 else pytest.approx(1, abs=29.1)
    assert len(media.waveform) / 16_000 == expected_s
    assert pitch_of(media.waveform[1_000:15_000]) == pytest.approx(440, abs=3)
    if gap_s == 3_600:
        late = decoded(path, 3_601_200, 3_601_800, modalities=("audio",)).waveform
        assert late is not None
        assert pitch_of(late) == pytest.approx(880, abs=5)


def test_sound_that_begins_after_the_limit_is_absent_and_says_so(tmp_path: Path) -> None:
    media = decoded(write_late(tmp_path, "mp4", 0, 2), max_duration_s=1)
    assert media.frames is not None
    assert media.waveform is None
    assert [each.message for each in media.failures if each.lost] == [
        "the sound begins after the first 1 s"
    ]
