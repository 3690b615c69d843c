"""The page of a timeline, read as HTML and driven in a real browser."""

import base64
import dataclasses
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from fusion.inference.media import PredictedUtterance
from fusion.inference.timeline import Segmentation, Timeline
from fusion.prediction.formats import (
    MOST_EMBEDDED_BYTES,
    address_media,
    check_embedded,
    write_as,
)
from fusion.prediction.page import LANES, embed, render_page
from pipeline.errors import StorageError, UsageError
from tests.fusion.inference.test_timeline import predicted, timeline
from tests.media import grey, tone, write_clip

if TYPE_CHECKING:
    from playwright.sync_api import Page

ATTACK = (
    "</script><script>document.title = 'hacked'</script><img src=x onerror=alert(1)> & \"it's\""
)


def three(*, file: str = "talk.mp4", duration_ms: int = 6000, text: str = "Hi") -> Timeline:
    """Joy, nothing, anger: two seconds each."""
    return named(
        [
            predicted(1, 0, 2000, "joy", 0.9, text=text, speaker="Joey"),
            predicted(2, 2000, 4000, None, text="unheard"),
            predicted(3, 4000, 6000, "anger", 0.8, text="No!", face="positive"),
        ],
        file,
        duration_ms,
    )


def named(utterances: list[PredictedUtterance], file: str, duration_ms: int) -> Timeline:
    made = timeline(*utterances)
    media = dataclasses.replace(made.media, file=file, duration_ms=duration_ms)
    return dataclasses.replace(made, media=media)


