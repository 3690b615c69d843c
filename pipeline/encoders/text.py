"""Hugging Face encoders: sentences to one mean-pooled vector per layer."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer, BatchEncoding

from pipeline.encoders.augment import AugmentConfig
from pipeline.errors import MismatchError, UsageError
from pipeline.recipe import Precision
from pipeline.schema import DecodedClip

MAX_TOKENS = 128  # MELD's longest utterance has 90-odd; nothing is padded up to this
MAX_TOKENS_WITH_CONTEXT = 256

# On a CPU batches of 1 to 8 are equally fast; a GPU is still busy with 16.
BATCH = 16

# Where Hugging Face models number their layers: bert.encoder.layer.3., layers.3., h.3., block.3.
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")

# What a backward pass keeps, measured on the CPU (LOG.md); autocast keeps much of a transformer in
# float32, so both precisions are alike.
_BYTES_PER_HIDDEN = 100  # of each token and layer
_BYTES_PER_ATTENTION = 16  # of each pair of tokens, head and layer


@dataclass(frozen=True)
class Tokens:
    """One sentence, tokenised.

    ids:    the whole input, special tokens and context with it
    types:  segment of each token: 0 the context (or all there is), 1 the sentence after it
    pooled: which tokens the sentence's vector is the mean of
    """

    ids: list[int]
    types: list[int]
    pooled: list[bool]


@dataclass(frozen=True)
class TokenBatch:
    """Sentences padded to the longest: ids, types int64, mask, pooled bool, [batch, tokens]."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    pooled: Tensor

    @classmethod
    def pad(cls, sentences: Sequence[Tokens], pad_id: int) -> "TokenBatch":
        shape = (len(sentences), max(len(tokens.ids) for tokens in sentences))
        ids, types = torch.full(shape, pad_id), torch.zeros(shape, dtype=torch.int64)
        mask, pooled = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.bool)
        for row, tokens in enumerate(sentences):
            length = len(tokens.ids)
            ids[row, :length] = torch.tensor(tokens.ids)
            types[row, :length] = torch.tensor(tokens.types)
            pooled[row, :length] = torch.tensor(tokens.pooled)
            mask[row, :length] = True
        return cls(ids, types, mask, pooled)

    def to(self, device: torch.device) -> "TokenBatch":
        moved = (value.to(device) for value in (self.ids, self.types, self.mask, self.pooled))
        return TokenBatch(*moved)


class Tokeniser:
    """A Hugging Face tokenizer, and which tokens of its output are the sentence's own.

    reads_context: whether what was said before is read with each sentence

    Raises what transformers raises where the folder holds none, ValueError for an empty one.
    """

    most_rows: int | None = None

    def __init__(self, folder: Path, *, reads_context: bool = False) -> None:
        self.reads_context = reads_context
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # Without its files a tokenizer is built all the same, and knows no word.
        if len(self.tokenizer) <= len(self.tokenizer.all_special_ids):
            raise ValueError("the tokenizer has no vocabulary; are its files there?")
        self.pad_id: int = self.tokenizer.pad_token_id or 0
        self.mask_id: int | None = self.tokenizer.mask_token_id
        self.special_ids = frozenset(self.tokenizer.all_special_ids)
        self.gives_types = "token_type_ids" in self.tokenizer.model_input_names
        self._encode([""], None)  # puts away the cutting that a tokenizer's own file asks for

    def __call__(
        self, sentences: Sequence[str], contexts: Sequence[str] | None = None
    ) -> list[Tokens]:
        """`contexts`: what was said before each sentence, as one text; None means no context.

        May be called by several threads at once.
        """
        encoded = self._encode(list(sentences), None if contexts is None else list(contexts))
        if contexts is None:
            special = encoded["special_tokens_mask"]
            return [_whole(*pair) for pair in zip(encoded["input_ids"], special, strict=True)]
        return [
            _second_of_pair(ids, encoded.sequence_ids(row))
            for row, ids in enumerate(encoded["input_ids"])
        ]

    def _encode(self, sentences: list[str], contexts: list[str] | None) -> BatchEncoding:
        """Whole, to be cut by us: the library keeps how it cuts in the tokenizer itself, where one
        thread would change it for another; and it knows no way that cuts the context alone as
        long as the sentence fits."""
        texts = (sentences,) if contexts is None else (contexts, sentences)
        return self.tokenizer(
            *texts, truncation=False, return_special_tokens_mask=True, verbose=False
        )

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tokens | None]:
        said = [clip.utterance for clip in clips if clip.utterance.text]
        if not said:
            return [None] * len(clips)
        contexts = [row.context for row in said] if self.reads_context else None
        tokens = iter(self([row.text for row in said], contexts))
        return [next(tokens) if clip.utterance.text else None for clip in clips]

    def length(self, item: Tokens) -> int:
        return len(item.ids)

    def augment(self, item: Tokens, config: AugmentConfig, generator: torch.Generator) -> Tokens:
        return hide_tokens(item, self, config, generator)

    def collate(self, items: Sequence[Tokens]) -> TokenBatch:
        return TokenBatch.pad(items, self.pad_id)


