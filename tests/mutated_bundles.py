"""Loads bundles whose files were changed, one after the other, in a process that a crash may end.

    python -m tests.mutated_bundles BUNDLE SCRATCH SEED COUNT > a line of JSON for each

Whatever asks the network or starts a program is a line too.
"""

import hashlib
import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from fusion.inference.load import ModelChoice
from pipeline.encoders.weights import hash_weights
from pipeline.errors import MeldError
from pipeline.schema import ClipKey, DecodedClip, Utterance

FORBIDDEN = ("socket.connect", "socket.getaddrinfo", "subprocess.Popen", "os.system", "os.exec")


def mutate(content: bytes, rng: random.Random) -> bytes:
    """A few bytes or bits, a piece cut out, doubled, filled or moved, or the end cut off."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        at = rng.randrange(len(changed))
        end = min(at + rng.choice((1, 2, 4, 8, 64, 1000)), len(changed))
        match rng.randrange(7):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                changed[at:end] = rng.randbytes(end - at)
            case 2:
                del changed[at:end]
            case 3:
                changed[at:at] = changed[at:end]
            case 4:
                changed[at:end] = bytes([rng.choice((0, 255, 127, 128))]) * (end - at)
            case 5:  # a number that claims much
                changed[at : at + 4] = rng.choice((b"\x7f\xff\xff\xff", b"\xff" * 4, b"\0\0\0\1"))
            case 6:
                del changed[max(at, 1) :]
        changed = changed or bytearray(b"\0")
    return bytes(changed)


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    if event in FORBIDDEN:
        print(json.dumps({"forbidden": f"{event} {arguments!r}"}), flush=True)


def change(bundle: Path, rng: random.Random) -> str:
    """One file, and as a rule all hashes of it: a forger would think of that."""
    files = [each for each in bundle.rglob("*") if each.is_file() and each.stat().st_size]
    path = rng.choice(sorted(files))
    before = hashes_of(bundle, path)
    path.write_bytes(mutate(path.read_bytes(), rng))
    if rng.random() < 0.8:
        after = hashes_of(bundle, path)
        for index in bundle.rglob("*.json"):
            content = index.read_bytes()
            for old, new in zip(before, after, strict=True):
                content = content.replace(old.encode(), new.encode())
            if index != path:
                index.write_bytes(content)
    return path.relative_to(bundle).as_posix()


def hashes_of(bundle: Path, path: Path) -> list[str]:
    """Its own, and that of all files of its encoder."""
    hashes = [hashlib.sha256(path.read_bytes()).hexdigest()]
    if path.parent.parent == bundle / "encoders":
        hashes.append(hash_weights(path.parent))
    return hashes


def predict(bundle: Path) -> None:
    predictor = ModelChoice(run=bundle).load()
    clip = DecodedClip(utterance=Utterance(key=ClipKey("test", 0, 0), text="How you doin'?"))
    [prediction] = predictor.predict(predictor.encode([clip]))
    for head in (prediction.emotion, prediction.sentiment):
        assert abs(sum(head.probabilities.values()) - 1) < 1e-6


def main() -> None:
    whole, scratch, seed, count = Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:5])
    try:
        predict(whole)  # imports all that is needed, before anything is watched
    except MeldError as error:
        print(json.dumps({"whole": str(error)}))
    sys.addaudithook(watch)
    for number in range(count):
        bundle = scratch / "bundle"
        shutil.copytree(whole, bundle)
        name = change(bundle, random.Random(f"{seed} {number}"))
        told = {"number": number, "file": name}
        print(json.dumps(told | {"begun": True}), flush=True)
        began = time.monotonic()
        try:
            predict(bundle)
            told["ended"] = "predicted"
        except MeldError as error:
            told["ended"] = type(error).__name__
            told["message"] = str(error)
        except Exception as error:  # noqa: BLE001 (what it is tells the test)
            told["bug"] = f"{type(error).__name__}: {error}"
        print(json.dumps(told | {"seconds": time.monotonic() - began}), flush=True)
        shutil.rmtree(bundle)


if __name__ == "__main__":
    main()
