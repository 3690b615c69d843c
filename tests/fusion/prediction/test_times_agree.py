"""One clock in every output: what is written, what the model is shown and what a player shows.

Files flash and beep for a quarter of each second from the first on. Subtitles stand where that is,
so an utterance must begin with the first bright picture and the first sample of the beep.
"""

import csv
import io
import json
import time
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pysubs2
import pytest
from numpy.typing import NDArray
from PIL import Image

import meld
from fusion.inference.timeline import Timeline
from fusion.prediction.formats import FORMATS, write_as
from fusion.prediction.page import embed
from pipeline.decode.spans import decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import MediaSpan
from tests.fusion.prediction.test_page import Elements
from tests.fusion.prediction.test_page import Opened as OpenedPage
from tests.media import AS_TIMED, FPS, RATE_HZ, SIZE, write_clip
from tests.pipeline.decode.test_orientation import MATRICES, set_matrix

pytestmark = pytest.mark.heavy

LENGTH_S = 5
FLASHES_MS = tuple(range(1000, LENGTH_S * 1000, 1000))
FLASH_MS = 250
FRAME_MS = 1000 / FPS
SIXTHS = Fraction(1, 600)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How a file is timed.

    hidden_s: of its streams before its first picture shown
    late_s:   from its first picture to its first sound
    ticks:    of each picture, in `SIXTHS`; None is 24 a second
    """

    hidden_s: float = 0
    late_s: float = 0
    ticks: tuple[int, ...] | None = None
    is_rotated: bool = False
    container: dict[str, str] = field(default_factory=dict)


def uneven() -> tuple[int, ...]:
    """15 to 60 pictures a second, by turns; one at each whole second and each end of a flash."""
    steps = (10, 40, 20, 30, 10, 40)  # 150 ticks are a quarter of a second
    return tuple(int(tick) for tick in np.cumsum([0, *(steps * (4 * LENGTH_S))])[:-1])


KINDS = {
    "24-fps": Kind(),
    "variable": Kind(ticks=uneven()),
    "edit-list": Kind(hidden_s=2, container=AS_TIMED),
    "late-sound": Kind(late_s=0.4, container=AS_TIMED),
    "rotated": Kind(is_rotated=True),
}


def is_flash(at_ms: float) -> bool:
    return any(start <= at_ms < start + FLASH_MS for start in FLASHES_MS)


def write_flashes(path: Path, kind: Kind) -> Path:
    if kind.ticks is None:
        times_ms = [
            1000 * (n / FPS - kind.hidden_s) for n in range(round(FPS * (LENGTH_S + kind.hidden_s)))
        ]
        timing: dict[str, Any] = {}
    else:
        times_ms = [1000 * float(tick * SIXTHS) for tick in kind.ticks]
        timing = {"ticks": kind.ticks, "time_base": SIXTHS}
    sound_from_s = kind.late_s - kind.hidden_s
    at_s = np.arange(round(sound_from_s * RATE_HZ), LENGTH_S * RATE_HZ) / RATE_HZ
    loud = np.isin(np.floor(at_s * 1000).astype(int) // FLASH_MS, np.array(FLASHES_MS) // FLASH_MS)
    write_clip(
        path,
        num_frames=len(times_ms),
        # Half a tick: a picture's time may be rounded down.
        picture=lambda number: flat(220 if is_flash(times_ms[number] + 0.5) else 30),
        options={"qp": "4", "bf": "0"},
        sound=(0.5 * loud * np.sin(2 * np.pi * 1000 * at_s)).astype(np.float32),
        picture_starts_s=-kind.hidden_s,
        sound_starts_s=sound_from_s,
        container_options=kind.container,
        **timing,
    )
    if kind.is_rotated:
        set_matrix(path, MATRICES["90"])
    return path


def flat(grey: int) -> NDArray[np.uint8]:
    return np.full((SIZE[1], SIZE[0], 3), grey, np.uint8)


@pytest.fixture(scope="module", params=KINDS)
def flashes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = write_flashes(tmp_path_factory.mktemp("clock") / "flashes.mp4", KINDS[request.param])
    subtitles = pysubs2.SSAFile()
    for number, start in enumerate(FLASHES_MS):
        subtitles.append(pysubs2.SSAEvent(start, start + FLASH_MS, f"flash {number + 1}"))
    subtitles.save(str(path.with_suffix(".srt")))
    return path


def test_the_model_is_shown_and_played_what_the_utterances_borders_say(flashes: Path) -> None:
    """Each border is looked for in the 200 ms on both its sides."""
    spans = [
        MediaSpan(start_ms=border - 200, end_ms=border + 200)
        for start in FLASHES_MS[:-1]
        for border in (start, start + FLASH_MS)
    ]
    decoded = decode_spans(flashes, spans, DecodeConfig(num_frames=16), ("video", "audio"))
    for number, (span, media) in enumerate(zip(spans, decoded, strict=True)):
        begins = number % 2 == 0
        border_ms = span.start_ms + 200
        assert media.waveform is not None
        loud = np.flatnonzero(np.abs(media.waveform) > 0.1)
        heard_ms = span.start_ms + (loud[0] if begins else loud[-1]) / 16
        assert heard_ms == pytest.approx(border_ms, abs=3)  # AAC smears a border by that
        assert media.frames is not None
        assert media.times_s is not None
        bright = media.frames.mean(axis=(1, 2, 3)) > 125
        wanted = [is_flash(span.start_ms + 1000 * at_s + 0.5) for at_s in media.times_s]
        assert list(bright) == wanted


@pytest.fixture(scope="module")
def model() -> meld.Model:
    return meld.load()


@pytest.fixture(scope="module")
def timeline(flashes: Path, model: meld.Model) -> Timeline:
    return model.timeline(flashes)


def test_every_output_has_the_same_borders(timeline: Timeline) -> None:
    wanted = [(start, start + FLASH_MS) for start in FLASHES_MS]
    written = {name: write_as(name, timeline, media_url="flashes.mp4") for name in FORMATS}
    for name in ("srt", "vtt"):
        cues = pysubs2.SSAFile.from_string(written[name])
        assert [(cue.start, cue.end) for cue in cues] == wanted
    rows = list(csv.DictReader(io.StringIO(written["csv"])))
    assert [(int(row["start_ms"]), int(row["end_ms"])) for row in rows] == wanted
    listed = json.loads(written["json"])["utterances"]
    assert [(each["start_ms"], each["end_ms"]) for each in listed] == wanted
    blocks = Elements(written["html"]).named("rect")
    assert [(int(each["x"] or -1), int(each["width"] or -1)) for each in blocks] == [
        (start, FLASH_MS) for start in FLASHES_MS
    ]


@pytest.mark.parametrize(
    "flashes",
    [pytest.param(kind, marks=() if kind == "edit-list" else pytest.mark.slow) for kind in KINDS],
    indirect=True,
)
def test_a_player_shows_the_first_bright_picture_where_an_utterance_begins(
    browser: Any, flashes: Path, timeline: Timeline
) -> None:
    page = flashes.with_suffix(".html")
    page.write_text(write_as("html", timeline, media_url=embed(flashes)))
    opened = Opened(browser, page)
    opened.until("document.getElementById('media').readyState >= 2")
    for start in FLASHES_MS[:1]:
        for at_ms in (start - 10, start, start + FLASH_MS - 10, start + FLASH_MS):
            opened.seek(at_ms)
            assert opened.comes_to_be(is_bright=is_flash(at_ms)), at_ms
    opened.seek(0)
    opened.page.keyboard.press("ArrowRight")
    assert opened.seconds() == 1  # at once; its picture comes when the seek is done
    opened.until("!document.getElementById('media').seeking")
    assert opened.comes_to_be(is_bright=True)
    opened.page.close()


class Opened(OpenedPage):
    def seek(self, at_ms: int) -> None:
        self.page.evaluate(
            """at_s => new Promise(resolve => {
              const media = document.getElementById("media");
              media.addEventListener("seeked", () => resolve(), {once: true});
              media.currentTime = at_s;
            })""",
            at_ms / 1000,
        )

    def comes_to_be(self, *, is_bright: bool) -> bool:
        """What was sought is painted a little later, and on a busy machine much later."""
        deadline = time.monotonic() + 30
        while self._is_bright() != is_bright:
            if time.monotonic() > deadline:
                return False
        return True

    def _is_bright(self) -> bool:
        """Of the middle of the player, away from its controls, once three pictures agree."""
        seen: list[bool] = []
        while len(seen) < 3 or len(set(seen[-3:])) > 1:
            shot = self.page.locator("#media").screenshot()
            grey = np.asarray(Image.open(io.BytesIO(shot)).convert("L"))
            seen.append(bool(grey[grey.shape[0] // 3, grey.shape[1] // 2] > 125))
            self.page.wait_for_timeout(50)
        return seen[-1]
