"""Bundles that are changed on purpose, with hashes that fit."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def rehash(bundle: Path) -> None:
    """As whoever changes a bundle on purpose would."""
    from fusion.inference.bundle import hash_file
    from pipeline.encoders.weights import hash_weights

    path = bundle / "encoders" / "encoders.json"
    if path.is_file():
        index = json.loads(path.read_bytes())
        index["files"] = {name: hash_weights(path.parent / name) for name in index["files"]}
        path.write_text(json.dumps(index))
    path = bundle / "export.json"
    values = json.loads(path.read_bytes())
    values["files"] = {
        name: hash_file(bundle / name) for name in values["files"] if (bundle / name).is_file()
    }
    path.write_text(json.dumps(values))


def change_json(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        values = json.loads((bundle / name).read_bytes())
        change(values)
        (bundle / name).write_text(json.dumps(values))

    return apply
