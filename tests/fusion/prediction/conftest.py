"""A real browser: Debian's Chromium, or Chrome, driven by Playwright."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="make browser installs it")
    if BROWSER is None:
        pytest.skip("no Chromium on the PATH")
    with playwright.sync_playwright() as started:
        # Root has no sandbox.
        chromium = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield chromium
        chromium.close()
