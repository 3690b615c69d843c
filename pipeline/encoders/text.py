"""Hugging Face text encoders: sentences -> one mean-pooled vector per layer.

`tokens.py` tells how a text becomes what the encoder reads.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, AutoModel, AutoTokenizer, BatchEncoding

from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.encoder import GraphSource
from pipeline.encoders.pruning import PrunableLayer, check_units, prune_layers, units_of
from pipeline.encoders.tokens import (
    MAX_TOKENS,
    MAX_TOKENS_WITH_CONTEXT,
    OVERLAP,
    PaddedTokens,
    Tokens,
    prepare_texts,
    take_second_of_pair,
    take_whole,
    tell_unread,
)
from pipeline.errors import ClipError, MismatchError, UsageError
from pipeline.recipe import DecodeConfig, Precision
from pipeline.schema import DecodedClip

# On a CPU batches of 1 to 8 are equally fast; a GPU is still busy with 16.
BATCH = 16

# Where Hugging Face models number their layers: bert.encoder.layer.3., layers.3., h.3., block.3.
_LAYER = re.compile(r"(?:^|\.)(?:layer|layers|h|block|blocks)\.(\d+)\.")

# The parts of a layer that is built as BERT's is, and what `config.json` says of a pruned one.
_ATTENTION = "attention.self"
_BERT_LAYER = (
    _ATTENTION,
    *(f"attention.self.{name}" for name in ("query", "key", "value")),
    *("attention.output.dense", "intermediate.dense", "output.dense"),
)
_UNITS = "pruned_units"

# What a backward pass keeps, measured on the CPU (LOG.md); autocast keeps much of a transformer in
# float32, so both precisions are alike.
_BYTES_PER_HIDDEN = 100  # of each token and layer
_BYTES_PER_ATTENTION = 16  # of each pair of tokens, head and layer


@dataclass(frozen=True)
class TokenBatch:
    """`PaddedTokens` as tensors: ids, types int64, mask, pooled bool, [windows, tokens]."""

    ids: Tensor
    types: Tensor
    mask: Tensor
    pooled: Tensor
    following: tuple[int, ...]

    @classmethod
    def pad(cls, sentences: Sequence[Tokens], pad_id: int) -> "TokenBatch":
        padded = PaddedTokens.pad(sentences, pad_id)
        return cls(
            ids=torch.from_numpy(padded.ids),
            types=torch.from_numpy(padded.types),
            mask=torch.from_numpy(padded.mask),
            pooled=torch.from_numpy(padded.pooled),
            following=padded.following,
        )

    def to(self, device: torch.device) -> "TokenBatch":
        return TokenBatch(
            ids=self.ids.to(device),
            types=self.types.to(device),
            mask=self.mask.to(device),
            pooled=self.pooled.to(device),
            following=self.following,
        )


class Tokeniser:
    """A Hugging Face tokenizer, and which tokens of its output are the sentence's own.

    reads_context: whether what was said before is read with each sentence

    Raises what transformers raises where the folder holds none, ValueError for an empty one.
    """

    most_rows: int | None = None

    def __init__(self, folder: Path, *, reads_context: bool = False) -> None:
        self.reads_context = reads_context
        self.max_tokens = MAX_TOKENS_WITH_CONTEXT if reads_context else MAX_TOKENS
        self.tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
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
            return [take_whole(*pair) for pair in zip(encoded["input_ids"], special, strict=True)]
        return [
            take_second_of_pair(ids, encoded.sequence_ids(row))
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
        return prepare_texts(
            clips, self, reads_context=self.reads_context, special_ids=self.special_ids
        )

    def shortfall(self, item: Tokens) -> ClipError | None:
        return tell_unread(item.unread)

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
    are pooled, and the oldest context is left out where both do not fit. A sentence that fills the
    input alone has no context beside it, and a longer one is read in windows.

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
        self.preparation: Any = Tokeniser(folder, reads_context=reads_context)
        dtype = getattr(torch, precision)
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        units = getattr(config, _UNITS, None)
        if pretrained and units is None:
            self.model, loaded = AutoModel.from_pretrained(
                folder,
                local_files_only=True,
                trust_remote_code=False,
                dtype=dtype,
                use_safetensors=True,
                output_loading_info=True,
            )
            _check_complete(loaded["missing_keys"])
        else:
            # Drawn in float32 and rounded: the same weights in every precision.
            self.model = AutoModel.from_config(config).to(dtype)
            if units is not None:
                # A pooler is not used, and what is not used was never pruned or trained.
                self.prune_to([range(number) for number in check_units(self.prunable(), units)])
            if pretrained:
                self.model.load_state_dict(load_file(folder / "model.safetensors"))
        self.layers = tuple(layers)

    @property
    def dim(self) -> int:
        return int(self.model.config.hidden_size)

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

    def prunable(self) -> list[PrunableLayer]:
        """Attention heads and feed-forward neurons of networks that are built as BERT is (RoBERTa,
        ELECTRA, CamemBERT, XLM-R, ...); none of others."""
        modules = dict(self.model.named_modules())
        layers = []
        for path in modules:
            parts = {each: modules.get(f"{path}.{each}") for each in _BERT_LAYER}
            if any(part is None for part in parts.values()):
                continue
            query, key, value, read_heads, widen, narrow = (
                part for name, part in parts.items() if part is not None and name != _ATTENTION
            )
            layers += [
                PrunableLayer(
                    name=f"{path}.attention",
                    producers=(query, key, value),
                    consumers=(read_heads,),
                    unit=int(cast(Any, parts[_ATTENTION]).attention_head_size),
                ),
                PrunableLayer(name=f"{path}.intermediate", producers=(widen,), consumers=(narrow,)),
            ]
        return layers

    def prune_to(self, kept: Sequence[Sequence[int]]) -> None:
        """`config.json` then says how many units each layer has: transformers by itself knows
        networks whose heads were not pruned."""
        layers = self.prunable()
        prune_layers(layers, kept)
        pruned = self.prunable()
        setattr(self.model.config, _UNITS, units_of(pruned))
        for layer in pruned:
            attention = self.model.get_submodule(layer.name)
            inner = getattr(attention, "self", None)
            if inner is None:
                self.model.config.intermediate_size = layer.num_units
            else:
                inner.num_attention_heads = layer.num_units
                inner.all_head_size = layer.num_units * layer.unit

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
        # Beside the first windows, one part of those that may follow.
        inputs = rows + (BATCH if longest >= self.preparation.max_tokens else 0)
        return float(inputs * longest * config.num_hidden_layers * of_a_layer)

    def graph_source(self, decode: DecodeConfig | None) -> GraphSource:
        """The graph reads windows of tokens; who runs it puts those of a sentence together."""
        tokeniser = self.preparation
        backend = getattr(tokeniser.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise UsageError("this text encoder's tokenizer has no tokenizer.json; no graph of it")
        batch = tokeniser.collate(tokeniser(["one", "two words"], self._no_context(2)))
        inputs = {"ids": batch.ids, "mask": batch.mask, "pooled": batch.pooled}
        if tokeniser.gives_types:
            inputs["types"] = batch.types
        return GraphSource(
            net=_WindowSums(self),
            inputs=inputs,
            lengths={name: {0: "windows", 1: "tokens"} for name in inputs},
            outputs=("sum", "count"),
            reading={
                "kind": "tokens",
                "max_tokens": tokeniser.max_tokens,
                "overlap": OVERLAP,
                "reads_context": tokeniser.reads_context,
                "pad_id": tokeniser.pad_id,
                "special_ids": sorted(tokeniser.special_ids),
                "gives_types": tokeniser.gives_types,
                "batch_size": BATCH,
            },
            files={"tokenizer.json": backend.to_str()},
        )

    def _no_context(self, sentences: int) -> list[str] | None:
        return [""] * sentences if self.preparation.reads_context else None

    def forward(self, batch: TokenBatch) -> Tensor:
        num_sentences = len(batch.following)
        total, count = self._add_up(batch, 0, num_sentences)
        parts = [
            self._add_up_again(batch, start, start + BATCH)
            for start in range(num_sentences, len(batch.ids), BATCH)
        ]
        if parts:
            total, count = (
                _add_following(first, torch.cat(values), batch.following)
                for first, values in zip((total, count), zip(*parts, strict=True), strict=True)
            )
        return total / count.unsqueeze(1)

    def _add_up(self, batch: TokenBatch, start: int, end: int | None) -> tuple[Tensor, Tensor]:
        """Over the pooled tokens of these windows: the sum of each, float32 [windows, layers, dim],
        and how many there are, float32 [windows, 1]."""
        inputs = {
            "input_ids": batch.ids[start:end],
            "attention_mask": batch.mask[start:end].long(),
        }
        if self.preparation.gives_types:
            inputs["token_type_ids"] = batch.types[start:end]
        hidden = self.model(**inputs, output_hidden_states=True).hidden_states
        mask = batch.pooled[start:end].unsqueeze(-1).float()  # [windows, tokens, 1]
        sums = [(hidden[i].float() * mask).sum(1) for i in self.layers]
        return torch.stack(sums, dim=1), mask.sum(1)

    def _add_up_again(self, batch: TokenBatch, start: int, end: int) -> tuple[Tensor, Tensor]:
        """The same, computed once more in a backward pass: of all windows that follow, only so many
        at once have their intermediate values in memory."""
        if not torch.is_grad_enabled():
            return self._add_up(batch, start, end)
        summed, counted = checkpoint(self._add_up, batch, start, end, use_reentrant=False)
        return summed, counted


class _WindowSums(nn.Module):
    """What a graph computes of a batch: `_add_up` of all its windows."""

    def __init__(self, encoder: TextEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(
        self, ids: Tensor, mask: Tensor, pooled: Tensor, types: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        batch = TokenBatch(ids, ids if types is None else types, mask, pooled, ())
        return self.encoder._add_up(batch, 0, None)


def _add_following(first: Tensor, others: Tensor, following: Sequence[int]) -> Tensor:
    """[sentences, ...] and [windows that follow, ...] -> [sentences, ...].

    Not by `index_add`: on a GPU its order of addition, and so the last bit, is another each time.
    """
    pairs = zip(first, others.split(list(following)), strict=True)
    return torch.stack([one + more.sum(0) if len(more) else one for one, more in pairs])


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
    more = tuple(hide_tokens(window, tokeniser, config, generator) for window in tokens.more)
    return replace(tokens, ids=ids, more=more)


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
    build: Callable[..., TextEncoder] | None = None,
) -> TextEncoder:
    """From a Hugging Face folder; seeded random weights of its shape where not `pretrained`.

    build: another kind of text encoder than `TextEncoder`

    Raises:
        MismatchError: the folder holds no such model, or not a whole one.
    """
    # Loading draws progress bars and advice over our own output.
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            make = build or partial(TextEncoder, reads_context=reads_context)
            encoder = make(folder, layers, precision, pretrained=pretrained)
    except (
        *(OSError, ValueError, KeyError, RuntimeError, SafetensorError),
        *(TypeError, ZeroDivisionError, StrictDataclassError),  # of a config that cannot be
    ) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise MismatchError(f"{folder}: no usable Hugging Face text model ({reason})") from error
    if not all(torch.isfinite(value).all() for value in encoder.model.parameters()):
        raise MismatchError(f"{folder}: holds weights that are not finite")
    return encoder.eval()
