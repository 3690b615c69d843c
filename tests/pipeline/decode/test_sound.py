"""Sound of any number of channels, sample formats, codecs and tracks to one waveform.

Each channel has a pitch of its own, so that the waveform tells which were taken.
"""

import subprocess
import sys
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.plane import AudioPlane
from numpy.typing import NDArray

from pipeline.decode.channels import MAX_CHANNELS, read_part
from pipeline.decode.spans import decode_media, decode_spans
from pipeline.recipe import DecodeConfig
from pipeline.schema import DecodedMedia, MediaSpan
from tests.conftest import ROOT
from tests.media import pitch_of, write_clip

RATE_HZ = 16_000  # the recipe's: nothing is resampled, so that samples can be compared
Sound = NDArray[np.float32]


def sine(pitch_hz: float, seconds: float = 1.0, level: float = 0.3) -> Sound:
    times_s = np.arange(round(RATE_HZ * seconds)) / RATE_HZ
    return (level * np.sin(2 * np.pi * pitch_hz * times_s)).astype(np.float32)


def voices(num: int, level: float = 0.3) -> Sound:
    """[channels, samples] of a second, each with its own pitch."""
    return np.stack([sine(300 + 100 * channel, level=level) for channel in range(num)])


def silence(num_samples: int = RATE_HZ) -> Sound:
    return np.zeros(num_samples, np.float32)


def noise(level: float, seed: int = 0, num_samples: int = RATE_HZ) -> Sound:
    return np.random.default_rng(seed).normal(0, level, num_samples).astype(np.float32)


def write_sound(
    path: Path,
    *tracks: Sound,
    layout: str,
    codec: str = "pcm_f32le",
    rate_hz: int = RATE_HZ,
    container_format: str | None = None,
) -> Path:
    """Each track is float32 [channels, samples]. Its frames are packed: PyAV cannot make planar
    ones of eight channels either."""
    with av.open(str(path), "w", format=container_format) as container:
        streams = [container.add_stream(codec, rate=rate_hz, layout=layout) for _ in tracks]
        packets = []
        for stream, sound in zip(streams, tracks, strict=True):
            step = stream.codec_context.frame_size or 1024
            convert = av.AudioResampler(stream.format.name, layout, rate_hz)
            for start in range(0, sound.shape[1], step):
                samples = np.ascontiguousarray(sound[:, start : start + step].T).reshape(1, -1)
                frame = av.AudioFrame.from_ndarray(samples, format="flt", layout=layout)
                frame.sample_rate, frame.pts = rate_hz, start
                frame.time_base = Fraction(1, rate_hz)
                for ready in convert.resample(frame):
                    packets += stream.encode(ready)
            packets += stream.encode(None)
        for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
            container.mux(packet)
    return path


def decoded(path: Path, span: MediaSpan | None = None, **settings: object) -> DecodedMedia:
    config = DecodeConfig(**settings)  # type: ignore[arg-type]
    return decode_media(path, span or MediaSpan(), config, ["audio"])


def waveform_of(media: DecodedMedia) -> Sound:
    assert media.waveform is not None, media.failures
    return media.waveform


def told(media: DecodedMedia) -> list[str]:
    assert not any(entry.lost for entry in media.failures), media.failures
    return [entry.code for entry in media.failures]


def level_at(waveform: Sound, pitch_hz: float) -> float:
    times_s = np.arange(len(waveform)) / RATE_HZ
    return 2 * float(np.abs(np.mean(waveform * np.exp(-2j * np.pi * pitch_hz * times_s))))


# ------------------------------------------------------------------------- frames and formats

FORMATS = {
    "u8": (np.uint8, 2**7),
    "s16": (np.int16, 2**15),
    "s32": (np.int32, 2**31),
    "s64": (np.int64, 2**63),
    "flt": (np.float32, 1),
    "dbl": (np.float64, 1),
}
COUNTS = [*range(1, 17), 24, 32, MAX_CHANNELS]


def planted_frame(sample_format: str, levels: Sequence[float], layout: str) -> av.AudioFrame:
    """Five samples of each channel, all at its level."""
    sample_type, full_scale = FORMATS[sample_format.removesuffix("p")]
    values = (np.array(levels) * full_scale + 128 * (sample_type is np.uint8)).astype(sample_type)
    frame = av.AudioFrame(sample_format, layout, 5)
    if sample_format.endswith("p"):
        for channel, value in enumerate(values):
            AudioPlane(frame, channel).update(np.full(5, value))
    else:
        AudioPlane(frame, 0).update(np.tile(values, 5))
    return frame


