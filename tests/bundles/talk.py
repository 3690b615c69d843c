"""What a model says of the talk that every bundle is checked with."""

from pathlib import Path
from typing import Any

from fusion.export.golden import TALK
from tests.conftest import Meld


def timeline(meld: Meld, model: Path) -> dict[str, Any]:
    out = model.parent / "predictions"
    done = meld("predict", TALK, "--model", model, "--out", out, "--json")
    assert done.status == 0, done.err
    return done.json["files"][0]["timeline"]
