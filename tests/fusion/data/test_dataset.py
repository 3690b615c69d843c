"""A cache as a dataset of PyTorch and of Hugging Face, and the examples of the page about both."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import meld
from fusion.data.dataset import CacheDataset
from pipeline.cache.format import FeatureCache
from pipeline.schema import EMOTIONS, SENTIMENTS

PAGE = Path(__file__).resolve().parents[3] / "docs/features-in-python.md"
Plant = Callable[..., FeatureCache]


@pytest.fixture
def cache(plant_cache: Plant) -> FeatureCache:
    """Seven rows; the third has no audio, the fourth no emotion."""
    planted = plant_cache("train", 7)
    present = {name: values.copy() for name, values in planted.present.items()}
    present["audio"][2] = False
    planted.raw["audio"][2] = 0
    emotion = [*planted.emotion]
    emotion[3] = ""
    return replace(planted, present=present, emotion=emotion)


def test_a_cache_tells_keys_and_labels_of_every_row(cache: FeatureCache) -> None:
    assert [tuple(key) for key in cache.keys][4:6] == [("train", 0, 4), ("train", 1, 0)]
    for row in (0, 6):
        assert EMOTIONS[cache.labels["emotion"][row]] == cache.emotion[row]
        assert SENTIMENTS[cache.labels["sentiment"][row]] == cache.sentiment[row]
    assert cache.labels["emotion"][3] == -100
    assert cache.labels["sentiment"].dtype == np.int64


def test_a_batch_of_a_dataloader_has_the_rows_of_the_cache(cache: FeatureCache) -> None:
    [batch] = DataLoader(CacheDataset(cache), batch_size=7)
    assert torch.equal(batch.features["text"], torch.from_numpy(cache.raw["text"]))
    assert batch.present["audio"].tolist() == [True, True, False, True, True, True, True]
    assert batch.emotion.tolist() == cache.labels["emotion"].tolist()
    assert batch.row.tolist() == [*range(7)]


def test_rows_are_numbered_from_the_start_however_they_are_asked_for(cache: FeatureCache) -> None:
    dataset = CacheDataset(cache)
    assert dataset[-1].row == 6
    assert dataset[[5, -6]].row.tolist() == [5, 1]  # type: ignore[index]


def test_a_row_shares_the_memory_of_the_cache(cache: FeatureCache) -> None:
    row = CacheDataset(cache)[5]
    assert np.shares_memory(row.features["audio"].numpy(), cache.raw["audio"])


def test_embeddings_that_are_not_there_are_reported(cache: FeatureCache) -> None:
    with pytest.raises(meld.InputError, match="the train cache holds no embedding features"):
        meld.torch_dataset(cache, input="embedding")
    with pytest.raises(meld.UsageError, match="input: raw or embedding, not 'both'"):
        meld.torch_dataset(cache, input="both")  # type: ignore[arg-type]


def test_a_dataset_of_hugging_face_has_the_rows_of_the_cache(cache: FeatureCache) -> None:
    pytest.importorskip("datasets", reason="the extra datasets is not installed")
    dataset = meld.hf_dataset(cache).with_format("numpy")
    assert len(dataset) == 7
    row = dataset[5]
    assert row["text_raw"].dtype == np.float32
    assert (row["text_raw"] == cache.raw["text"][5]).all()
    assert (row["dialogue_id"], row["utterance_id"]) == (1, 0)
    assert [each["emotion"] for each in dataset][3] is None
    assert not dataset[2]["audio_present"]


def test_without_the_extra_the_command_that_installs_it_is_reported(
    cache: FeatureCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(meld.UsageError, match=r"datasets is not installed.*meld\[datasets\]"):
        meld.hf_dataset(cache)


def examples() -> dict[str, str]:
    """The code below each heading of the page."""
    parts = re.split(r"^## (.*)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    pairs = zip(parts[::2], parts[1::2], strict=True)
    found = {title: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for title, text in pairs}
    return {title: "\n".join(blocks) for title, blocks in found.items() if blocks}


@pytest.mark.heavy
@pytest.mark.parametrize("title", examples())
def test_the_examples_of_the_page_run(
    title: str,
    write_split: Plant,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for split, rows in (("train", 80), ("dev", 30), ("test", 30)):
        write_split(split, rows)
    monkeypatch.chdir(tmp_path)
    exec(compile(examples()[title], f"{PAGE.name}: {title}", "exec"), {})
    assert re.search(r"(F1|loss): \d", capsys.readouterr().out)
