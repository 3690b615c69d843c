"""The live page in a real browser, whose microphone and camera play files."""

import json
import wave
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fusion.inference.voice import as_samples
from pipeline.decode.spans import decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from tests.conftest import BROWSER
from tests.fusion.inference.planted import plant_speech
from tests.media import jpegs
from tests.serving.test_page import until

pytestmark = [
    pytest.mark.heavy,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium on the PATH"),
]

Open = Callable[..., Any]
# One sentence each, beyond doubt: who hears a sample more may set a full stop for a comma.
PARTS = (1_500, "Where is the dog?", 1_200, "What did you say to him yesterday evening?", 2_500)
# What is made at the rate of the browser's sound, whatever that is.
RATE = """AudioContext = class extends AudioContext {
  constructor() { super({ sampleRate: %d }); }
};"""


@pytest.fixture(scope="module")
def open_page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """open_page(sound, rate_hz=...): a page whose microphone plays the file, in a Chromium of its
    own; those without sound share one.

    once: not again and again, in which a page that begins to listen late misses nothing
    """
    playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs it")
    folder = tmp_path_factory.mktemp("camera")
    camera = folder / "camera.mjpeg"
    camera.write_bytes(b"".join(jpegs(60)))
    with playwright.sync_playwright() as started:

        def launch(sound: Path | None = None, *, once: bool = False) -> Any:
            arguments = [
                "--no-sandbox",
                "--use-fake-device-for-media-stream",
                "--use-fake-ui-for-media-stream",
                f"--use-file-for-fake-video-capture={camera}",
            ]
            if sound is not None:
                how_often = "%noloop" if once else ""
                arguments.append(f"--use-file-for-fake-audio-capture={sound}{how_often}")
            return started.chromium.launch(executable_path=BROWSER, args=arguments)

        silent = cache(launch)

        @contextmanager
        def open_with(
            sound: Path | None = None, *, once: bool = False, rate_hz: int = 48_000
        ) -> Iterator[Any]:
            chromium = silent() if sound is None else launch(sound, once=once)
            try:
                page = chromium.new_page()
                page.set_default_timeout(60_000)
                page.add_init_script(RATE % rate_hz)
                page.problems = []
                page.on("pageerror", lambda error: page.problems.append(str(error)))
                page.on(
                    "console",
                    lambda line: line.type == "error" and page.problems.append(line.text),
                )
                yield page
                page.context.close()
            finally:
                if sound is not None:
                    chromium.close()

        yield open_with
        if silent.cache_info().currsize:
            silent().close()


def write_talk(path: Path, rate_hz: int) -> Path:
    """The planted speech at that rate; espeak has its own."""
    planted = plant_speech(path.with_suffix(".espeak.wav"), PARTS)
    config = DecodeConfig(sample_rate_hz=rate_hz)
    [decoded] = decode_spans(planted.path, [MediaSpan()], config, ["audio"])
    assert decoded.waveform is not None
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate_hz)
        file.writeframes(as_samples(decoded.waveform).astype("<i2").tobytes())
    return path


def predicted(file: Path) -> list[dict[str, Any]]:
    """What `meld predict` says of it, cut as live."""
    from fusion.inference.load import ModelChoice
    from fusion.inference.predict_media import WordsConfig
    from fusion.inference.speech import PROMPT
    from fusion.prediction.one_file import predict_file
    from pipeline.decode.process import HERE

    result = predict_file(file, WordsConfig(speech=PROMPT), ModelChoice().load(), HERE)
    assert result.timeline is not None
    found: list[dict[str, Any]] = result.timeline.to_dict()["utterances"]
    return found


def test_the_live_page_shows_utterances_and_the_end_of_the_session(
    open_page: Open, address: str, tmp_path: Path
) -> None:
    sound = write_talk(tmp_path / "talk.wav", 48_000)
    with open_page(sound) as page:
        page.goto(f"{address}/live")
        page.check("#camera")
        page.click("#start")
        page.wait_for_selector("text=Listening")
        page.locator("#utterances tbody tr").first.wait_for()
        page.click("#stop")
        page.wait_for_selector("text=Ended:")
        assert "pictures" in page.inner_text("#state")
        page.wait_for_selector("#seen", state="hidden")  # once the socket is closed as well
        assert page.is_hidden("#kept")
        assert page.is_enabled("#start")
        assert page.problems == []


# Slow, as a machine that is busy with other tests makes the browser's sound falter, and a voice
# that falters pauses.
@pytest.mark.slow
@pytest.mark.parametrize("rate_hz", [48_000, 44_100])
def test_live_sound_gives_the_same_results_as_its_file(
    open_page: Open, address: str, tmp_path: Path, rate_hz: int
) -> None:
    sound = write_talk(tmp_path / "talk.wav", rate_hz)
    wanted = predicted(sound)
    frames: list[dict[str, Any]] = []
    with open_page(sound, once=True, rate_hz=rate_hz) as page:
        page.on(
            "websocket",
            lambda opened: opened.on("framereceived", lambda text: frames.append(json.loads(text))),
        )
        page.goto(f"{address}/live")
        page.check("#camera")
        page.click("#start")
        page.wait_for_selector("text=Listening")
        rows = page.locator("#utterances tbody tr")
        rows.nth(len(wanted) - 1).wait_for()
        page.click("#stop")
        page.wait_for_selector("text=Ended:")
        shown = [row.inner_text() for row in rows.all()]
    found = [each["utterance"] for each in frames if each["type"] == "measurement.result"]
    texts = [(each["id"], each["text"]) for each in found]
    assert texts == [(each["id"], each["text"]) for each in wanted]
    assert all(each["text"] in row for each, row in zip(wanted, shown, strict=True))
    # The file began to play before the page listened: the first moment is not the same.
    for name in ("start_ms", "end_ms"):
        apart = np.diff([each[name] for each in found]) - np.diff([each[name] for each in wanted])
        assert np.abs(apart).max() <= 64
    for each, of_file in zip(found, wanted, strict=True):
        for head in ("emotion", "sentiment"):
            values = each[head]["probabilities"]
            assert values == pytest.approx(of_file[head]["probabilities"], abs=1e-3)
    closed = frames[-1]
    assert closed["type"] == "session.closed"
    assert closed["received"]["pictures"] >= 5


