"""Bytes of good files are changed at random, and the real processes read them: no hang, no crash of
more than the one file, no error that is not ours.

In `make test` there are fifty of each, the same ones every time: a change that has nothing to do
with them must not meet a new one. In `make test-all` there are five hundred, others every time;
MELD_MUTATION_SEED repeats them.
"""

import functools
import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from fusion.export.export import ExportConfig, export
from fusion.inference.subtitles import read_subtitles
from pipeline.decode.process import DecoderProcess
from pipeline.errors import ClipError, MeldError
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from tests.conftest import ROOT
from tests.media import Track, textured, tone, write_clip, write_subtitled
from tests.mutated_bundles import hashes_of, mutate
from tests.runs import write_run_of_words

pytestmark = pytest.mark.heavy
FEW = 50
HOW_MANY = pytest.mark.parametrize("num", [FEW, pytest.param(500, marks=pytest.mark.slow)])


def seed_of(num: int) -> int:
    """num: the test's"""
    seed = int(os.environ.get("MELD_MUTATION_SEED", 0 if num <= FEW else time.time()))
    print(f"MELD_MUTATION_SEED={seed}")
    return seed


def mutations(contents: list[bytes], num: int, times: int = 1) -> Iterator[tuple[str, bytes, int]]:
    """What repeats it, its bytes, and which of the contents it was."""
    seed = seed_of(num)
    for number in range(num * times):
        which = number % len(contents)
        content = mutate(contents[which], random.Random(f"{seed} {number}"))
        yield f"MELD_MUTATION_SEED={seed}, number {number}", content, which


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    """Small ones of several kinds, with sound or subtitles."""
    folder = tmp_path_factory.mktemp("good")
    sound = tone([440])
    options = {"x264-params": "keyint=12:bframes=2", "crf": "40"}
    made = [
        write_clip(
            folder / f"a.{kind}", num_frames=24, picture=textured, options=options, sound=sound
        )
        for kind in ("mp4", "mkv", "ts")
    ]
    cue = (0, 500, "Hello there")
    made.append(write_subtitled(folder / "b.mkv", [Track("subrip", [cue])], num_frames=24))
    made.append(write_subtitled(folder / "b.mp4", [Track("mov_text", [cue])], num_frames=24))
    return [path.read_bytes() for path in made]


@HOW_MANY
def test_clips_of_changed_bytes_cost_themselves_alone(
    num: int, clips: list[bytes], tmp_path: Path
) -> None:
    """A file may end the decoder; the next one is read all the same."""
    spans = [MediaSpan(start_ms=0, end_ms=400), MediaSpan(start_ms=300, end_ms=None)]
    config = DecodeConfig(num_frames=2)
    path, seconds, told = tmp_path / "a.mp4", list[float](), {"read": 0}
    messages: list[str] = []
    with DecoderProcess() as decoder:
        for where, content, _ in mutations(clips, num):
            path.write_bytes(content)
            began = time.monotonic()
            try:
                decoder.measure(path)
                for track in decoder.subtitles(path):
                    assert track.cues is not None
                for media in decoder.decode(path, spans, config, ("video", "audio")):
                    lost = {failure.modality for failure in media.failures if failure.lost}
                    there = {"video": media.frames, "audio": media.waveform}
                    assert lost == {name for name, each in there.items() if each is None}, where
                    assert media.waveform is None or np.isfinite(media.waveform).all(), where
                told["read"] += 1
            except ClipError as error:
                messages.append(error.message)
                told[error.code] = told.get(error.code, 0) + 1
            except Exception as error:
                raise AssertionError(where) from error
            seconds.append(time.monotonic() - began)
            assert seconds[-1] < 30, where
    print(f"{told}, the slowest {max(seconds):.2f} s")
    assert told["read"] > num / 10
    assert not any("\n" in message for message in messages)


SUBTITLES = {
    "srt": """1
00:00:01,000 --> 00:00:02,500
<i>Hello</i>

2
00:00:03,000 --> 00:00:04,000
Bye
""",
    "vtt": """WEBVTT

00:01.000 --> 00:02.500 align:start
<v Ann>Hello

00:03.000 --> 00:04.000
Bye
""",
    "ass": """[Script Info]
ScriptType: v4.00+

[V4+ Styles]
Format: Name
Style: Default

[Events]
Format: Layer, Start, End, Style, Name, Text
Dialogue: 0,0:00:01.00,0:00:02.50,Default,Ann,Hello
Dialogue: 0,0:00:03.00,0:00:04.00,Default,,Bye
""",
    "sbv": """0:00:01.000,0:00:02.500
Hello

0:00:03.000,0:00:04.000
Bye
""",
}