@pytest.mark.parametrize("sample_format", [*FORMATS, *(f"{name}p" for name in FORMATS)])
def test_a_frame_of_any_format_and_number_of_channels_is_read(sample_format: str) -> None:
    """PyAV's own `to_ndarray` ends the process where a planar frame has eight."""
    for num_channels in COUNTS:
        levels = [(channel + 1) / 128 for channel in range(num_channels)]
        frame = planted_frame(sample_format, levels, f"{num_channels} channels")
        part = read_part(frame, ("NONE",) * num_channels)
        assert part.samples.dtype == np.float32
        assert part.samples.tolist() == [[level] * 5 for level in levels]


def test_integers_become_floats_as_ffmpeg_makes_them() -> None:
    values = np.random.default_rng(0).integers(-(2**31), 2**31, 4096, dtype=np.int64)
    for name, samples in (
        ("s32", values.astype(np.int32)),
        ("s16", (values >> 16).astype(np.int16)),
        ("u8", ((values >> 24) + 128).astype(np.uint8)),
    ):
        frame = av.AudioFrame.from_ndarray(samples[None], format=name, layout="mono")
        frame.sample_rate = RATE_HZ
        [theirs] = av.AudioResampler("fltp", "mono", RATE_HZ).resample(frame)
        assert np.array_equal(read_part(frame, ("FC",)).samples, theirs.to_ndarray()), name


def test_more_channels_than_anything_has_are_refused() -> None:
    frame = planted_frame("s16", [0.0] * 65, "65 channels")
    with pytest.raises(ValueError, match="65 channels; at most 64"):
        read_part(frame, ("NONE",) * 65)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_silence_and_reported(tmp_path: Path, value: float) -> None:
    sound = voices(1)
    sound[0, 700:720] = value
    media = decoded(write_sound(tmp_path / "a.wav", sound, layout="mono"))
    sound[0, 700:720] = 0
    assert np.array_equal(waveform_of(media), sound[0])
    assert told(media) == ["not_a_number"]


def test_samples_far_beyond_full_scale_are_numbers(tmp_path: Path) -> None:
    sound = 1e30 * voices(2)
    media = decoded(write_sound(tmp_path / "a.wav", sound, layout="stereo"))
    assert np.abs(waveform_of(media)).max() == 1
    assert told(media) == []


# --------------------------------------------------------------------------- files of channels

# Of so many channels, a layout that FFmpeg knows by name; the third is the centre.
LAYOUTS = {1: "mono", 2: "stereo", 3: "3.0", 4: "4.0", 5: "5.0", 6: "5.1", 7: "6.1", 8: "7.1"}
LAYOUTS |= {10: "5.1.4", 12: "7.1.4", 16: "hexadecagonal"}


def check_mean(path: Path, num: int) -> None:
    """Every channel is in the waveform, as loud as any other."""
    waveform = waveform_of(decoded(path))
    levels = [level_at(waveform, 300 + 100 * channel) for channel in range(num)]
    assert levels == pytest.approx([0.3 / num] * num, rel=0.02)


def check_centre(path: Path, pitch_hz: float = 500) -> None:
    waveform = waveform_of(decoded(path))
    assert pitch_of(waveform[2000:14000]) == pytest.approx(pitch_hz, abs=3)
    assert level_at(waveform, pitch_hz) == pytest.approx(0.3, rel=0.1)
    assert level_at(waveform, pitch_hz - 100) < 0.01


@pytest.mark.heavy
@pytest.mark.parametrize("extension", ["wav", "mkv", "mov"])
def test_files_of_any_number_of_channels_are_read(tmp_path: Path, extension: str) -> None:
    """Matroska says of no channel where it belongs; WAV and QuickTime do where they are told."""
    for num in COUNTS:
        path = tmp_path / f"{num}.{extension}"
        write_sound(path, voices(num), layout=f"{num} channels", codec="pcm_s16le")
        check_mean(path, num)
    for num, layout in LAYOUTS.items():
        if extension == "mkv" or (extension, num) == ("wav", 16):  # WAV has 32 places
            continue
        path = tmp_path / f"{layout}.{extension}"
        write_sound(path, voices(num), layout=layout, codec="pcm_s16le")
        check_centre(path) if num > 2 else check_mean(path, num)


