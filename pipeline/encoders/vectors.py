"""Static word vectors: `--text glove`, `--text glove:FILE`, `--text word2vec:FILE`.

    text ── split_words ──> words ── find ──> [known words, dim] ── mean ──> [dim]

The vectors were trained on words that were split as the Penn Treebank splits them ("do n't",
"she 's"): that way GloVe 6B knows 99.7 % of the words of MELD, and 67 % of them where text is
split at spaces. Nothing here is trained, and words that a file does not have count for nothing.
"""

import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.vector_files import (
    MATRIX_FILE,
    WORDS_FILE,
    WordVectors,
    open_glove,
    open_package_folder,
    open_word2vec,
)
from pipeline.errors import ClipError
from pipeline.schema import DecodedClip

OPENERS: dict[str, Callable[[Path], WordVectors]] = {
    "glove": open_glove,
    "word2vec": open_word2vec,
}
SAVED_NAME = "words.vec"  # a copy of a vector file, in the folder of a run or a bundle

# Apostrophes as people and old files write them; the last is Windows' own, read as Latin-1.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2019\u2018\u02bc\x91\x92", "'"))
_SPLIT = re.compile(
    r"""
    \w+(?=n't\b)                          # do|n't
    | n't\b
    | '(?:s|m|d|re|ve|ll)\b               # she|'s
    | \w+(?:[-.,/]\w+)*(?<!n)(?='\w)      # the word before such an ending
    | \w+(?:[-.,/]\w+)*                   # one word, also well-known, 3.5 and a.m
    | \.{2,} | -{2,}                      # ... and --
    | [^\w\s]                             # every other sign is a word
    """,
    re.VERBOSE | re.IGNORECASE,
)
# Spoken words that the Treebank writes as two.
_TWO_WORDS = {
    "cannot": ("can", "not"),
    "gimme": ("gim", "me"),
    "gonna": ("gon", "na"),
    "gotta": ("got", "ta"),
    "lemme": ("lem", "me"),
    "wanna": ("wan", "na"),
}


def split_words(text: str) -> list[str]:
    """As the Penn Treebank splits text, case and all; without its quotation marks and brackets,
    which stay as they are written."""
    words = _SPLIT.findall(text.translate(_APOSTROPHES))
    return [part for word in words for part in _split_spoken(word)]


def _split_spoken(word: str) -> Sequence[str]:
    if word.startswith(".."):
        return ("...",)  # however many
    two = _TWO_WORDS.get(word.lower())
    return (word,) if two is None else (word[: len(two[0])], word[len(two[0]) :])


class Words:
    """A sentence as the vectors of its known words, float32 [known words, dim]."""

    most_rows: int | None = None
    nothing = "no word of it has a vector"

    def __init__(self, opened: "Opening") -> None:
        self._opening = opened
        self.vectors = opened.open()

    def __reduce__(self) -> tuple[type["Words"], tuple["Opening"]]:
        """Another process opens the file itself."""
        return Words, (self._opening,)

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tensor | None]:
        return [self._prepare(clip.utterance.text) for clip in clips]

    def _prepare(self, text: str) -> Tensor | None:
        found = [vector for word in split_words(text) for vector in self._find(word)]
        return torch.stack(found) if found else None

    def _find(self, word: str) -> Iterator[Tensor]:
        """As it is written, else in lower case, else its parts between hyphens and the like."""
        for form in dict.fromkeys((word, word.lower())):
            vector = self.vectors.find(form)
            if vector is not None:
                yield torch.from_numpy(vector)
                return
        parts = re.split(r"[^\w']+", word)
        if len(parts) > 1:
            for part in parts:
                yield from self._find(part)

    def shortfall(self, item: Tensor) -> ClipError | None:
        return None

    def length(self, item: Tensor) -> int:
        return 0  # each is a mean of its own: beside whom does not matter

    def augment(self, item: Tensor, config: AugmentConfig, generator: torch.Generator) -> Tensor:
        """Some words are left out, never all."""
        kept = torch.rand(len(item), generator=generator) >= config.token_dropout
        return item[kept] if kept.any() else item

    def collate(self, items: Sequence[Tensor]) -> "Sentences":
        return Sentences(tuple(items))


@dataclass(frozen=True)
class Opening:
    """kind: of `OPENERS`, None for the folder of the package; path: the file, or a folder that
    `VectorEncoder.save` wrote"""

    kind: str | None
    path: Path

    @property
    def file(self) -> Path:
        return self.path / SAVED_NAME if self.path.is_dir() else self.path

    def open(self) -> WordVectors:
        if self.kind is None:
            return open_package_folder(self.path)
        return OPENERS[self.kind](self.file)

    def copy_to(self, folder: Path) -> None:
        if self.kind is None:
            for name in (MATRIX_FILE, WORDS_FILE):
                shutil.copyfile(self.path / name, folder / name)
        else:
            shutil.copyfile(self.file, folder / SAVED_NAME)


@dataclass(frozen=True)
class Sentences:
    """Of each the vectors of its words, float32 [words, dim]."""

    vectors: tuple[Tensor, ...]

    def to(self, device: torch.device) -> "Sentences":
        return Sentences(tuple(each.to(device) for each in self.vectors))


class VectorEncoder(nn.Module):
    """The mean of the vectors of a sentence's known words.

    forward: Sentences -> float32 [batch, 1, dim]
    """

    batch_size: int | None = None

    def __init__(self, opening: Opening) -> None:
        super().__init__()
        self._opening = opening
        self.preparation = Words(opening)

    @property
    def dim(self) -> int:
        return self.preparation.vectors.dim

    def forward(self, batch: Sentences) -> Tensor:
        return torch.stack([each.mean(0, keepdim=True) for each in batch.vectors])

    def layer_depths(self) -> dict[str, int]:
        """It has no parameters."""
        return {}

    def checkpoint_gradients(self) -> None:
        """It has no gradients."""

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        return 0.0

    def save(self, folder: Path) -> None:
        self._opening.copy_to(folder)


def build_vector_encoder(kind: str | None, path: Path) -> VectorEncoder:
    """Raises MismatchError where the file holds no such vectors."""
    return VectorEncoder(Opening(kind, path)).eval()