@HOW_MANY
def test_subtitles_of_changed_bytes_are_read_or_told_in_one_line(num: int, tmp_path: Path) -> None:
    kinds, seconds, read = list(SUBTITLES), list[float](), 0
    messages: list[str] = []
    for where, content, which in mutations([text.encode() for text in SUBTITLES.values()], num, 4):
        path = tmp_path / f"a.{kinds[which]}"
        path.write_bytes(content)
        began = time.monotonic()
        try:
            found = read_subtitles(path)
            read += 1
            for each in found.spans:
                assert each.span.start_ms >= 0, where
        except MeldError as error:
            messages.append(str(error))
        except Exception as error:
            raise AssertionError(where) from error
        seconds.append(time.monotonic() - began)
    assert max(seconds) < 5
    assert read > num
    assert all(str(tmp_path) in message and "\n" not in message for message in messages)


# --------------------------------------------------------------------------------------- bundles


@pytest.fixture(scope="module")
def bundle_for(
    tiny_text_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """Of a tiny model of words: for "torch", or graphs alone for "onnx"."""
    run = tmp_path_factory.mktemp("runs") / "words"
    write_run_of_words(run, tiny_text_folder)
    out = tmp_path_factory.mktemp("bundles")
    options = {"run": run, "weights_dir": tiny_text_folder.parent}

    def make(runtime: str) -> Path:
        bundle = export(ExportConfig(**options, out=out / runtime, onnx=runtime == "onnx")).bundle
        if runtime == "onnx":
            exported = json.loads((bundle / "export.json").read_bytes())
            (bundle / "export.json").write_text(json.dumps({**exported, "runtimes": ["onnx"]}))
        return bundle

    return functools.cache(make)


def load_beside_a_listener(
    bundle: Path, scratch: Path, num: int, change: Callable[[str], object] = lambda address: None
) -> "subprocess.CompletedProcess[str]":
    """`tests.mutated_bundles`, where the hub of models is a listener that nobody may ask.

    change: is told its address first
    """
    command = [sys.executable, "-m", "tests.mutated_bundles", str(bundle), str(scratch)]
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.1)
        address = f"http://127.0.0.1:{server.getsockname()[1]}"
        change(address)
        ended = subprocess.run(
            [*command, str(seed_of(num)), str(num)],
            cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0"},
            capture_output=True,
            text=True,
            timeout=60 + 5 * num,
        )
        with pytest.raises(TimeoutError):
            server.accept()
    return ended


ADDRESSES: dict[str, Callable[[str], dict[str, object]]] = {
    "_name_or_path": lambda address: {"_name_or_path": address},
    "auto_map": lambda address: {"auto_map": {"AutoModel": f"{address}--evil.Model"}},
    "a model of the hub": lambda address: {"_name_or_path": "nobody/nothing"},
    "files": lambda address: {"tokenizer_file": address, "vocab_file": address},
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ADDRESSES)
def test_a_bundle_that_names_addresses_asks_none(
    kind: str, bundle_for: Callable[[str], Path], tmp_path: Path
) -> None:
    bundle = Path(shutil.copytree(bundle_for("torch"), tmp_path / "bundle"))
    ended = load_beside_a_listener(
        bundle, tmp_path, 0, lambda address: plant(bundle, kind, address)
    )
    assert ended.returncode == 0, ended.stderr


def plant(bundle: Path, kind: str, address: str) -> None:
    """The bundle's hashes agree with it."""
    before = hashes_of(bundle, bundle / "encoders" / "text" / "config.json")[1]
    for path in (bundle / "encoders" / "text").glob("*config.json"):
        values = json.loads(path.read_bytes())
        path.write_text(json.dumps({**values, **ADDRESSES[kind](address)}))
    after = hashes_of(bundle, bundle / "encoders" / "text" / "config.json")[1]
    index = bundle / "encoders" / "encoders.json"
    index.write_text(index.read_text().replace(before, after))


@pytest.mark.parametrize("num", [20, pytest.param(500, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_bundles_of_changed_bytes_predict_or_are_refused_in_one_line(
    kind: str, num: int, bundle_for: Callable[[str], Path], tmp_path: Path
) -> None:
    """They ask no network, though it would answer and one of them names a model there, and start
    nothing."""
    bundle = Path(shutil.copytree(bundle_for(kind), tmp_path / "whole"))
    ended = load_beside_a_listener(
        bundle,
        tmp_path,
        num,
        lambda address: kind == "onnx" or plant(bundle, "a model of the hub", address),
    )
    lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
    assert ended.returncode == 0, (lines[-1], ended.stderr[-2000:])
    assert [line for line in lines if "bug" in line or "forbidden" in line] == []
    done = [line for line in lines if "ended" in line]
    print(Counter(line["ended"] for line in done), max(line["seconds"] for line in done))
    assert len(done) == num
    assert not any("\n" in line.get("message", "") for line in done)
    assert len({line["ended"] for line in done}) > 1
