"""The bundled model, which predicts where no other run is named."""

from pathlib import Path


def bundled_run() -> Path:
    """The run `meld-text`: text alone, the frozen bundled MiniLM, trained on MELD's transcripts.

    Its README.md says what it can do and what it cannot. It is part of the installed program: read
    it, write nothing there. `make bundled-model` makes it.
    """
    return Path(__file__).resolve().parents[1] / "bundled" / "meld-text"
