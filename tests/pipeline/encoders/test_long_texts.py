"""Texts that are longer than an encoder's input, and texts in which there is nothing to read."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.audio import Sounds
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.text import (
    BATCH,
    TextEncoder,
    build_text_encoder,
    hide_tokens,
)
from pipeline.encoders.tokens import (
    MAX_TEXT_TOKENS,
    MAX_TOKENS,
    MAX_TOKENS_WITH_CONTEXT,
    OVERLAP,
    Tokens,
)
from pipeline.encoders.video import Frames
from pipeline.schema import ClipKey, DecodedClip, Utterance

LAYERS = (0, -1)


@pytest.fixture(scope="module")
def encoder(tiny_text_folder: Path) -> TextEncoder:
    return build_text_encoder(tiny_text_folder, LAYERS, "float32", pretrained=True)


@pytest.fixture(scope="module")
def with_context(tiny_text_folder: Path) -> TextEncoder:
    return build_text_encoder(
        tiny_text_folder, LAYERS, "float32", pretrained=True, reads_context=True
    )


def words(number: int, seed: int = 0) -> str:
    """So many tokens, all of them whole words."""
    known = "we you they coffee house street then went home again joy never and is the".split()
    return " ".join(np.random.default_rng(seed).choice(known, number).tolist())


def clip(text: str, *, number: int = 0, context: str = "") -> DecodedClip:
    key = ClipKey("train", 0, number)
    return DecodedClip(utterance=Utterance(key=key, text=text, context=context))


def encode(encoder: TextEncoder, texts: Sequence[str], context: str = "") -> Tensor:
    items = encoder.preparation.prepare([clip(text, context=context) for text in texts])
    with torch.inference_mode():
        return encoder(encoder.preparation.collate(items))  # type: ignore[arg-type]


def windows_of(tokens: Tokens) -> list[Tokens]:
    return [tokens, *tokens.more]


# --------------------------------------------------------------------------------- long texts


@pytest.mark.parametrize("length", [127, 128, 160, 221, 500, 3000, MAX_TEXT_TOKENS])
@pytest.mark.parametrize("context", [None, "Ann: Hi there. Bob:"])
def test_every_token_of_a_long_text_counts_once_with_others_around_it(
    encoder: TextEncoder, length: int, context: str | None
) -> None:
    tokenizer = encoder.preparation.tokenizer
    text = words(length)
    (tokens,) = encoder.preparation([text], None if context is None else [context])
    limit = MAX_TOKENS if context is None else MAX_TOKENS_WITH_CONTEXT
    special = set(tokenizer.all_special_ids)
    found: list[int] = []
    for window in windows_of(tokens):
        assert len(window.ids) == len(window.types) == len(window.pooled) <= limit
        own = [place for place, token in enumerate(window.ids) if token not in special]
        pooled = [place for place in own if window.pooled[place]]
        assert pooled == list(range(pooled[0], pooled[-1] + 1))
        found += [window.ids[place] for place in pooled]
        if window is not tokens:
            assert pooled[0] - own[0] >= OVERLAP // 2
        if window is not windows_of(tokens)[-1]:
            assert own[-1] - pooled[-1] >= OVERLAP // 2
    assert found == tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokens.unread == 0
    # [CLS] and [SEP] of a text without context are pooled as ever, and as one text has them.
    around = [window.pooled[place] for window in windows_of(tokens) for place in (0, -1)]
    assert sum(around) == (2 if context is None else 0)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_a_long_text_is_the_mean_over_all_its_tokens(encoder: TextEncoder, layer: int) -> None:
    text = words(400)
    (tokens,) = encoder.preparation([text])
    pooled = []
    with torch.inference_mode():
        for window in windows_of(tokens):
            output = encoder.model(torch.tensor([window.ids]), output_hidden_states=True)
            pooled.append(output.hidden_states[LAYERS[layer]][0][torch.tensor(window.pooled)])
    assert len(torch.cat(pooled)) == 402
    expected = torch.cat(pooled).mean(0)
    assert torch.allclose(encode(encoder, [text])[0, layer], expected, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("context", ["", "Ann: Hi. Bob:"])
def test_one_word_anywhere_changes_the_features(
    encoder: TextEncoder, with_context: TextEncoder, context: str
) -> None:
    spoken = words(3000).split()
    places = [0, 60, 125, 126, 200, 399, 1000, 2999]
    others = [[*spoken[:at], "terrible", *spoken[at + 1 :]] for at in places]
    reader = with_context if context else encoder
    one, *changed = encode(reader, [" ".join(each) for each in (spoken, *others)], context)
    for at, two in zip(places, changed, strict=True):
        assert (one - two).abs().amax(dim=1).min() > 1e-6, at


@pytest.mark.parametrize("context", ["", "Ann: Hi. Bob:"])
def test_texts_within_the_limit_are_what_they_were_to_the_bit_beside_long_ones_too(
    encoder: TextEncoder, with_context: TextEncoder, context: str
) -> None:
    """What they were: the mean over the pooled tokens of one pass over the batch, in which a long
    text is its first window."""
    reader = with_context if context else encoder
    texts = [words(number, number) for number in (3, 90, 126, 700, 12, 300)]
    items = reader.preparation.prepare([clip(text, context=context) for text in texts])
    batch = reader.preparation.collate(
        [Tokens(item.ids, item.types, item.pooled) for item in items if item is not None]
    )
    with torch.inference_mode():
        hidden = reader.model(
            input_ids=batch.ids,
            attention_mask=batch.mask.long(),
            token_type_ids=batch.types,
            output_hidden_states=True,
        ).hidden_states
    mask = batch.pooled.unsqueeze(-1).float()
    before = torch.stack([(hidden[i] * mask).sum(1) / mask.sum(1) for i in LAYERS], dim=1)
    now = encode(reader, texts, context)
    short = [0, 1, 2, 4, *([5] if context and len(items[5].more) == 0 else [])]  # type: ignore[union-attr]
    assert torch.equal(now[short], before[short])
    assert not torch.allclose(now[3], before[3])


def test_the_oldest_of_the_context_goes_before_any_word_of_the_sentence(
    with_context: TextEncoder,
) -> None:
    (tokens,) = with_context.preparation([words(300)], ["oldest " * 100])
    text = with_context.preparation.tokenizer.decode(tokens.ids)
    assert "oldest" not in text
    assert len(tokens.more) == 1


@pytest.mark.parametrize("context", ["", "Ann: Hi. Bob:"])
def test_beyond_the_budget_the_end_is_left_out_and_recorded(
    encoder: TextEncoder, with_context: TextEncoder, context: str
) -> None:
    reader = (with_context if context else encoder).preparation
    spoken = words(MAX_TEXT_TOKENS + 5).split()
    whole, cut = reader.prepare(
        [
            clip(" ".join(spoken[:MAX_TEXT_TOKENS]), context=context),
            clip(" ".join(spoken), context=context),
        ]
    )
    assert whole is not None
    assert cut is not None
    assert reader.shortfall(whole) is None
    told = reader.shortfall(cut)
    assert told is not None
    assert told.code == "text_cut"
    assert told.message == "of 8,197 tokens only the first 8,192 are read"
    assert [window.ids for window in windows_of(cut)] == [w.ids for w in windows_of(whole)]


@pytest.fixture
def rows_at_once(encoder: TextEncoder) -> Iterator[list[int]]:
    """How many windows each pass through the network has."""
    seen: list[int] = []
    hook = encoder.model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    yield seen
    hook.remove()


def test_however_long_texts_are_only_so_many_windows_are_in_memory(
    encoder: TextEncoder, rows_at_once: list[int]
) -> None:
    encode(encoder, [words(6000), "Hi", words(2000)])
    assert rows_at_once[0] == 3
    assert max(rows_at_once) == BATCH


def test_fine_tuning_sends_gradients_through_all_windows_a_few_at_a_time(
    encoder: TextEncoder, rows_at_once: list[int]
) -> None:
    texts = [words(2000), "Hi", words(130)]
    batch = encoder.preparation.collate(encoder.preparation(texts))
    weight = encoder.model.embeddings.word_embeddings.weight
    features = encoder(batch)
    (found,) = torch.autograd.grad(features.square().sum(), weight)
    passes = list(rows_at_once)
    assert max(passes) == BATCH
    # All but the first are made once more in the backward pass, and kept by none before it.
    assert len(passes) == 2 * (len(set(passes)) and -(-(len(batch.ids) - 3) // BATCH)) + 1
    whole = encoder._add_up(batch, 0, len(batch.ids))
    owner = torch.tensor([0, 1, 2, *[0] * batch.following[0], *[2] * batch.following[2]])
    sums = torch.zeros(3, *whole[0].shape[1:]).index_add(0, owner, whole[0])
    counts = torch.zeros(3, 1).index_add(0, owner, whole[1])
    expected = sums / counts.unsqueeze(1)
    assert torch.allclose(features, expected, atol=1e-5)
    (wanted,) = torch.autograd.grad(expected.square().sum(), weight)
    assert torch.allclose(found, wanted, atol=1e-4)


def test_the_estimate_of_memory_knows_of_windows_that_may_follow(encoder: TextEncoder) -> None:
    short, long = (encoder.activation_bytes(8, longest, 4) for longest in (127, 128))
    assert long > 2.9 * short


def test_augmentation_hides_words_in_every_window(encoder: TextEncoder) -> None:
    (tokens,) = encoder.preparation([words(300)])
    every = AugmentConfig(token_dropout=1.0)
    hidden = hide_tokens(tokens, encoder.preparation, every, torch.Generator().manual_seed(0))
    assert len(hidden.more) == len(tokens.more) > 1
    for window in windows_of(hidden):
        assert set(window.ids[1:-1]) == {encoder.preparation.mask_id}


# --------------------------------------------------------------------------- nothing to read

NOTHING = {
    "zero-width spaces": "\u200b\u200b",
    "a byte-order mark": "\ufeff",
    "soft hyphens": "\u00ad \u00ad",
    "controls": "\x01\x02\x1f\x7f",
    "direction marks": "\u200e\u202a\u2066",
    "variation selectors": "\ufe0f\ufe0e",
    "a combining mark": "\u0301",
    "a joiner": "\u200d",
    "tags": "\U000e0001\U000e0041",
    "a Hangul filler": "\u3164",
    "an empty Braille cell": "\u2800",
    "no-break spaces": "\u00a0\u202f\u2007",
    "white space": " \t\n\u2003\u3000",
    "an unknown emoji": "\U0001fae8",
    "a script without a word": "\ua000\ua001",
    "special tokens by name": "[SEP] [PAD]",
}


@pytest.fixture(scope="module")
def text_alone(tiny_text_folder: Path) -> dict[int, Encoders]:
    """Encoders of text by the number of utterances that they see before it."""
    requests = (EncoderRequest(text=str(tiny_text_folder), context=before) for before in (0, 1))
    chosen = (choose_encoder("text", request, "float32") for request in requests)
    return {before: Encoders([choice], None) for before, choice in enumerate(chosen)}


@pytest.mark.parametrize("what", NOTHING)
@pytest.mark.parametrize("context", ["", "Ann: We won! Bob:"])
def test_a_text_with_nothing_to_read_is_absent_and_recorded_with_context_as_well(
    text_alone: dict[int, Encoders], what: str, context: str
) -> None:
    """What was said before is no substitute for what is said."""
    encoders = text_alone[1 if context else 0]
    clips = [clip(text, number=i, context=context) for i, text in enumerate([NOTHING[what], "Hi"])]
    nothing, something = encode_clips(encoders, clips)
    assert nothing.raw == {}
    (failure,) = nothing.failures
    assert (failure.modality, failure.stage, failure.code) == (
        "text",
        "encode",
        "nothing_to_encode",
    )
    assert failure.lost
    assert set(something.raw) == {"text"}
    assert something.failures == ()


@pytest.mark.parametrize("text", ["?", "...", "Hi \U0001fae8", "\u200bHi", "1", "\u00d6"])
def test_whatever_the_encoder_knows_is_read(encoder: TextEncoder, text: str) -> None:
    assert encoder.preparation.prepare([clip(text)]) != [None]


def test_a_row_without_a_text_has_none_to_lose(text_alone: dict[int, Encoders]) -> None:
    (features,) = encode_clips(text_alone[0], [clip("")])
    assert (features.raw, features.failures) == ({}, ())


def test_a_tokenizer_of_bytes_finds_nothing_in_unseen_characters(
    encoder: TextEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a token for every byte, so tokens alone would not tell."""
    monkeypatch.setattr("pipeline.encoders.tokens._is_read", lambda tokens, special_ids: True)
    unseen = itertools.islice(NOTHING.values(), 13)
    assert encoder.preparation.prepare([clip(text) for text in unseen]) == [None] * 13


def test_media_without_a_frame_or_a_sample_are_absent() -> None:
    empty = DecodedClip(
        utterance=Utterance(key=ClipKey("dev", 0, 0), text=""),
        frames=np.zeros((0, 8, 8, 3), np.uint8),
        waveform=np.zeros(0, np.float32),
    )
    assert Frames().prepare([empty]) == [None]
    assert Sounds(min_samples=1).prepare([empty]) == [None]
    assert empty.has("video")
    assert empty.has("audio")
