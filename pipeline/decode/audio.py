"""Packets to a mono waveform: the channel that carries the dialogue, at the recipe's rate."""

from collections.abc import Sequence

import av
import numpy as np
from av.error import FFmpegError
from numpy.typing import NDArray

from pipeline.decode.container import MEDIA_ERRORS, reason
from pipeline.decode.ledger import Ledger
from pipeline.decode.packets import Packets
from pipeline.errors import ClipError
from pipeline.recipe import DecodeConfig


def try_audio(packets: Packets, config: DecodeConfig, ledger: Ledger) -> NDArray[np.float32] | None:
    """The waveform, float32 [samples]; None, and the reason in the ledger, where there is none."""
    if packets.audio is None:
        return None
    try:
        waveform, num_bad = _decode_audio(packets.audio, config)
    except MEDIA_ERRORS as error:
        ledger.add("audio", ClipError("audio_decode", reason(error)), lost=True)
        return None
    if len(waveform) == 0:
        nothing = ClipError("no_samples", "the audio stream holds no sound")
        ledger.add("audio", nothing, lost=True)
        return None
    if num_bad:
        message = f"{num_bad} of {len(packets.audio)} audio packets could not be decoded"
        ledger.add("audio", ClipError("bad_packets", message), lost=False)
    return waveform


def _decode_audio(
    packets: list[av.Packet], config: DecodeConfig
) -> tuple[NDArray[np.float32], int]:
    """float32 [samples], mono at the config's rate; and how many packets were broken."""
    if not packets:
        return np.zeros(0, dtype=np.float32), 0
    context = packets[0].stream.codec_context
    context.thread_count = 1
    planar: av.AudioResampler | None = None
    mono: list[NDArray[np.float32]] = []
    num_bad = num_samples = 0
    for packet in [*packets, None]:
        try:
            for frame in context.decode(packet):
                # Only the sample format changes here: channels and rate are ours to choose.
                planar = planar or av.AudioResampler("fltp", frame.layout, frame.rate)
                for part in planar.resample(frame):
                    mono.append(mix_to_mono(part.to_ndarray(), _channel_names(part), config))
                    num_samples += len(mono[-1])
        except (FFmpegError, ValueError):  # ValueError: not the layout or rate it began with
            num_bad += 1
        if planar is not None and num_samples > config.max_duration_s * planar.rate:
            break  # however few seconds the packets' times claim
    if planar is None or not mono:
        return np.zeros(0, dtype=np.float32), num_bad
    waveform = np.concatenate(mono)[: round(config.max_duration_s * planar.rate)]
    return _resample(waveform, planar.rate, config.sample_rate_hz), num_bad


def _channel_names(frame: av.AudioFrame) -> list[str]:
    return [channel.name for channel in frame.layout.channels]


def mix_to_mono(
    samples: NDArray[np.float32], channel_names: Sequence[str], config: DecodeConfig
) -> NDArray[np.float32]:
    """[channels, samples] to [samples]: the front centre of surround sound (the dialogue), or
    the mean of all channels where there is no centre or `downmix` is asked for."""
    if config.channel == "front_centre" and len(channel_names) > 2 and "FC" in channel_names:
        return samples[channel_names.index("FC")]
    return samples.mean(axis=0, dtype=np.float32)


def _resample(waveform: NDArray[np.float32], from_hz: int, to_hz: int) -> NDArray[np.float32]:
    if from_hz == to_hz:
        return np.clip(waveform, -1.0, 1.0)
    frame = av.AudioFrame.from_ndarray(waveform[None, :], format="fltp", layout="mono")
    frame.sample_rate = from_hz
    resampler = av.AudioResampler("fltp", "mono", to_hz)
    parts = [*resampler.resample(frame), *resampler.resample(None)]
    return np.clip(np.concatenate([part.to_ndarray()[0] for part in parts]), -1.0, 1.0)
