"""Encoders by name: from a choice to the network itself. Another backbone is one entry here."""

from collections.abc import Callable

from torch import nn

from pipeline.encoders.choice import EncoderChoice
from pipeline.recipe import DecodeConfig
from pipeline.schema import Modality


def build_encoder(choice: EncoderChoice, decode: DecodeConfig | None) -> nn.Module:
    """The encoder in eval mode (frozen BatchNorm, no dropout), on the CPU.

    Raises:
        MismatchError: the files that were found are not this encoder's weights.
    """
    return _BUILDERS[choice.spec.modality](choice, decode)


# Each family's library takes a second to import: only those that are asked for are.


def _build_text(choice: EncoderChoice, decode: DecodeConfig | None) -> nn.Module:
    from pipeline.encoders import text

    assert choice.path is not None
    spec = choice.spec
    return text.build_text_encoder(
        choice.path, spec.layers, spec.precision, pretrained=spec.weights != "random"
    )


def _build_video(choice: EncoderChoice, decode: DecodeConfig | None) -> nn.Module:
    from pipeline.encoders import video

    return video.build_video_encoder(choice.spec.name, choice.path, choice.spec.precision)


def _build_audio(choice: EncoderChoice, decode: DecodeConfig | None) -> nn.Module:
    from pipeline.encoders import audio

    assert decode is not None
    return audio.build_audio_encoder(decode.sample_rate_hz, choice.path)


_BUILDERS: dict[Modality, Callable[[EncoderChoice, DecodeConfig | None], nn.Module]] = {
    "text": _build_text,
    "video": _build_video,
    "audio": _build_audio,
}
