"""The page in a real browser: a file is sent, its utterances arrive, the result opens, it is
erased."""

import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.conftest import ROOT
from tests.serving.answers import wait_until
from tests.serving.conftest import SRT

if TYPE_CHECKING:
    from playwright.sync_api import Page

pytestmark = pytest.mark.heavy

# Its policy forbids the page what Playwright's own waiting does.
PLAYABLE = """video => new Promise((done, failed) => {
  if (video.readyState >= 1) done();
  if (video.error !== null) failed(new Error(video.error.message));  // told before anybody listens
  video.addEventListener("loadedmetadata", done);
  video.addEventListener("error", () => failed(new Error(video.error.message)));
})"""
ATTACK = "<img src=x onerror=\"document.title='hacked'\">"


@pytest.fixture
def page(browser: Any) -> Iterator["Page"]:
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: line.type == "error" and page.problems.append(line.text))
    yield page
    context.close()


def open_the_result(page: "Page") -> None:
    """The click starts a navigation; the file's player is there some time after it."""
    page.click("#page")
    page.wait_for_selector("video", state="attached")
    page.eval_on_selector("video", PLAYABLE)


def send(page: "Page", address: str, clip: Path, subtitles: str, name: str = "talk.mp4") -> None:
    page.goto(address)
    page.set_input_files(
        "#media", {"name": name, "mimeType": "video/mp4", "buffer": clip.read_bytes()}
    )
    page.click("summary")
    page.set_input_files(
        "#subtitles",
        {"name": "talk.srt", "mimeType": "application/x-subrip", "buffer": subtitles.encode()},
    )
    page.click("#send")


def test_a_file_can_be_sent_followed_opened_and_erased(page: Any, address: str, clip: Path) -> None:
    send(page, address, clip, SRT)
    page.wait_for_selector("#links:not([hidden])")
    rows = page.locator("#utterances tbody tr")
    assert rows.count() == 2
    assert "I am so happy for you!" in rows.nth(0).inner_text()
    assert "joy" in rows.nth(0).inner_text()
    with page.expect_download() as download:
        page.click("#srt")
    assert download.value.suggested_filename == "talk.mp4.meld.srt"

    job = page.url
    page.reload()  # the job is still there
    page.wait_for_selector("#links:not([hidden])")
    open_the_result(page)
    assert "I am so happy for you!" in page.inner_text("#transcript")
    assert page.locator("svg.blocks rect").count() == 2

    page.goto("about:blank")
    page.goto(job)
    page.wait_for_selector("#links:not([hidden])")
    page.click("#erase")
    page.wait_for_selector("text=Erased: the file, the words and the results.")
    page.goto("about:blank")
    gone = page.goto(f"{address}/v1/jobs/{job.rpartition('#')[2]}")
    assert gone.status == 404
    # The one that the browser itself tells of that answer.
    assert [each for each in page.problems if "404" not in each] == []


def test_the_sample_can_be_sent_instead_of_a_file(page: Any, address: str) -> None:
    page.goto(address)
    page.click("#sample")
    page.wait_for_selector("#links:not([hidden])")
    assert page.inner_text("#job-name") == "sample.mp4"
    rows = page.locator("#utterances tbody tr")
    assert rows.count() == 5
    assert "Yuki: I got the job! I am so happy!" in rows.nth(0).inner_text()
    open_the_result(page)
    assert page.problems == []


def test_the_sample_is_sent_once_however_often_it_is_asked_for(page: Any, address: str) -> None:
    sent: list[str] = []
    page.on("request", lambda asked: asked.method == "POST" and sent.append(asked.url))
    page.goto(address)
    page.dblclick("#sample")
    page.wait_for_selector("#links:not([hidden])")
    assert sent == [f"{address}/v1/jobs"]
    assert page.problems == []


def test_file_names_and_words_are_shown_as_text(page: Any, address: str, clip: Path) -> None:
    subtitles = f"1\n00:00:00,000 --> 00:00:01,000\nLook: 1 < 2 & {ATTACK.replace('<', '< ')}\n"
    send(page, address, clip, subtitles, name=f"{ATTACK}.mp4")
    page.wait_for_selector("#links:not([hidden])")
    assert page.inner_text("#job-name") == f"{ATTACK}.mp4"
    assert page.locator("#job img").count() == 0
    assert page.title() == "meld: emotions in a video"
    page.click("#page")
    page.wait_for_selector("#transcript")
    assert page.locator("img").count() == 0
    assert page.title() != "hacked"


