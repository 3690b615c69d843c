"""A media file looked at: what its headers say, what only decoding finds, and no harm done."""

import os
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode import inspect
from pipeline.decode.inspect import ClipInspection, inspect_clip
from pipeline.sample.corpus import SampleResult, media_path
from pipeline.schema import ClipKey, LocatedClip, Utterance


def look(path: Path | None, *, deep: bool = False) -> ClipInspection:
    row = Utterance(key=ClipKey("train", 0, 0), text="")
    return inspect_clip(LocatedClip(utterance=row, path=path), deep=deep)


def codes(inspection: ClipInspection) -> list[tuple[str | None, str]]:
    return [(problem.stream, problem.code) for problem in inspection.problems]


@pytest.fixture(scope="module")
def healthy(corpus: Path) -> Path:
    return next((corpus / "train_splits").glob("*.mp4"))


@pytest.mark.parametrize("deep", [False, True])
def test_a_healthy_clip_has_its_picture_its_sound_and_no_problem(healthy: Path, deep: bool) -> None:
    found = look(healthy, deep=deep)
    assert found.problems == ()
    assert found.bad_packets == 0
    assert found.picture is not None
    assert (found.picture.codec, found.picture.width, found.picture.height) == ("h264", 1280, 720)
    assert found.sound is not None
    assert (found.sound.codec, found.sound.rate_hz) == ("aac", 48_000)
    assert found.sound.channels in (2, 6)
    assert found.picture.num_frames == round(found.picture.length_s * 24_000 / 1001)
    assert found.length_s == found.picture.length_s
    assert abs(found.sound.length_s - found.picture.length_s) < 0.1


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("truncated_file", (None, "unreadable")),
        ("truncated_data", (None, "truncated")),
        ("empty_file", (None, "empty_file")),
        ("missing_file", (None, "missing_file")),
        ("no_audio", ("audio", "no_audio")),
        ("no_video", ("video", "no_video")),
        ("two_frames", None),
        ("overlong", None),
        ("apple_double", None),
    ],
)
def test_a_planted_defect_is_recognised_by_its_own_name(
    corrupt_corpus: SampleResult, kind: str, expected: tuple[str | None, str] | None, deep: bool
) -> None:
    [defect] = [each for each in corrupt_corpus.defects if each.kind == kind][:1]
    found = codes(look(media_path(corrupt_corpus.root, defect.key), deep=deep))
    # The last packet before a cut may be half a packet.
    without_halves = [each for each in found if each[1] != "bad_packets"]
    assert without_halves == ([] if expected is None else [expected])


def test_of_a_cut_off_clip_decoding_tells_what_is_left(corrupt_corpus: SampleResult) -> None:
    [defect] = [each for each in corrupt_corpus.defects if each.kind == "truncated_data"]
    path = media_path(corrupt_corpus.root, defect.key)
    promised, kept = look(path).picture, look(path, deep=True).picture
    assert promised is not None
    assert kept is not None
    assert 0 < (kept.num_frames or 0) < (promised.num_frames or 0)
    assert 0 < kept.length_s < promised.length_s - 0.5


def test_damage_in_the_middle_is_found_by_decoding_alone(healthy: Path, tmp_path: Path) -> None:
    content = bytearray(healthy.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 4096] = bytes(4096)
    damaged = tmp_path / "dia0_utt0.mp4"
    damaged.write_bytes(content)
    assert look(damaged).problems == ()
    deep = look(damaged, deep=True)
    assert {code for _, code in codes(deep)} == {"bad_packets"}
    assert deep.bad_packets > 0


def test_sound_that_ends_before_the_picture_is_not_cut_off(tmp_path: Path) -> None:
    """Matroska tells one length, that of the longest stream."""
    path = tmp_path / "dia0_utt0.mkv"
    with av.open(str(path), "w") as file:
        picture, sound = file.add_stream("mpeg4", rate=24), file.add_stream("pcm_s16le", rate=8000)
        picture.width, picture.height, sound.layout = 64, 64, "mono"
        for n in range(48):
            frame = av.VideoFrame(64, 64, "yuv420p")
            frame.pts = n
            file.mux(picture.encode(frame))
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), "s16", "mono")
        samples.rate, samples.pts = 8000, 0
        file.mux([*sound.encode(samples), *picture.encode(), *sound.encode()])
    assert look(path, deep=True).problems == ()
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 4])
    assert "truncated" in {code for _, code in codes(look(path, deep=True))}


def plant_loop(path: Path) -> None:
    path.symlink_to(path)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize(
    ("plant", "code"),
    [
        (os.mkfifo, "not_a_file"),
        (Path.mkdir, "not_a_file"),
        (Path.touch, "empty_file"),
        (plant_loop, "missing_file"),
        (lambda path: path.write_text("<!doctype html>\n<p>404"), "unknown_format"),
        (lambda path: path.write_text("#EXTM3U\nhttp://127.0.0.1/x"), "unknown_format"),
        (lambda path: path.write_bytes(b"\0\0\0\x18ftypmp42" + bytes(500)), "unreadable"),
    ],
)
def test_what_is_no_clip_is_one_problem_and_no_harm(
    tmp_path: Path, plant: Callable[[Path], object], code: str, deep: bool
) -> None:
    path = tmp_path / "dia0_utt0.mp4"
    plant(path)
    found = look(path, deep=deep)
    assert codes(found) == [(None, code)]
    assert found.length_s is None
    assert not found.is_readable


@pytest.mark.parametrize(
    ("budget", "value", "code"),
    [("MAX_SECONDS_DEEP", 0.0, "timeout"), ("MAX_PACKET_BYTES", 1000, "too_large")],
)
def test_decoding_everything_has_budgets(
    healthy: Path, monkeypatch: pytest.MonkeyPatch, budget: str, value: float, code: str
) -> None:
    monkeypatch.setattr(inspect, budget, value)
    assert codes(look(healthy, deep=True)) == [(None, code)]
    assert look(healthy).problems == ()
