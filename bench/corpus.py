"""Generated clips, and encoders of the usual sizes, for the measurements of this folder."""

import shutil
import sys
from pathlib import Path

from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.encoders.weights import find_text_encoder
from pipeline.sample.corpus import SampleConfig, make_sample
from pipeline.schema import LocatedClip

CLIPS_PER_DIALOGUE = 5.3


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def generate(work: Path, dialogues: int) -> tuple[list[LocatedClip], Path]:
    """The clips of all splits, and the folder of the corpus."""
    data = work / f"data-{dialogues}"
    make_sample(SampleConfig(out=data, dialogues=dialogues))
    return locate(data), data


def locate(data: Path) -> list[LocatedClip]:
    corpus = read_corpus(data, None)
    return [
        clip for split, rows in corpus.items() for clip in locate_clips(data, split, rows, "fixed")
    ]


def bert_base_shape(folder: Path) -> Path:
    """Writes BERT base's config with the bundled tokenizer, which has the same vocabulary. Random
    weights cost the same time as trained ones."""
    from transformers import BertConfig

    folder.mkdir(parents=True, exist_ok=True)
    for file in find_text_encoder("minilm", None).iterdir():
        if file.name.startswith(("tokenizer", "vocab", "special_tokens")):
            shutil.copy(file, folder / file.name)
    BertConfig().save_pretrained(folder)
    return folder
