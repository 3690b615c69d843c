"""The service's pages say nothing that is not in texts.json, and nothing stands there unused."""

import json
import re
from html.parser import HTMLParser
from importlib import resources

import pytest

from serving.page import page_file, read_texts

FOLDER = resources.files("serving").joinpath("page_parts")
TEMPLATES = ["start.html.jinja", "live.html.jinja", "key.html.jinja"]
SCRIPTS = ["shown.js", "start.js", "live.js"]
NAMES = [f"{page}.{name}" for page, texts in read_texts().items() for name in texts]


def source(name: str) -> str:
    return FOLDER.joinpath(name).read_text(encoding="utf-8")


class Words(HTMLParser):
    """Collects the words that a template has of its own, in its text and in spoken attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_data(self, data: str) -> None:
        self.found += re.findall(r"[A-Za-z]{2,}", data)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("aria-label", "title", "alt", "placeholder"):
                self.found += re.findall(r"[A-Za-z]{2,}", value or "")


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_template_has_no_words_of_its_own(template: str) -> None:
    words = Words()
    words.feed(re.sub(r"\{\{.*?\}\}|\{%.*?%\}", "", source(template)))
    # The formats of the result, which are names of files.
    assert [word for word in words.found if word not in ("JSON", "CSV", "SRT", "VTT")] == []


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_script_shows_no_words_of_its_own(script: str) -> None:
    comments_and_values = r"^\s*//.*$|\s//\s.*$|\$\{[^{}]*\}"
    code = re.sub(comments_and_values, "", source(script), flags=re.MULTILINE)
    quoted = re.findall(r'"([^"\n]*)"|`([^`]*)`', code)
    phrases = ["".join(each) for each in quoted]
    # A sentence has two words with a space between; "use strict" is for the browser.
    assert [each for each in phrases if re.search(r"[A-Za-z]{2,} [A-Za-z]{2,}", each)] == [
        "use strict"
    ]


def test_every_text_is_shown_somewhere() -> None:
    used = "\n".join(source(file) for file in TEMPLATES + SCRIPTS)
    unused = [name for name in NAMES if not re.search(rf"(?i:texts)\.{re.escape(name)}\b", used)]
    assert unused == ["live.video", "live.audio", "live.text"]  # by name: TEXTS.live[modality]


def test_every_text_that_a_page_asks_for_exists() -> None:
    used = "\n".join(source(file) for file in TEMPLATES + SCRIPTS)
    asked = {f"{page}.{key}" for page, key in re.findall(r"(?i:texts)\.(\w+)\.(\w+)", used)}
    assert asked <= set(NAMES)


def test_the_scripts_get_the_texts_of_the_file() -> None:
    found = page_file("texts.js")
    assert found is not None
    content, media_type = found
    assert media_type == "text/javascript"
    assert json.loads(content.decode().removeprefix("const TEXTS = ").rstrip(";\n")) == read_texts()
