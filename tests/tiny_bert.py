"""A whole BERT that takes no time: two narrow layers, and the most frequent of MiniLM's words."""

import json
import shutil
from pathlib import Path
from typing import Any

NUM_TOKENS = 10_000  # of 30,522, in the order of how often they are met: every letter is among them


def write_tiny_bert(folder: Path, minilm: Path, seed: int, **config: Any) -> Path:
    """A folder of weights drawn with `seed`, 48 numbers a token; `config` says what else differs
    from MiniLM.

    Reading, hashing, saving and training 30,522 rows of words is most of what a test of something
    else would do.
    """
    import torch
    from transformers import AutoConfig, AutoModel

    shutil.copy(minilm / "tokenizer_config.json", folder)
    tokens = (minilm / "vocab.txt").read_text(encoding="utf-8").splitlines()[:NUM_TOKENS]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    tokenizer = json.loads((minilm / "tokenizer.json").read_text(encoding="utf-8"))
    tokenizer["model"]["vocab"] = {token: number for number, token in enumerate(tokens)}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    bert = AutoConfig.from_pretrained(minilm)
    small = {"num_hidden_layers": 2, "hidden_size": 48, "intermediate_size": 64}
    for name, value in {**small, "vocab_size": len(tokens), **config}.items():
        setattr(bert, name, value)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        AutoModel.from_config(bert).save_pretrained(folder)
    return folder