@pytest.mark.parametrize(
    ("extension", "codec", "counts"),
    [
        ("mp4", "aac", [3, 4, 5, 6, 8]),
        ("flac", "flac", [3, 4, 5, 6, 7, 8]),
        ("mkv", "libopus", [3, 6, 8]),
        ("mkv", "ac3", [3, 4, 5, 6]),
        ("mkv", "alac", [3, 4, 6]),
        ("mov", "pcm_s24be", [3, 4, 5, 6, 7, 8]),
        ("wav", "pcm_f64le", [3, 4, 5, 6, 7, 8]),
        ("wav", "pcm_u8", [3, 4, 5, 6, 7, 8]),
    ],
)
def test_every_codec_of_surround_sound_gives_its_centre(
    tmp_path: Path, extension: str, codec: str, counts: Sequence[int]
) -> None:
    for num in counts:
        path = tmp_path / f"{num}.{extension}"
        rate_hz = 48_000 if codec in ("libopus", "ac3") else RATE_HZ
        times_s = np.arange(rate_hz) / rate_hz
        sound = [0.3 * np.sin(2 * np.pi * (300 + 100 * each) * times_s) for each in range(num)]
        write_sound(
            path,
            np.stack(sound).astype(np.float32),
            layout=LAYOUTS[num],
            codec=codec,
            rate_hz=rate_hz,
        )
        check_centre(path)


def tell_order(path: Path, quicktime_tag: int, num_channels: int) -> None:
    """Writes another channel layout tag into a QuickTime file's `chan` atom."""
    content = bytearray(path.read_bytes())
    tag = content.index(b"chan") + 8
    content[tag : tag + 4] = (quicktime_tag << 16 | num_channels).to_bytes(4, "big")
    path.write_bytes(content)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("quicktime_tag", "centre"),
    [(122, 4), (123, 1), (124, 0)],  # L R Ls Rs C LFE; L C R Ls Rs LFE; C L R Ls Rs LFE
)
def test_channels_in_an_order_of_their_own_are_read(
    tmp_path: Path, quicktime_tag: int, centre: int
) -> None:
    """PyAV frees the list of such channels twice, which ends the process: hence one of its own."""
    path = write_sound(tmp_path / "a.mov", voices(6), layout="5.1", codec="pcm_s16le")
    tell_order(path, quicktime_tag, 6)
    code = (
        "import sys; from pathlib import Path; import numpy as np\n"
        "from pipeline.decode.inspect import inspect_clip\n"
        "from pipeline.decode.spans import decode_media\n"
        "from pipeline.recipe import DecodeConfig\n"
        "from pipeline.schema import ClipKey, LocatedClip, MediaSpan, Utterance\n"
        "path = Path(sys.argv[1])\n"
        "row = Utterance(key=ClipKey('train', 0, 0), text='')\n"
        "for deep in (False, True, True):\n"
        "    looked = inspect_clip(LocatedClip(utterance=row, path=path), deep=deep)\n"
        "    assert looked.sound.channels == 6, looked\n"
        "    assert [each.code for each in looked.problems] == ['no_video'], looked\n"
        "    media = decode_media(path, MediaSpan(), DecodeConfig(), ['audio'])\n"
        "np.save(path.with_suffix('.npy'), media.waveform)"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True, cwd=ROOT)
    waveform = np.load(path.with_suffix(".npy"))
    assert level_at(waveform, 300 + 100 * centre) == pytest.approx(0.3, rel=0.01)


