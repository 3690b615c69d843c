"""One imitation of the real archive for all tests, and a folder for what is unpacked."""

from pathlib import Path

import pytest

from tests.conftest import MadeOnce
from tests.pipeline.download.imitation import Packed, imitate_meld


@pytest.fixture(scope="session")
def packed(made_once: MadeOnce) -> Packed:
    """Not to be written to."""

    def make(folder: Path) -> Packed:
        folder.mkdir()
        return imitate_meld(folder / "some.tar.gz")

    return made_once("packed", make)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "data"
