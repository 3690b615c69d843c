"""A wrong or hostile bundle is refused in a line, and nothing in it is executed."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fusion.export.golden import TALK
from tests.bundles.forging import change_json, rehash
from tests.conftest import Meld

pytestmark = pytest.mark.heavy


def change_weights(
    name: str, change: Callable[[dict[str, np.ndarray]], object]
) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        values = load_file(bundle / name)
        change(values)
        save_file(values, bundle / name, metadata={"format": "pt"})

    return apply


def write(name: str, content: bytes) -> Callable[[Path], None]:
    def apply(bundle: Path) -> None:
        (bundle / name).write_bytes(content)

    return apply


EXECUTED = "was-executed"  # beside the bundle


class Exploit:
    """What a pickle may do when it is loaded."""

    def __init__(self, bundle: Path) -> None:
        self.trace = bundle.parent / EXECUTED

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.trace, "yes"))


def a_pickle(bundle: Path) -> None:
    (bundle / FUSION).write_bytes(pickle.dumps(Exploit(bundle)))


def only_a_pickle(bundle: Path) -> None:
    (bundle / TEXT).unlink()
    (bundle / "encoders/text/pytorch_model.bin").write_bytes(pickle.dumps(Exploit(bundle)))


def code_in_the_bundle(bundle: Path) -> None:
    trace = str(bundle.parent / EXECUTED)
    (bundle / "encoders/text/evil.py").write_text(f"open({trace!r}, 'w').write('yes')")
    change_json(
        "encoders/text/config.json",
        lambda config: config.update(
            auto_map={"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}, model_type="evil"
        ),
    )(bundle)


def first(values: dict[str, np.ndarray], name: str) -> str:
    return next(key for key in values if name in key)


def spoil(values: dict[str, np.ndarray], name: str) -> None:
    key = first(values, name)
    values[key] = np.full_like(values[key], np.nan)


FUSION, TEXT = "model.safetensors", "encoders/text/model.safetensors"
HOSTILE: dict[str, tuple[Callable[[Path], None], str]] = {
    "weights of another shape": (
        change_weights(FUSION, lambda w: w.update({"heads.emotion.bias": np.zeros(6, "f4")})),
        r"heads.emotion.bias is",
    ),
    "weights that are not numbers": (
        change_weights(FUSION, lambda w: spoil(w, "heads.emotion.weight")),
        "not finite",
    ),
    "an encoder's weights that are not numbers": (
        change_weights(TEXT, lambda w: spoil(w, "attention.self.query.weight")),
        "not finite",
    ),
    "a missing weight": (
        change_weights(FUSION, lambda w: w.pop("heads.emotion.bias")),
        "missing or unknown weights: heads.emotion.bias",
    ),
    "an unknown weight": (
        change_weights(FUSION, lambda w: w.update(extra=np.zeros(1, "f4"))),
        "missing or unknown weights: extra",
    ),
    "an encoder's missing weight": (
        change_weights(TEXT, lambda w: w.pop(first(w, "attention.self.query.weight"))),
        "no usable Hugging Face text model",
    ),
    "a pickle for weights": (a_pickle, "not a safetensors file"),
    "a pickle for an encoder": (only_a_pickle, "no usable Hugging Face text model"),
    "code of its own": (code_in_the_bundle, "no usable Hugging Face text model"),
    "a header of exabytes": (
        write(FUSION, (2**62).to_bytes(8, "little") + b"{}"),
        "not a safetensors file",
    ),
    "labels in another order": (
        change_json("config.json", lambda c: c["labels"]["emotion"].reverse()),
        "labels are",
    ),
    "another version of the run's format": (
        change_json("config.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "another version of the bundle's format": (
        change_json("export.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "another version of the encoders' format": (
        change_json("encoders/encoders.json", lambda c: c.update(format_version=99)),
        "format version 99",
    ),
    "dims for all memory there is": (
        change_json("config.json", lambda c: c["dims"]["model"].update(hidden=2**62)),
        "not a run's description",
    ),
    "another recipe than its fingerprint": (
        change_json("config.json", lambda c: c["recipe"].update(revision=3)),
        "does not match its fingerprint",
    ),
    "another encoder than the config's": (
        change_json(
            "encoders/encoders.json",
            lambda c: c["recipe"]["encoders"][0].update(weights_hash="sha256:other"),
        ),
        "is not the one that made the features",
    ),
    "a tokenizer that is none": (
        write("encoders/text/tokenizer.json", b'{"version": "1.0", "model": {"type": "Evil"}}'),
        "no usable Hugging Face text model",
    ),
    "JSON nested without end": (write("config.json", b"[" * 100_000), "not JSON"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_bundle_is_refused_in_a_line_and_executes_nothing(
    kind: str, copied: Path, tmp_path: Path, meld: Meld
) -> None:
    damage, told = HOSTILE[kind]
    damage(copied)
    rehash(copied)
    done = meld("predict", TALK, "--model", copied, "--out", tmp_path / "out", "--json")
    assert done.status in (5, 6), done.err
    assert told in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / EXECUTED).exists()


def test_the_planted_pickle_would_tell_if_it_were_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Exploit(tmp_path / "bundle")))
    assert (tmp_path / EXECUTED).exists()


@pytest.mark.parametrize(
    ("name", "change", "told"),
    [
        ("model.safetensors", lambda path: path.write_bytes(b"other"), "not the file that was"),
        ("model.safetensors", Path.unlink, "is missing"),
        ("golden/talk.mp4", lambda path: path.write_bytes(b"other"), "not the file that was"),
    ],
)
def test_verify_finds_a_file_that_was_changed_on_the_way(
    copied: Path, meld: Meld, name: str, change: Callable[[Path], object], told: str
) -> None:
    change(copied / name)
    done = meld("verify", copied)
    assert done.status == 5
    assert told in done.err


@pytest.mark.parametrize("outside", ["../../secret", "/etc/hostname"])
def test_verify_reads_nothing_outside_of_the_bundle(copied: Path, meld: Meld, outside: str) -> None:
    change_json("export.json", lambda values: values["files"].update({outside: "0" * 64}))(copied)
    done = meld("verify", copied)
    assert done.status == 5
    assert "lies outside of the bundle" in done.err