class TextEncoder(nn.Module):
    """Tokenizer and encoder; the mean over the sentence's tokens of each layer asked for.

    BERT's own pooler was trained for next-sentence prediction and is not used. With context the
    input is a pair, what was said before and the sentence; only the sentence's own tokens
    are pooled, and the oldest context is cut where both do not fit.

    forward: TokenBatch -> float32 [batch, layers, dim]
    """

    batch_size: int | None = BATCH

    def __init__(
        self,
        folder: Path,
        layers: Sequence[int],
        precision: Precision,
        *,
        pretrained: bool,
        reads_context: bool,
    ) -> None:
        super().__init__()
        self.preparation = Tokeniser(folder, reads_context=reads_context)
        dtype = getattr(torch, precision)
        if pretrained:
            self.model, loaded = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_complete(loaded["missing_keys"])
        else:
            config = AutoConfig.from_pretrained(folder, local_files_only=True)
            # Drawn in float32 and rounded: the same weights in every precision.
            self.model = AutoModel.from_config(config).to(dtype)
        self.layers = tuple(layers)

    def save(self, folder: Path) -> None:
        """Writes a Hugging Face folder."""
        self.model.save_pretrained(folder)
        self.preparation.tokenizer.save_pretrained(folder)

    def layer_depths(self) -> dict[str, int]:
        """0 the embeddings, layer i at i + 1, what is above all at the top. A BERT's pooler makes
        nothing that is used here."""
        paths = [path for path, _ in self.named_parameters() if ".pooler." not in path]
        numbered = {
            path: int(found.group(1)) + 1 for path in paths if (found := _LAYER.search(path))
        }
        top = max(numbered.values(), default=0)
        return {path: numbered.get(path, 0 if "embeddings" in path else top) for path in paths}

    def checkpoint_gradients(self) -> None:
        """About a third more time for a fraction of the memory."""
        try:
            self.model.activation_checkpointing_enable()
        except ValueError as error:
            raise UsageError(f"gradient_checkpointing: {error}") from error

    def activation_bytes(self, rows: int, longest: int, value_bytes: int) -> float:
        config = self.model.config
        of_a_layer = (
            _BYTES_PER_HIDDEN * config.hidden_size
            + _BYTES_PER_ATTENTION * longest * config.num_attention_heads
        )
        return float(rows * longest * config.num_hidden_layers * of_a_layer)

    def forward(self, batch: TokenBatch) -> Tensor:
        inputs = {"input_ids": batch.ids, "attention_mask": batch.mask.long()}
        if self.preparation.gives_types:
            inputs["token_type_ids"] = batch.types
        hidden = self.model(**inputs, output_hidden_states=True).hidden_states
        mask = batch.pooled.unsqueeze(-1).float()  # [batch, tokens, 1]
        # A sentence of which no token is left (nothing but marks the tokenizer drops) is zero.
        count = mask.sum(1).clamp_min(1)
        pooled = [(hidden[i].float() * mask).sum(1) / count for i in self.layers]
        return torch.stack(pooled, dim=1)


def hide_tokens(
    tokens: Tokens, tokeniser: Tokeniser, config: AugmentConfig, generator: torch.Generator
) -> Tokens:
    """Some tokens become the mask token; special ones never do."""
    hidden = torch.rand(len(tokens.ids), generator=generator) < config.token_dropout
    if tokeniser.mask_id is None:
        return tokens
    ids = [
        tokeniser.mask_id if hide and token not in tokeniser.special_ids else token
        for token, hide in zip(tokens.ids, hidden.tolist(), strict=True)
    ]
    return replace(tokens, ids=ids)


def _whole(ids: list[int], special: list[int]) -> Tokens:
    """Cut at its end to MAX_TOKENS; `special`: 1 for a token that the tokenizer added."""
    words = [position for position, added in enumerate(special) if not added]
    cut = set(words[len(words) - max(len(ids) - MAX_TOKENS, 0) :])
    ids = [token for position, token in enumerate(ids) if position not in cut]
    return Tokens(ids=ids, types=[0] * len(ids), pooled=[True] * len(ids))


def _second_of_pair(ids: list[int], parts: list[int | None]) -> Tokens:
    """Cut to MAX_TOKENS_WITH_CONTEXT: the oldest of the context, and of the sentence the end, but
    only where it alone is too long. `parts`: 0 in the context, 1 in the sentence, None on special
    tokens."""
    excess = max(len(ids) - MAX_TOKENS_WITH_CONTEXT, 0)
    context = [position for position, part in enumerate(parts) if part == 0]
    sentence = [position for position, part in enumerate(parts) if part == 1]
    too_long = max(excess - len(context), 0)
    cut = {*context[:excess], *sentence[len(sentence) - too_long :]}
    kept = [position for position in range(len(ids)) if position not in cut]
    second = [parts[position] == 1 for position in kept]
    first = second.index(True) if any(second) else len(kept)
    types = [int(position >= first) for position in range(len(kept))]
    return Tokens(ids=[ids[position] for position in kept], types=types, pooled=second)


def _check_complete(missing_keys: Iterable[str]) -> None:
    """What the file lacks, transformers fills with random numbers. Only the pooler may be
    lacking: it is not used."""
    missing = sorted(key for key in missing_keys if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")


def build_text_encoder(
    folder: Path,
    layers: Sequence[int],
    precision: Precision,
    *,
    pretrained: bool,
    reads_context: bool = False,
) -> TextEncoder:
    """From a Hugging Face folder; seeded random weights of its shape where not `pretrained`.

    Raises:
        MismatchError: the folder holds no such model, or not a whole one.
    """
    # Loading draws progress bars and advice over our own output.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            encoder = TextEncoder(
                folder, layers, precision, pretrained=pretrained, reads_context=reads_context
            )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MismatchError(f"{folder}: no usable Hugging Face text model ({reason})") from error
    if not all(torch.isfinite(value).all() for value in encoder.model.parameters()):
        raise MismatchError(f"{folder}: holds weights that are not finite")
    return encoder.eval()
