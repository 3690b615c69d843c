"""`meld info`: every failure of a cache with its clip and reason."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pipeline.cache.format import write_cache
from pipeline.schema import ClipFailure, ClipKey
from tests.fusion.conftest import make_cache

Meld = Callable[..., Any]


def test_every_failure_is_listed_with_its_clip_and_reason(meld: Meld, tmp_path: Path) -> None:
    failures = tuple(
        ClipFailure(
            key=ClipKey("train", 0, row),
            modality="audio",
            stage="decode",
            code="unreadable",
            message=f"broken {row}",
            lost=True,
        )
        for row in (1, 3)
    )
    cache = replace(make_cache("train", 5, modalities=["text", "audio"]), failures=failures)
    cache.present["audio"][[1, 3]] = False
    cache.raw["audio"][[1, 3]] = 0
    file = tmp_path / "with a blank" / "train.h5"
    file.parent.mkdir()
    write_cache(file, cache)
    short = meld("info", file)
    assert "2 x audio decode unreadable; first train dia0_utt1: broken 1" in short.out
    assert f"meld info '{file}' --failures lists all" in short.out
    listed = meld("info", file, "--failures")
    assert "train dia0_utt1: audio: broken 1 (unreadable)" in listed.out
    assert "train dia0_utt3: audio: broken 3 (unreadable)" in listed.out
    ledger = meld("info", file, "--json").json["ledger"]
    assert [each["clip"] for each in ledger] == ["train dia0_utt1", "train dia0_utt3"]


def test_a_corpus_to_compare_with_is_refused_where_no_clip_was_read(
    meld: Meld, tmp_path: Path
) -> None:
    file = tmp_path / "train.h5"
    write_cache(file, make_cache("train", 5))
    refused = meld("info", file, "--data", tmp_path)
    assert refused.status == 2
    assert "was made without reading clips" in refused.err
