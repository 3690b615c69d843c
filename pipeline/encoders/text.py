"""Hugging Face encoders: sentences to one mean-pooled vector per layer."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoTokenizer

from pipeline.errors import MismatchError
from pipeline.recipe import Precision

MAX_TOKENS = 128  # MELD's longest utterance has 90-odd; nothing is padded up to this


class TextEncoder(nn.Module):
    """Tokenizer and encoder; the mean over real tokens of each layer asked for.

    BERT's own pooler was trained for next-sentence prediction and is not used.

    forward: list of [batch] sentences -> float32 [batch, layers, dim]
    """

    def __init__(
        self, folder: Path, layers: Sequence[int], precision: Precision, *, pretrained: bool
    ) -> None:
        super().__init__()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        dtype = getattr(torch, precision)
        # Without its files a tokenizer is built all the same, and knows no word.
        if len(self.tokenizer) <= len(self.tokenizer.all_special_ids):
            raise ValueError("the tokenizer has no vocabulary; are its files there?")
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
            self.model = AutoModel.from_config(config, dtype=dtype)
        self.layers = tuple(layers)

    def count_tokens(self, sentences: Sequence[str]) -> list[int]:
        encoded = self.tokenizer(list(sentences), truncation=True, max_length=MAX_TOKENS)
        return [len(ids) for ids in encoded["input_ids"]]

    def forward(self, sentences: Sequence[str]) -> Tensor:
        tokens = self.tokenizer(
            list(sentences),
            padding=True,
            truncation=True,
            max_length=MAX_TOKENS,
            return_tensors="pt",
        ).to(self.model.device)
        hidden = self.model(**tokens, output_hidden_states=True).hidden_states
        mask = tokens["attention_mask"].unsqueeze(-1).float()  # [batch, tokens, 1]
        pooled = [(hidden[i].float() * mask).sum(1) / mask.sum(1) for i in self.layers]
        return torch.stack(pooled, dim=1)


def _check_complete(missing_keys: Iterable[str]) -> None:
    """What the file lacks, transformers fills with random numbers. Only the pooler may be
    lacking: it is not used."""
    missing = sorted(key for key in missing_keys if not key.startswith("pooler."))
    if missing:
        raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them")


def build_text_encoder(
    folder: Path, layers: Sequence[int], precision: Precision, *, pretrained: bool
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
            encoder = TextEncoder(folder, layers, precision, pretrained=pretrained)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0]
        raise MismatchError(f"{folder}: no usable Hugging Face text model ({reason})") from error
    if not all(torch.isfinite(value).all() for value in encoder.model.parameters()):
        raise MismatchError(f"{folder}: holds weights that are not finite")
    return encoder.eval()