def test_labels_speakers_and_error_messages_are_shown_as_text_too(page: Any, address: str) -> None:
    heads = {"emotion": {"label": ATTACK, "confidence": 0.5}, "sentiment": {"label": ATTACK}}
    each = {"start_ms": 0, "text": ATTACK, "speaker": ATTACK, **heads}
    job = {"id": "0" * 32, "file": ATTACK, "state": "failed", "error": {"detail": ATTACK}}
    told = [("utterance", each), ("utterance", {**each, "error": ATTACK}), ("end", job)]
    stream = "".join(f"event: {kind}\ndata: {json.dumps(data)}\n\n" for kind, data in told)
    page.route(
        "**/events", lambda asked: asked.fulfill(content_type="text/event-stream", body=stream)
    )
    page.goto(f"{address}/#{'0' * 32}")
    page.wait_for_selector("text=No prediction was made.")
    assert page.inner_text("#utterances tbody").count(ATTACK) == 7
    assert page.inner_text("#job-told") == ATTACK
    assert page.locator("img").count() == 0
    assert page.title() != "hacked"
    assert page.problems == []


def test_the_page_shows_a_refusal_and_allows_another_file(
    page: Any, address: str, clip: Path
) -> None:
    page.goto(address)
    page.set_input_files(
        "#media", {"name": "notes.mp4", "mimeType": "video/mp4", "buffer": b"no media"}
    )
    page.click("#send")
    page.wait_for_selector("#send-told:not(:empty)")
    assert "notes.mp4" in page.inner_text("#send-told")
    assert page.is_visible("#send-form")
    large = {"name": "film.mp4", "mimeType": "video/mp4", "buffer": b"x" * (2**20 + 1)}
    page.set_input_files("#media", large)
    page.click("#send")
    assert "accepts up to 1048576" in page.inner_text("#send-told")


def test_it_is_used_by_keyboard_alone(page: Any, address: str, clip: Path) -> None:
    page.goto(address)
    reached = []
    for _ in range(6):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    # The link to the live page first.
    assert reached[:5] == ["A", "media", "sample", "SUMMARY", "send"]


def test_nothing_overflows_on_a_phone_or_a_desk(
    page: Any, address: str, clip: Path, tmp_path: Path
) -> None:
    send(page, address, clip, SRT, name=f"{'a-very-long-name-' * 8}.mp4")
    page.wait_for_selector("#links:not([hidden])")
    for scheme, width in itertools.product(("light", "dark"), (360, 1280)):
        page.emulate_media(color_scheme=scheme)
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width, (scheme, width)
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert page.problems == []


REAL = ROOT.parent / "shared" / "media" / "nasa_13013.mp4"


@pytest.fixture(params=["generated", pytest.param("real", marks=pytest.mark.slow)])
def film(request: pytest.FixtureRequest) -> Path:
    """Somebody speaks in it."""
    pytest.importorskip("faster_whisper", reason="the extra asr is not installed")
    if request.param == "real":
        if not REAL.is_file():
            pytest.skip(f"{REAL.name} is not there")
        return REAL
    root: Path = request.getfixturevalue("sample").root
    return max(root.rglob("*.mp4"), key=lambda path: path.stat().st_size)


def until(page: "Page", expression: str) -> None:
    wait_until(lambda: page.evaluate(expression))


def test_speech_in_a_film_is_recognised_and_the_result_navigated_saved_and_erased(
    page: Any, address: str, film: Path
) -> None:
    page.goto(address)
    page.set_input_files("#media", film)
    page.click("#send")
    page.set_default_timeout(60_000)
    page.wait_for_selector("#utterances tbody tr")  # one has arrived
    page.wait_for_selector("#links:not([hidden])")
    rows = page.locator("#utterances tbody tr")
    assert rows.count() >= 1
    with page.expect_download() as download:
        page.click("#srt")
    subtitles = Path(download.value.path()).read_text(encoding="utf-8")
    assert subtitles.count(" --> ") == rows.count()

    job = page.url
    open_the_result(page)
    seek = page.locator("button.seek")
    assert seek.count() == len(starts(subtitles))
    seek.last.click()
    starts_s = starts(subtitles)
    until(page, f"Math.abs(document.querySelector('video').currentTime - {starts_s[-1]}) < 0.1")
    page.keyboard.press("ArrowLeft")
    before_s = starts_s[-2] if len(starts_s) > 1 else starts_s[-1]
    until(page, f"Math.abs(document.querySelector('video').currentTime - {before_s}) < 0.1")

    page.goto(job)
    page.wait_for_selector("#links:not([hidden])")
    page.click("#erase")
    page.wait_for_selector("text=Erased: the file, the words and the results.")
    assert page.problems == []


def starts(subtitles: str) -> list[float]:
    """Seconds."""
    found = re.findall(r"(\d+):(\d+):(\d+),(\d+) -->", subtitles)
    return [int(h) * 3600 + int(m) * 60 + int(s) + int(ms) / 1000 for h, m, s, ms in found]
