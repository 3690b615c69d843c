"""Several threads of one process work with models at once."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from safetensors.torch import save

import meld
from fusion.data.load import load_split
from fusion.model.dims import ModelConfig
from fusion.training.build import build_model
from pipeline.cache.format import write_cache
from pipeline.encode import Encoders
from pipeline.encoders.encoder import EncoderWish
from pipeline.encoders.registry import find_entry
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality
from tests.fusion.conftest import make_cache

pytestmark = pytest.mark.heavy

THREADS = 4
Value = TypeVar("Value")


@pytest.fixture(autouse=True)
def default_type_is_restored() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


def at_once(work: Callable[[int], Value]) -> list[Value]:
    """What `work` gives in each thread; all of them begin at the same time."""
    ready = threading.Barrier(THREADS)

    def begin(number: int) -> Value:
        ready.wait()
        return work(number)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(begin, range(THREADS)))


def test_encoders_that_are_loaded_side_by_side_are_those_of_one_alone(
    tiny_text_folder: Path,
) -> None:
    """transformers sets the default type of the whole process while it loads in bfloat16."""

    def load(_: int) -> dict[str, torch.Tensor]:
        wishes: dict[Modality, EncoderWish] = {
            "text": EncoderWish(name=str(tiny_text_folder), weights="pretrained"),
            "audio": EncoderWish(name="spectrogram", weights="none"),
        }
        choices = [
            find_entry(modality, wish.name).choose(wish, "bfloat16")
            for modality, wish in wishes.items()
        ]
        return Encoders(choices, DecodeConfig()).state_dict()

    alone = load(0)
    for weights in (each for _ in range(3) for each in at_once(load)):
        assert {name: value.dtype for name, value in weights.items()} == {
            name: value.dtype for name, value in alone.items()
        }
        assert all(torch.equal(weights[name], value) for name, value in alone.items())
    assert torch.get_default_dtype() == torch.float32


def test_models_that_are_begun_side_by_side_with_one_seed_are_the_same(tmp_path: Path) -> None:
    """PyTorch draws a model's first weights from the random numbers of the whole process."""
    write_cache(tmp_path / "train.h5", make_cache("train", 20))
    data = load_split(tmp_path, "train", modalities=None, input="raw")

    def begin(_: int) -> bytes:
        return save(build_model(data, ModelConfig(), seed=5).state_dict())

    alone = begin(0)
    assert [each == alone for _ in range(5) for each in at_once(begin)] == [True] * 5 * THREADS


def test_a_run_of_a_caller_who_computes_in_float64_is_one_for_everybody(tmp_path: Path) -> None:
    for split in ("train", "dev"):
        write_cache(tmp_path / f"features/{split}.h5", make_cache(split, 20))
    torch.set_default_dtype(torch.float64)
    run = meld.train_fusion(features=tmp_path / "features", out=tmp_path / "run", epochs=1).run
    assert meld.evaluate(run, "dev", plots=False).rows == 20
    assert torch.get_default_dtype() == torch.float64
    torch.set_default_dtype(torch.float32)
    assert meld.evaluate(run, "dev", plots=False).rows == 20