@pytest.mark.slow
def test_a_kept_recording_can_be_sent_as_a_file(
    open_page: Open, address: str, tmp_path: Path
) -> None:
    sound = write_talk(tmp_path / "talk.wav", 48_000)
    with open_page(sound) as page:
        page.goto(f"{address}/live")
        page.uncheck("#camera")
        page.check("#keep")
        page.click("#start")
        page.wait_for_selector("text=Listening")
        page.locator("#utterances tbody tr").first.wait_for()
        page.click("#stop")
        page.click("#send-kept")
        page.wait_for_selector("#links:not([hidden]), #kept-told:not(:empty)", timeout=90_000)
        assert page.inner_text("#job-name") == "recording.webm"
        assert page.locator("#utterances tbody tr").count() >= 1


@pytest.mark.parametrize("rate_hz", [44_100, 48_000])
def test_sound_of_the_browsers_rate_becomes_that_of_16_khz(
    open_page: Open, address: str, rate_hz: int
) -> None:
    """Whatever the sizes of the pieces; what 16 kHz cannot hold is gone."""
    with open_page() as page:
        page.goto(f"{address}/live")
        found = page.evaluate(
            """async (rate) => {
              const { Resampler } = await import("/page/resample.js");
              const tone = (pitch) => Float32Array.from(
                { length: rate }, (_, k) => 0.5 * Math.sin(2 * Math.PI * pitch * k / rate));
              const all = (sound, size) => {
                const resampler = new Resampler(rate);
                const parts = [];
                for (let k = 0; k < sound.length; k += size) {
                  parts.push(...resampler.take(sound.subarray(k, k + size)));
                }
                return parts;
              };
              return {
                low: all(tone(440), 128), again: all(tone(440), 1000), high: all(tone(6500), 128),
                gone: all(tone(11000), 128),
              };
            }""",
            rate_hz,
        )
    assert found["low"] == found["again"]
    for name, pitch in (("low", 440), ("high", 6_500)):
        heard = np.array(found[name])
        assert 15_900 < len(heard) <= 16_000
        wanted = 0.5 * np.sin(2 * np.pi * pitch * np.arange(len(heard)) / 16_000)
        assert np.abs(heard - wanted)[200:].max() < 1e-3
    assert np.abs(np.array(found["gone"]))[200:].max() < 1e-3


@pytest.mark.parametrize(("width", "scheme"), [(360, "dark"), (1280, "light")])
def test_it_fits_a_phone_and_a_desk_and_is_used_by_keyboard(
    open_page: Open, address: str, width: int, scheme: str
) -> None:
    with open_page() as page:
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{address}/live")
        page.evaluate("document.getElementById('kept').hidden = false")
        page.evaluate(
            """addUtterance({ start_ms: 61200, text: "word ".repeat(40) + "w".repeat(90),
               emotion: { label: "joy", confidence: 0.7 }, sentiment: { label: "positive" } })"""
        )
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id"))
        assert reached == ["", "camera", "keep", "start"]  # the link to the other page first
        assert page.problems == []


def test_the_page_reports_a_refused_microphone(open_page: Open, address: str) -> None:
    with open_page() as page:
        page.add_init_script(
            "navigator.mediaDevices.getUserMedia = "
            "async () => { throw new DOMException('no', 'NotAllowedError'); };"
        )
        page.goto(f"{address}/live")
        page.click("#start")
        page.wait_for_selector("text=was not allowed to use the microphone")
        assert page.is_enabled("#start")


def test_a_microphone_that_is_allowed_after_the_end_is_not_left_on(
    open_page: Open, address: str
) -> None:
    """The question may stand there for long, and the service does not wait for ever."""
    with open_page() as page:
        page.add_init_script(
            """
            let socket = null;
            WebSocket = class extends WebSocket {
              constructor(...asked) { super(...asked); socket = this; }
            };
            const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
            navigator.mediaDevices.getUserMedia = async (wanted) => {
              const isClosed = new Promise((done) => { socket.addEventListener("close", done); });
              socket.close();
              await isClosed;
              globalThis.given = await ask(wanted);
              return globalThis.given;
            };
            """
        )
        page.goto(f"{address}/live")
        page.click("#start")
        page.wait_for_selector("text=The connection was lost")
        until(page, "globalThis.given !== undefined")
        until(page, "given.getTracks().every((track) => track.readyState === 'ended')")
        assert page.inner_text("#live-told").startswith("The connection was lost")
        assert page.is_enabled("#start")
        assert page.problems == []
