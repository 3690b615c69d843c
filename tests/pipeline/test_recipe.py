"""The fingerprint stands for everything that changes values, and for nothing else."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from pipeline.recipe import DecodeConfig, EncoderSpec, FeatureRecipe, FrameView
from pipeline.schema import Modality


def spec(modality: Modality = "text", **changes: Any) -> EncoderSpec:
    values: dict[str, Any] = {
        "modality": modality,
        "name": f"{modality}-net",
        "weights": "pretrained",
        "weights_hash": "sha256:00",
        "pooling": "mean",
        "precision": "float32",
        "layers": (-1,),
    }
    return EncoderSpec(**{**values, **changes})


def recipe(*encoders: EncoderSpec, **changes: Any) -> FeatureRecipe:
    values = {"encoders": encoders or (spec("text"), spec("video")), "decode": DecodeConfig()}
    return FeatureRecipe(**{**values, **changes})


DECODE_CHANGES = {
    "num_frames": 8,
    "frame_height": 112,
    "frame_width": 112,
    "sample_rate_hz": 8000,
    "channel": "downmix",
    "max_duration_s": 15.0,
    "test_clips": "legacy",
    "frame_fit": "pad",
    "more_views": (FrameView(height=288, width=512, fit="pad"),),
}
DECODE_WORDS = {"more_views": "none != 288x512 (pad)"}
SPEC_CHANGES = {
    "name": "other",
    "weights": "random",
    "weights_hash": "sha256:01",
    "pooling": "max",
    "precision": "bfloat16",
    "layers": (0, -1),
    "context": 3,
    "dialogue": "past",
    "started_from": "pretrained",
}


def test_no_field_is_left_out_of_these_tests() -> None:
    assert set(DECODE_CHANGES) == {field.name for field in dataclasses.fields(DecodeConfig)}
    fields = {field.name for field in dataclasses.fields(EncoderSpec)}
    assert set(SPEC_CHANGES) == fields - {"modality"}


@pytest.mark.parametrize("field", DECODE_CHANGES)
def test_every_decode_setting_changes_the_fingerprint_and_is_named(field: str) -> None:
    config = DecodeConfig(**{field: DECODE_CHANGES[field]})  # type: ignore[arg-type]
    mine, theirs = recipe(), recipe(decode=config)
    assert mine.fingerprint != theirs.fingerprint
    [difference] = mine.differences(theirs)
    changed = f"{getattr(DecodeConfig(), field)} != {DECODE_CHANGES[field]}"
    assert difference == f"decode.{field}: {DECODE_WORDS.get(field, changed)}"


@pytest.mark.parametrize("field", SPEC_CHANGES)
def test_every_encoder_field_changes_the_fingerprint_and_is_named(field: str) -> None:
    mine = recipe(spec("text"), spec("audio"))
    theirs = recipe(spec("text", **{field: SPEC_CHANGES[field]}), spec("audio"))
    assert mine.fingerprint != theirs.fingerprint
    [difference] = mine.differences(theirs)
    assert difference.startswith(f"text.{field}: ")
    assert str(SPEC_CHANGES[field]) in difference


def test_revision_modalities_and_decoding_at_all_change_the_fingerprint() -> None:
    others = [
        recipe(revision=0),
        recipe(decode=None),
        recipe(spec("text")),
        recipe(spec("text"), spec("audio")),
        recipe(spec("text"), spec("video"), spec("audio")),
    ]
    assert len({recipe().fingerprint, *(other.fingerprint for other in others)}) == 6
    for other in others:
        assert recipe().differences(other)


def test_equal_recipes_have_one_fingerprint_and_no_difference() -> None:
    assert recipe() == recipe()
    assert recipe().fingerprint == recipe().fingerprint
    assert recipe().differences(recipe()) == []
    assert len(recipe().fingerprint) == 64


def test_the_order_in_which_encoders_were_asked_for_does_not_matter() -> None:
    there, back = recipe(spec("text"), spec("audio")), recipe(spec("audio"), spec("text"))
    assert there == back
    assert there.fingerprint == back.fingerprint
    assert back.modalities == ("text", "audio")


def test_a_whole_number_of_seconds_is_the_same_as_its_float() -> None:
    whole, real = DecodeConfig(max_duration_s=20), DecodeConfig(max_duration_s=20.0)
    assert whole == real
    assert recipe(decode=whole).fingerprint == recipe(decode=real).fingerprint


@pytest.mark.parametrize("decode", [None, DecodeConfig(), DecodeConfig(channel="downmix")])
def test_a_recipe_survives_json(decode: DecodeConfig | None) -> None:
    before = recipe(spec("text", layers=(0, 3, -1)), spec("video"), decode=decode)
    after = FeatureRecipe.from_json(before.to_json())
    assert after == before
    assert after.fingerprint == before.fingerprint
    assert after.to_json() == before.to_json()


def test_the_order_of_keys_in_json_does_not_matter() -> None:
    values = json.loads(recipe().to_json())
    backwards = _backwards(values)
    assert list(backwards) != list(values)
    assert FeatureRecipe.from_json(json.dumps(backwards, indent=2)) == recipe()


def _backwards(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _backwards(value[key]) for key in reversed(value)}
    return [_backwards(each) for each in value] if isinstance(value, list) else value


@pytest.mark.parametrize(
    "text",
    ["", "{", "null", "[]", "7", "{}", '{"encoders": 5}', '{"encoders": [], "decode": null}']
    + [recipe().to_json().replace('"num_frames":16', f'"num_frames":{bad}') for bad in ("0", "-1")]
    + [recipe().to_json().replace('"num_frames"', '"frames"')]
    + [recipe().to_json().replace('"layers":[-1],', "")],
)
def test_what_is_no_recipe_is_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        FeatureRecipe.from_json(text)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_frames": 0},
        {"frame_height": 0},
        {"frame_width": -1},
        {"sample_rate_hz": 0},
        {"max_duration_s": 0},
        {"max_duration_s": 601},
        {"max_duration_s": float("nan")},
        {"max_duration_s": float("inf")},
    ],
)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        DecodeConfig(**wrong)


def test_one_encoder_per_modality() -> None:
    with pytest.raises(ValueError, match="one encoder per modality"):
        recipe(spec("text"), spec("text", name="other"))
    with pytest.raises(ValueError, match="one encoder per modality"):
        FeatureRecipe(encoders=(), decode=None)


def test_random_weights_are_reported() -> None:
    mixed = recipe(spec("text"), spec("video", weights="random"), spec("audio", weights="none"))
    assert mixed.random_modalities == ("video",)


def test_random_weights_that_were_trained_are_still_reported() -> None:
    tuned = spec("video", weights="finetuned", started_from="random")
    assert recipe(spec("text"), tuned).random_modalities == ("video",)
    assert recipe(spec("text"), spec("video", weights="finetuned")).random_modalities == ()


def test_a_recipe_that_is_older_than_the_fit_of_frames_means_what_it_did() -> None:
    """Its fingerprint, too: nothing has to be extracted again."""
    now = recipe()
    values = json.loads(now.to_json())
    assert "frame_fit" not in values["decode"]
    assert FeatureRecipe.from_json(now.to_json()) == now
    padded = recipe(decode=DecodeConfig(frame_fit="pad"))
    assert FeatureRecipe.from_json(padded.to_json()) == padded
    assert padded.differences(now) == ["decode.frame_fit: pad != stretch"]


def test_several_views_survive_json_and_one_leaves_recipes_as_they_were() -> None:
    several = recipe(decode=DecodeConfig(more_views=(FrameView(height=64, width=48, fit="crop"),)))
    assert FeatureRecipe.from_json(several.to_json()) == several
    assert "more_views" not in recipe().to_json()


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="frame_fit must be one of"):
        DecodeConfig(frame_fit="squeeze")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="frame_width must be at least 1"):
        FrameView(height=1, width=0, fit="pad")


def test_a_view_that_is_there_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="each view of a frame once"):
        DecodeConfig(more_views=DecodeConfig().views)


def test_a_view_that_was_not_decoded_cannot_be_taken() -> None:
    decode = DecodeConfig(num_frames=1, more_views=(FrameView(height=2, width=2, fit="pad"),))
    frames = np.zeros((1, *decode.frame_shape), np.uint8)
    with pytest.raises(ValueError, match="not in tuple"):
        decode.take_view(frames, FrameView(height=3, width=2, fit="pad"))
