"""Frames for people to look at, decoded where a crash does no harm."""

import importlib
import io
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline.decode.jpeg import encode_jpeg
from pipeline.html.stills import each_still
from pipeline.schema import ClipKey, LocatedClip, Utterance

Read = Callable[[LocatedClip], bytes | None]

READER = """
import os
import time

def read(clip):
    if clip.path.name == "hangs.mp4":
        open(__file__ + ".hangs", "w").close()
        time.sleep(60)
    if clip.path.name == "crashes.mp4":
        os.kill(os.getpid(), 9)
    return None if clip.path.name == "blank.mp4" else clip.path.name.encode()
"""


def clip(name: str) -> LocatedClip:
    return LocatedClip(utterance=Utterance(key=ClipKey("dev", 0, 0), text=""), path=Path(name))


@pytest.fixture
def read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Read:
    """A reader of clips that the other process can import too."""
    name = f"reader_of_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(READER)
    monkeypatch.syspath_prepend(tmp_path)
    reader: Read = importlib.import_module(name).read
    return reader


@pytest.mark.parametrize("shape", [(162, 288), (51, 288), (7, 5)])
def test_a_picture_is_a_jpeg_of_its_size_and_colours(shape: tuple[int, int]) -> None:
    picture = np.full((*shape, 3), (200, 40, 90), np.uint8)
    with av.open(io.BytesIO(encode_jpeg(picture)), format="mjpeg") as opened:
        [frame] = opened.decode(video=0)
    found = frame.to_ndarray(format="rgb24")
    assert found.shape == picture.shape
    assert np.abs(found.astype(int) - picture).max() <= 6


@pytest.mark.heavy
def test_a_clip_that_crashes_the_decoder_costs_its_own_picture(
    read: Read, caplog: pytest.LogCaptureFixture
) -> None:
    names = ["a.mp4", "crashes.mp4", "blank.mp4", "b.mp4", "crashes.mp4"]
    with caplog.at_level(logging.WARNING):
        stills = [(each.path.name, still) for each, still in each_still(map(clip, names), read)]
    assert stills == [
        ("a.mp4", b"a.mp4"),
        ("crashes.mp4", None),
        ("blank.mp4", None),
        ("b.mp4", b"b.mp4"),
        ("crashes.mp4", None),
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "crashes.mp4: decoding a frame of it killed the process"
    ] * 2


@pytest.mark.heavy
def test_a_decoder_that_hangs_costs_its_own_picture(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    stills = each_still(map(clip, ["a.mp4", "hangs.mp4", "b.mp4"]), read)
    assert next(stills)[1] == b"a.mp4"
    with monkeypatch.context() as patched:
        patched.setattr("pipeline.html.stills.MAX_SECONDS", 0.5)
        assert next(stills)[1] is None
    assert next(stills)[1] == b"b.mp4"


@pytest.mark.heavy
def test_an_interrupt_does_not_wait_for_a_decoder_that_hangs(read: Read, tmp_path: Path) -> None:
    interrupted_s = 0.0

    def interrupt() -> None:
        nonlocal interrupted_s
        while not list(tmp_path.glob("*.hangs")):
            time.sleep(0.05)
        interrupted_s = time.monotonic()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        list(each_still([clip("hangs.mp4")], read))
    assert time.monotonic() - interrupted_s < 30  # and not 60, as it hangs
    assert multiprocessing.active_children() == []


@pytest.mark.heavy
def test_a_decoder_that_hangs_costs_nobody_else_their_process(
    read: Read, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server or a notebook has children of its own."""
    other = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    other.start()
    try:
        monkeypatch.setattr("pipeline.html.stills.MAX_SECONDS", 0.5)
        assert [still for _, still in each_still([clip("hangs.mp4")], read)] == [None]
        assert other.is_alive()
        assert multiprocessing.active_children() == [other]
    finally:
        other.kill()
        other.join()