class Elements(HTMLParser):
    """Every element with its attributes, and what each script holds."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        (self.scripts if self.cdata_elem == "script" else self.words).append(data)

    def named(self, wanted: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.elements if tag == wanted]


def test_each_utterance_stands_in_the_row_of_its_emotion_at_its_time() -> None:
    page = Elements(render_page(three().to_dict(), media_url="talk.mp4"))
    blocks = [block for block in page.named("rect") if block["class"] != "failed"]
    assert [(each["x"], each["width"], each["class"]) for each in blocks] == [
        ("0", "2000", "e-joy"),
        ("4000", "2000", "e-anger"),
    ]
    assert [int(float(each["y"] or "")) for each in blocks] == [
        LANES.index("joy"),
        LANES.index("anger"),
    ]
    [failed] = [block for block in page.named("rect") if block["class"] == "failed"]
    assert (failed["x"], failed["width"]) == ("2000", "2000")
    [frame] = [each for each in page.named("svg") if each["class"] == "blocks"]
    assert frame["viewbox"] == f"0 0 6000 {len(LANES)}"


def test_the_line_is_positive_minus_negative() -> None:
    page = Elements(render_page(three().to_dict(), media_url=None))
    [level] = [each["d"] for each in page.named("path") if each["class"] == "level"]
    # 0.9 positive leaves 0.05 for negative: -0.85 is 0.85 above the middle in SVG.
    assert level == "M0 -0.85H2000M4000 0.7H6000"


def test_the_page_runs_its_own_script_alone_and_loads_the_media_alone() -> None:
    page = Elements(render_page(three(text=ATTACK).to_dict(), media_url="talk.mp4"))
    [policy] = [
        each["content"] or ""
        for each in page.named("meta")
        if each.get("http-equiv") == "Content-Security-Policy"
    ]
    data, script = page.scripts
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy
    assert policy.startswith("default-src 'none';")
    addresses = [
        attributes[name]
        for _, attributes in page.elements
        for name in ("src", "href")
        if attributes.get(name) is not None
    ]
    assert [each for each in addresses if not (each or "").startswith("#")] == ["talk.mp4"]
    assert not [name for _, each in page.elements for name in each if name.startswith("on")]
    assert json.loads(data)["utterances"][0]["text"] == ATTACK
    assert ATTACK in "".join(page.words)


def test_without_a_script_and_on_paper_everything_can_be_read() -> None:
    words = " ".join(
        " ".join(Elements(render_page(three().to_dict(), media_url=None)).words).split()
    )
    for told in ("joy 90 %", "positive 90 %", "anger 80 %", "modalities disagree", "Joey", "No!"):
        assert told in words
    assert "nothing to predict from (audio: the file has no sound)" in words


def test_a_file_without_an_utterance_and_one_without_a_picture_have_a_page_too() -> None:
    nothing = named([], "quiet.wav", 5000)
    sound = dataclasses.replace(nothing, media=dataclasses.replace(nothing.media, has_video=False))
    page = Elements(render_page(sound.to_dict(), media_url="quiet.wav"))
    assert page.named("audio")
    assert not page.named("video")
    assert "No utterance: no speech was found" in " ".join(page.words)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("subtitles", "words from a subtitle track in the file"),
        ("whole", "one utterance"),
        ("speech", "words as they were heard"),
    ],
)
def test_a_page_says_where_words_are_from_that_stand_in_no_file(source: str, told: str) -> None:
    made = dataclasses.replace(three(), segmentation=Segmentation(source=source))
    assert told in " ".join(Elements(render_page(made.to_dict(), media_url=None)).words)


def test_a_page_finds_its_file_from_where_it_lies(tmp_path: Path) -> None:
    media = tmp_path / "in #1" / "my talk?.mp4"
    media.parent.mkdir()
    media.write_bytes(b"x")
    out = tmp_path / "out"
    assert address_media(media, folder=out, embedded=False) == "../in%20%231/my%20talk%3F.mp4"
    assert address_media(media, folder=None, embedded=False) == media.as_uri()
    assert address_media(media, folder=out, embedded=True) == "data:video/mp4;base64,eA=="
    assert 'src="data:video/mp4;base64,eA=="' in write_as("html", three(), media_url=embed(media))


def test_what_is_too_large_for_a_page_is_refused_before_the_work(tmp_path: Path) -> None:
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(MOST_EMBEDDED_BYTES + 1)
    with pytest.raises(UsageError, match=r"large\.mp4 has 200 MiB, and a page holds up to 200"):
        check_embedded(large)
    with pytest.raises(StorageError, match="cannot read"):
        check_embedded(tmp_path / "none.mp4")


# ------------------------------------------------------------------------- in a real browser


class Opened:
    """A page in the browser, and all that it asked for and complained of."""

    def __init__(self, browser: Any, path: Path, **options: Any) -> None:
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page: Page = browser.new_page(**options)
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())

    def until(self, expression: str) -> None:
        """Not wait_for_function: it evaluates in the page, whose policy forbids that."""
        for _ in range(400):
            if self.page.evaluate(expression):
                return
            self.page.wait_for_timeout(50)
        raise AssertionError(f"not in 20 s: {expression}")

    def now(self) -> str:
        return self.page.locator("#now").inner_text()

    def seconds(self) -> float:
        return float(self.page.evaluate("document.getElementById('media').currentTime"))

    def current(self) -> str | None:
        row = self.page.locator("tr[aria-current]")
        return row.get_attribute("id") if row.count() else None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds of video with a page for it, one that embeds it, and one whose file is gone."""
    folder = tmp_path_factory.mktemp("page")
    clip = write_clip(
        folder / "talk.mp4",
        num_frames=144,
        picture=lambda number: grey(number % 60),
        sound=tone([440] * 6),
    )
    (folder / "linked.html").write_text(render_page(three().to_dict(), media_url="talk.mp4"))
    attacked = three(file=ATTACK, text=ATTACK).to_dict()
    (folder / "embedded.html").write_text(render_page(attacked, media_url=embed(clip)))
    (folder / "gone.html").write_text(render_page(three().to_dict(), media_url="gone.mp4"))
    return folder


