"""The corpus with every defect, looked at once."""

from pathlib import Path

import pytest

from pipeline.sample.corpus import SampleResult
from tests.conftest import MadeOnce
from tests.pipeline.doctor.planted import Examined, run_doctor


@pytest.fixture(scope="session")
def examined(corrupt_corpus: SampleResult, made_once: MadeOnce) -> Examined:
    """Not to be written to."""

    def examine_once(folder: Path) -> Examined:
        folder.mkdir()
        return Examined(run_doctor(corrupt_corpus.root, folder), folder / "doctor.html")

    return made_once("examined", examine_once)