def test_a_file_of_more_channels_than_are_read_says_so(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.wav", voices(65), layout="65 channels")
    [failure] = decoded(path).failures
    assert (failure.code, failure.lost) == ("too_many_channels", True)
    assert "65 channels" in failure.message


# ------------------------------------------------------------------------------ to one channel


def decoded_wav(folder: Path, *channels: Sound, layout: str, **settings: object) -> DecodedMedia:
    path = write_sound(folder / "a.wav", np.stack(channels), layout=layout)
    return decoded(path, **settings)


def test_ordinary_stereo_is_the_mean_to_the_bit(tmp_path: Path) -> None:
    left, right = noise(0.1, seed=1), noise(0.01, seed=2)
    media = decoded_wav(tmp_path, left, right, layout="stereo")
    assert np.array_equal(waveform_of(media), np.stack([left, right]).mean(axis=0))
    assert told(media) == []


@pytest.mark.parametrize("balance", [1.0, 0.8, 1.25])
def test_stereo_in_opposite_phase_is_not_silence(tmp_path: Path, balance: float) -> None:
    voice = sine(440)
    media = decoded_wav(tmp_path, voice, -balance * voice + noise(0.003), layout="stereo")
    assert np.array_equal(waveform_of(media), voice)
    assert told(media) == ["opposite_phase"]
    assert "channel 1 of 2 alone" in media.failures[0].message


def test_much_the_louder_of_two_in_opposite_phase_is_taken(tmp_path: Path) -> None:
    voice = sine(440, level=0.8)
    quad = (0.1 * voice, -0.3 * voice, voice, -0.8 * voice)
    media = decoded_wav(tmp_path, *quad, layout="quad")
    assert np.array_equal(waveform_of(media), voice)
    assert "BL alone" in media.failures[0].message


def test_sides_that_differ_are_no_opposite_phase(tmp_path: Path) -> None:
    wide = [noise(0.1, seed=1), noise(0.1, seed=2)]
    assert told(decoded_wav(tmp_path, *wide, layout="stereo")) == []
    many = [noise(0.1, seed=seed) for seed in range(16)]
    assert told(decoded_wav(tmp_path, *many, layout="16 channels")) == []


@pytest.mark.parametrize("dead", [0.0, 1e-4, 1e-3])
@pytest.mark.parametrize("side", [0, 1])
def test_a_dead_channel_does_not_halve_the_level(tmp_path: Path, dead: float, side: int) -> None:
    channels = [sine(440), sine(440)]
    channels[side] = noise(dead)
    media = decoded_wav(tmp_path, *channels, layout="stereo")
    assert np.array_equal(waveform_of(media), sine(440))
    assert told(media) == []


def test_one_voice_of_16_tracks_is_heard_in_full(tmp_path: Path) -> None:
    tracks = [silence()] * 16
    tracks[11] = sine(440)
    media = decoded_wav(tmp_path, *tracks, layout="16 channels")
    assert np.array_equal(waveform_of(media), sine(440))


@pytest.mark.parametrize("channel", ["front_centre", "downmix"])
@pytest.mark.parametrize("layout", ["quad", "2.1", "4.1", "4 channels", "5 channels", "6 channels"])
def test_channels_without_a_centre_are_averaged(tmp_path: Path, layout: str, channel: str) -> None:
    num = av.AudioLayout(layout).nb_channels
    sound = voices(num)
    if layout == "4.1" and channel == "front_centre":  # it has one
        return
    media = decoded_wav(tmp_path, *sound, layout=layout, channel=channel)
    assert np.array_equal(waveform_of(media), sound.mean(axis=0))


def test_a_live_centre_is_taken_to_the_bit_however_loud_the_others_are(tmp_path: Path) -> None:
    sound = voices(6, level=0.9)
    sound[2] = noise(0.02)
    media = decoded_wav(tmp_path, *sound, layout="5.1")
    assert np.array_equal(waveform_of(media), sound[2])
    assert told(media) == []


@pytest.mark.parametrize("dead", [0.0, 1e-4])
def test_a_silent_centre_is_replaced_by_the_other_channels(tmp_path: Path, dead: float) -> None:
    """Stereo that was put into a 5.1 file."""
    sound = np.stack([silence()] * 6)
    sound[0], sound[1], sound[2], sound[3] = sine(440), sine(660), noise(dead), sine(50)
    media = decoded_wav(tmp_path, *sound, layout="5.1")
    assert np.array_equal(waveform_of(media), sound[:2].mean(axis=0))
    assert told(media) == ["silent_centre"]


def test_rumble_is_no_reason_to_leave_a_silent_centre(tmp_path: Path) -> None:
    sound = np.stack([silence()] * 6)
    sound[3] = sine(50)
    media = decoded_wav(tmp_path, *sound, layout="5.1")
    assert not waveform_of(media).any()
    assert told(media) == []


def test_a_centre_that_spoke_before_is_silent_now_and_not_dead(tmp_path: Path) -> None:
    sound = np.tile(voices(6), 2)
    sound[2, RATE_HZ:] = 0
    path = write_sound(tmp_path / "a.wav", sound, layout="5.1")
    spans = [MediaSpan(end_ms=1000), MediaSpan(start_ms=1000, end_ms=2000)]
    first, second = decode_spans(path, spans, DecodeConfig(), ["audio"])
    assert level_at(waveform_of(first), 500) == pytest.approx(0.3, rel=0.01)
    assert not waveform_of(second)[100:].any()
    assert told(second) == []
    alone = decoded(path, spans[1])
    assert np.array_equal(waveform_of(alone), waveform_of(second))


def test_silence_is_a_measurement(tmp_path: Path) -> None:
    for layout in ("mono", "stereo", "5.1", "16 channels"):
        num = av.AudioLayout(layout).nb_channels
        media = decoded_wav(tmp_path, *[silence()] * num, layout=layout)
        assert np.array_equal(waveform_of(media), silence())
        assert told(media) == []


def test_each_span_takes_its_own_channels_and_those_that_take_the_same_join(
    tmp_path: Path,
) -> None:
    """Two people, each on a channel of their own: first one speaks, then the other."""
    sound = np.zeros((2, 2 * RATE_HZ), np.float32)
    sound[0, :RATE_HZ], sound[1, RATE_HZ:] = sine(440), sine(660)
    path = write_sound(tmp_path / "a.wav", sound, layout="stereo")
    spans = [MediaSpan(start_ms=500 * k, end_ms=500 * (k + 1)) for k in range(4)]
    parts = [waveform_of(each) for each in decode_spans(path, spans, DecodeConfig(), ["audio"])]
    assert np.array_equal(np.concatenate(parts), sound.sum(axis=0))
    assert np.array_equal(waveform_of(decoded(path)), sound.mean(axis=0))


def test_a_stream_may_change_its_channels(tmp_path: Path) -> None:
    """Television: a film in surround sound, advertisements in stereo."""
    path = tmp_path / "a.aac"
    parts = []
    for name, layout, sound in (
        ("film", "5.1", voices(6)),
        ("ad", "stereo", np.stack([sine(440), silence()])),
    ):
        part = write_sound(tmp_path / f"{name}.aac", sound, layout=layout, codec="aac")
        parts.append(part.read_bytes())
    path.write_bytes(b"".join(parts))
    waveform = waveform_of(decoded(path))
    half = len(waveform) // 2
    assert pitch_of(waveform[2000 : half - 2000]) == pytest.approx(500, abs=3)
    assert pitch_of(waveform[half + 2000 : -2000]) == pytest.approx(440, abs=3)
    assert level_at(waveform[half + 2000 : -2000], 440) == pytest.approx(0.3, rel=0.1)


# ------------------------------------------------------------------------------------- tracks


@pytest.mark.parametrize("extension", ["mp4", "mov", "mkv"])
def test_of_two_tracks_the_one_that_speaks_is_taken(tmp_path: Path, extension: str) -> None:
    quiet, voice = silence()[None], sine(440)[None]
    for name, tracks, expected in (
        ("first", (voice, quiet), []),
        ("second", (quiet, voice), ["other_track"]),
        ("hiss", (noise(3e-4)[None], voice), ["other_track"]),
        ("both", (sine(440)[None], sine(990)[None]), []),
    ):
        codec = "aac" if extension == "mp4" else "pcm_s16le"
        path = tmp_path / f"{name}.{extension}"
        media = decoded(write_sound(path, *tracks, layout="mono", codec=codec))
        assert pitch_of(waveform_of(media)[2000:14000]) == pytest.approx(440, abs=3), name
        assert told(media) == expected, name
    assert (
        "track 2 was taken, as track 1 is silent"
        in decoded(tmp_path / f"second.{extension}").failures[0].message
    )


def test_tracks_that_are_all_silent_are_silence(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "a.mkv", silence()[None], silence()[None], layout="mono")
    media = decoded(path)
    assert not waveform_of(media).any()
    assert told(media) == []


def test_a_click_is_no_sound(tmp_path: Path) -> None:
    click = silence()
    click[8000:8004] = 0.9
    path = write_sound(tmp_path / "a.mkv", click[None], sine(440)[None], layout="mono")
    assert told(decoded(path)) == ["other_track"]


def test_spans_of_a_file_of_two_tracks_all_take_the_same(tmp_path: Path) -> None:
    late = np.concatenate([silence(), sine(990)])[None]
    path = write_sound(tmp_path / "a.mkv", late, sine(440, 2)[None], layout="mono")
    spans = [MediaSpan(end_ms=1000), MediaSpan(start_ms=1000, end_ms=2000)]
    both = list(decode_spans(path, spans, DecodeConfig(), ["audio"]))
    for span, media in zip(spans, both, strict=True):
        assert np.array_equal(waveform_of(decoded(path, span)), waveform_of(media))
    assert pitch_of(waveform_of(both[1])[2000:14000]) == pytest.approx(990, abs=3)


# ------------------------------------------------------------------------------------- codecs

PLAIN_CODECS = [
    *(("wav", codec) for codec in ("pcm_u8", "pcm_s16le", "pcm_s24le", "pcm_s32le", "pcm_s64le")),
    *(("wav", codec) for codec in ("pcm_f32le", "pcm_f64le", "pcm_mulaw", "pcm_alaw")),
    *(("wav", codec) for codec in ("adpcm_ms", "adpcm_ima_wav", "adpcm_yamaha", "g722")),
    *(("mov", codec) for codec in ("pcm_s16be", "pcm_s24be", "pcm_s32be", "pcm_f32be")),
    *(("mov", codec) for codec in ("pcm_f64be", "pcm_s8", "adpcm_ima_qt", "alac")),
    *(("mkv", codec) for codec in ("tta", "wavpack", "mp2", "ac3", "eac3")),
    *(("avi", codec) for codec in ("pcm_s16le", "adpcm_ms", "mp2")),
]


@pytest.mark.parametrize(("extension", "codec"), PLAIN_CODECS)
def test_plain_codecs_are_read(tmp_path: Path, extension: str, codec: str) -> None:
    rate_hz = 48_000 if codec in ("mp2", "ac3", "eac3") else RATE_HZ
    layout = "mono" if codec in ("g722", "adpcm_ima_qt", "adpcm_yamaha") else "stereo"
    times_s = np.arange(rate_hz) / rate_hz
    sound = np.stack([0.3 * np.sin(2 * np.pi * 440 * times_s)] * (1 + (layout == "stereo")))
    path = tmp_path / f"a.{extension}"
    try:
        write_sound(path, sound.astype(np.float32), layout=layout, codec=codec, rate_hz=rate_hz)
    except av.error.ExperimentalError:
        pytest.skip(f"FFmpeg's encoder of {codec} is an experiment")
    waveform = waveform_of(decoded(path))
    assert pitch_of(waveform[2000:14000]) == pytest.approx(440, abs=3)
    assert level_at(waveform[2000:14000], 440) == pytest.approx(0.3, rel=0.1)


@pytest.mark.parametrize(("codec", "rate_hz"), [("libopencore_amrnb", 8000)])
def test_what_phones_record_is_read(tmp_path: Path, codec: str, rate_hz: int) -> None:
    times_s = np.arange(rate_hz) / rate_hz
    sound = (0.3 * np.sin(2 * np.pi * 440 * times_s)).astype(np.float32)[None]
    path = tmp_path / "a.mp4"
    write_sound(path, sound, layout="mono", codec=codec, rate_hz=rate_hz, container_format="3gp")
    assert pitch_of(waveform_of(decoded(path))[2000:14000]) == pytest.approx(440, abs=5)


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("my talk.avi", "ffmpeg -i 'my talk.avi' -c:v libx264 -c:a aac 'my talk.mp4'"),
        ("a.avi", "ffmpeg -i a.avi -c:v libx264 -c:a aac a.mp4"),
    ],
)
def test_a_codec_that_is_not_read_is_named_with_the_way_out(
    tmp_path: Path, name: str, command: str
) -> None:
    path = write_clip(tmp_path / name, codec="asv2", options={})
    [failure] = decode_media(path, MediaSpan(), DecodeConfig(), ["video"]).failures
    assert failure.lost
    assert failure.code == "codec"
    assert "video codec asv2" in failure.message
    assert failure.message.endswith(command)
    assert str(tmp_path) not in failure.message