@pytest.mark.heavy
def test_clicks_and_keys_go_to_moments_of_the_video(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "linked.html")
    page = opened.page
    opened.until("document.getElementById('media').readyState >= 1")
    assert page.evaluate("document.getElementById('media').duration") == pytest.approx(6, abs=0.1)
    assert "Hi" in opened.now()
    assert "90 %" in opened.now()

    page.keyboard.press("ArrowRight")  # to the second, of which nothing is known
    assert opened.seconds() == pytest.approx(2)
    assert opened.current() == "u0002"
    assert "nothing to predict from" in opened.now()
    page.keyboard.press("ArrowRight")
    assert opened.seconds() == pytest.approx(4)
    assert "The modalities disagree" in opened.now()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    assert (opened.current(), opened.seconds()) == ("u0001", 0)

    page.locator("button.seek[data-id=u0003]").click()
    assert opened.seconds() == pytest.approx(4)
    box = page.locator("#stretch").bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] / 4, box["y"] + 5)
    assert opened.seconds() == pytest.approx(1.5, abs=0.02)
    assert opened.current() == "u0001"
    at = page.locator("#cursor").evaluate(
        "each => each.offsetLeft / each.parentElement.clientWidth"
    )
    assert at == pytest.approx(0.25, abs=0.01)

    page.keyboard.press("Space")
    opened.until("document.getElementById('media').currentTime > 1.6")
    page.keyboard.press("Space")
    assert page.evaluate("document.getElementById('media').paused")
    assert opened.complaints == []
    assert {Path(url).name for url in opened.asked} == {"linked.html", "talk.mp4"}
    page.close()


@pytest.mark.heavy
def test_what_is_said_and_a_files_name_are_shown_as_text(browser: Any, folder: Path) -> None:
    opened = Opened(browser, folder / "embedded.html")
    opened.until("document.getElementById('media').readyState >= 1")
    assert "hacked" not in opened.page.title().replace(ATTACK, "")
    assert opened.page.locator("h1").inner_text() == ATTACK
    assert ATTACK in opened.now()
    assert opened.page.locator("main img").count() == 0
    assert {url[:5] for url in opened.asked} <= {"file:", "data:"}
    assert opened.complaints == []
    opened.page.close()


@pytest.mark.heavy
def test_a_file_that_was_moved_can_be_chosen_and_the_page_works_without_it(
    browser: Any, folder: Path
) -> None:
    opened = Opened(browser, folder / "gone.html")
    page = opened.page
    page.locator("#unplayable").wait_for(state="visible")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    assert opened.current() == "u0003"
    page.locator("#choose").set_input_files(folder / "talk.mp4")
    page.locator("#unplayable").wait_for(state="hidden")
    opened.until("document.getElementById('media').currentTime == 4")
    page.close()


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("width", "scheme"),
    [
        pytest.param(390, "dark"),
        pytest.param(1366, "light"),
        pytest.param(390, "light", marks=pytest.mark.slow),
        pytest.param(1366, "dark", marks=pytest.mark.slow),
    ],
)
def test_the_page_fits_its_window_and_its_words_stand_out(
    browser: Any, folder: Path, width: int, scheme: str
) -> None:
    opened = Opened(
        browser,
        folder / "linked.html",
        viewport={"width": width, "height": 844},
        color_scheme=scheme,
    )
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    ink, paper = opened.page.evaluate(
        "['color', 'backgroundColor'].map(name => getComputedStyle(document.body)[name])"
    )
    assert contrast(ink, paper) >= 7
    soft = opened.page.locator("p.soft").first.evaluate("each => getComputedStyle(each).color")
    assert contrast(soft, paper) >= 4.5
    opened.page.close()


def contrast(one: str, other: str) -> float:
    """The ratio of WCAG 2.2, 1 to 21, of two colours as `rgb(r, g, b)`."""
    light = sorted((_luminance(one), _luminance(other)))
    return (light[1] + 0.05) / (light[0] + 0.05)


def _luminance(colour: str) -> float:
    channels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
