"""What a graph reads: clips -> its inputs, and its outputs -> features; without PyTorch.

Each kind does what the encoder's own preparation does, from the settings that `onnx.json` holds. A
kind that is new is one class here and one entry in `READINGS`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import tokenizers
from numpy.typing import NDArray

from pipeline.encoders.face_finder import SIDE, FaceFinder, Faces, find_face_cascade
from pipeline.encoders.prosody import FEATURES, LEAST_RATE_HZ, Prosody
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
from pipeline.errors import ClipError
from pipeline.onnx.graph import Computes, Port
from pipeline.recipe import DecodeConfig
from pipeline.schema import ClipKey, DecodedClip, Utterance

Floats = NDArray[np.float32]

TOKENIZER = "tokenizer.json"
# One that is cut into windows, one of ordinary length, one of a single word.
_SENTENCES = (
    " ".join(["Oh my God, we were on a break and nobody knows!"] * 15),
    "You said what?!",
    "Hi",
)
_SOUND_S = 1.3


class GraphReading(Protocol):
    """The settings of one kind, checked when they are read."""

    @property
    def batch_size(self) -> int | None:
        """Clips that are encoded together, None all that there are."""

    def check_decode(self, decode: DecodeConfig | None) -> None:
        """Raises ValueError where clips that are decoded so, or are words alone, are not what it
        reads."""

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        """Inputs and outputs of the graph."""

    def prepare(self, clips: Sequence[DecodedClip]) -> Sequence[Any | None]: ...

    def shortfall(self, item: Any) -> ClipError | None: ...

    def length(self, item: Any) -> int: ...

    def encode(self, graph: Computes, items: Sequence[Any]) -> Floats:
        """Items, at least one -> float32 [items, layers, dim]."""

    def test_clips(self) -> list[DecodedClip]:
        """Clips that are the same everywhere, for a test of the whole way."""


@runtime_checkable
class MakesUpItems(Protocol):
    """A reading that is tested without clips."""

    def test_items(self) -> list[Any]:
        """Items that are the same everywhere; the encoder's own preparation has the same."""


@dataclass(frozen=True, kw_only=True)
class TokenReading:
    """Sentences, as `pipeline.encoders.text.Tokeniser` reads them."""

    reads_context: bool
    pad_id: int
    special_ids: frozenset[int]
    gives_types: bool
    batch_size: int | None
    tokenizer: tokenizers.Tokenizer

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "TokenReading":
        reads_context = take(values, "reads_context", bool)
        known = MAX_TOKENS_WITH_CONTEXT if reads_context else MAX_TOKENS
        for name, own in (("max_tokens", known), ("overlap", OVERLAP)):
            if take(values, name, int) != own:
                raise ValueError(f"{name} is {values[name]}, and this program reads with {own}")
        special = take(values, "special_ids", list)
        if not all(type(each) is int for each in special):
            raise ValueError("special_ids are not numbers")
        return cls(
            reads_context=reads_context,
            pad_id=_take_pad_id(values),
            special_ids=frozenset(special),
            gives_types=take(values, "gives_types", bool),
            batch_size=_take_batch_size(values),
            tokenizer=_open_tokenizer(files[TOKENIZER]),
        )

    def check_decode(self, decode: DecodeConfig | None) -> None:
        """Words are not decoded."""

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        inputs = [Port("ids", "int64", (None, None))]
        inputs += [Port("mask", "bool", (None, None)), Port("pooled", "bool", (None, None))]
        if self.gives_types:
            inputs.append(Port("types", "int64", (None, None)))
        sums = Port("sum", "float32", (None, layers, dim))
        return inputs, [sums, Port("count", "float32", (None, 1))]

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Tokens | None]:
        return prepare_texts(
            clips, self.tokenise, reads_context=self.reads_context, special_ids=self.special_ids
        )

    def tokenise(
        self, sentences: Sequence[str], contexts: Sequence[str] | None = None
    ) -> list[Tokens]:
        if contexts is None:
            encoded = self.tokenizer.encode_batch(list(sentences))
            return [take_whole(each.ids, each.special_tokens_mask) for each in encoded]
        pairs = self.tokenizer.encode_batch(list(zip(contexts, sentences, strict=True)))
        return [take_second_of_pair(each.ids, each.sequence_ids) for each in pairs]

    def shortfall(self, item: Tokens) -> ClipError | None:
        return tell_unread(item.unread)

    def length(self, item: Tokens) -> int:
        return len(item.ids)

    def encode(self, graph: Computes, items: Sequence[Tokens]) -> Floats:
        batch = PaddedTokens.pad(items, self.pad_id)
        num_sentences, num_windows = len(items), len(batch.ids)
        total, count = self._run(graph, batch, 0, num_sentences)
        # Few at once: each window that follows is as long as one can be.
        step = self.batch_size or num_windows
        parts = [
            self._run(graph, batch, start, start + step)
            for start in range(num_sentences, num_windows, step)
        ]
        if parts:
            sums, counts = zip(*parts, strict=True)
            total = _add_following(total, np.concatenate(sums), batch.following)
            count = _add_following(count, np.concatenate(counts), batch.following)
        return total / count[:, :, None]

    def _run(
        self, graph: Computes, batch: PaddedTokens, start: int, end: int
    ) -> tuple[Floats, Floats]:
        feeds: dict[str, NDArray[Any]] = {
            "ids": batch.ids[start:end],
            "mask": batch.mask[start:end],
            "pooled": batch.pooled[start:end],
        }
        if self.gives_types:
            feeds["types"] = batch.types[start:end]
        total, count = graph.run(**feeds)
        return total, count

    def test_clips(self) -> list[DecodedClip]:
        return [
            DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=text, context=before))
            for row, (text, before) in enumerate(
                zip(_SENTENCES, ("", "Ann: Hello? Bob: We were on a break! Ann:", ""), strict=True)
            )
        ]


def _add_following(first: Floats, others: Floats, following: Sequence[int]) -> Floats:
    """[sentences, ...] and [windows that follow, ...] -> [sentences, ...]"""
    ends = np.cumsum(following)
    parts = (others[end - number : end] for end, number in zip(ends, following, strict=True))
    return np.stack([one + part.sum(0) for one, part in zip(first, parts, strict=True)])


def _open_tokenizer(content: bytes) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(content.decode())
    except Exception as error:  # the library raises Exception itself
        raise ValueError(f"{TOKENIZER} is no tokenizer ({error})") from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


@dataclass(frozen=True, kw_only=True)
class FrameReading:
    """Frames of one size."""

    num_frames: int
    height: int
    width: int
    batch_size: int | None

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "FrameReading":
        num_frames, height, width = (
            take_side(values, name) for name in ("num_frames", "height", "width")
        )
        batch_size = _take_batch_size(values)
        return cls(num_frames=num_frames, height=height, width=width, batch_size=batch_size)

    def check_decode(self, decode: DecodeConfig | None) -> None:
        _check_frames(decode, self.height, self.width)
        if decode is not None and decode.num_frames != self.num_frames:
            raise ValueError(f"it reads {self.num_frames} frames of {decode.num_frames}")

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        frames = Port("frames", "uint8", (None, self.num_frames, self.height, self.width, 3))
        return [frames], [Port("features", "float32", (None, layers, dim))]

    def prepare(self, clips: Sequence[DecodedClip]) -> list[NDArray[np.uint8] | None]:
        return [
            None if clip.frames is None or not len(clip.frames) else clip.frames for clip in clips
        ]

    def shortfall(self, item: NDArray[np.uint8]) -> ClipError | None:
        return None

    def length(self, item: NDArray[np.uint8]) -> int:
        return 0  # all alike

    def encode(self, graph: Computes, items: Sequence[NDArray[np.uint8]]) -> Floats:
        [features] = graph.run(frames=np.stack(list(items)))
        return features

    def test_clips(self) -> list[DecodedClip]:
        """Half of the picture is noise and half a bright slope that moves."""
        shape = (self.num_frames, self.height, self.width, 3)
        noise = _noise(int(np.prod(shape))).reshape(shape)
        slope = (
            np.arange(self.width)[None, None, :, None]
            + 4 * np.arange(self.num_frames)[:, None, None, None]
        )
        left = np.arange(self.width)[None, None, :, None] < self.width // 2
        frames = np.where(left, noise, slope % 256).astype(np.uint8)
        utterance = Utterance(key=ClipKey("test", 0, 0), text="")
        times_s = np.arange(self.num_frames) / 10
        return [DecodedClip(utterance=utterance, frames=frames, times_s=times_s)]


@dataclass(frozen=True, kw_only=True)
class FaceReading:
    """The largest face of each frame, as `pipeline.encoders.faces` reads them. The detector is
    that of the installed OpenCV: a file that came with a graph is none that OpenCV may open."""

    height: int
    width: int
    num_values: int
    batch_size: int | None
    finder: FaceFinder

    @property
    def nothing(self) -> str:
        return self.finder.nothing

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "FaceReading":
        finder = FaceFinder(find_face_cascade())
        if take(values, "cascade", str) != finder.cascade_sha256:
            raise ValueError("OpenCV has another face detector here")
        return cls(
            height=take_side(values, "height"),
            width=take_side(values, "width"),
            num_values=take(values, "num_values", int),
            batch_size=_take_batch_size(values),
            finder=finder,
        )

    def check_decode(self, decode: DecodeConfig | None) -> None:
        _check_frames(decode, self.height, self.width)

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        pictures = Port("pictures", "uint8", (None, SIDE, SIDE))
        return [pictures], [Port("values", "float32", (None, self.num_values))]

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Faces | None]:
        return self.finder.prepare(clips)

    def shortfall(self, item: Faces) -> ClipError | None:
        return self.finder.shortfall(item)

    def length(self, item: Faces) -> int:
        return self.finder.length(item)

    def encode(self, graph: Computes, items: Sequence[Faces]) -> Floats:
        [values] = graph.run(pictures=np.concatenate([item.pictures for item in items]))
        ends = np.cumsum([len(item.pictures) for item in items])
        rows = [
            np.concatenate([own.mean(axis=0), own.max(axis=0), [item.share]])
            for own, item in zip(np.split(values, ends[:-1]), items, strict=True)
        ]
        return np.stack(rows).astype(np.float32)[:, None]

    def test_clips(self) -> list[DecodedClip]:
        """None: a picture in which every detector finds a face cannot be made up."""
        return []

    def test_items(self) -> list[Faces]:
        """A slope and noise, and noise alone."""
        noise = _noise(3 * SIDE * SIDE).reshape(3, SIDE, SIDE).astype(np.uint8)
        slope = np.broadcast_to(np.arange(SIDE, dtype=np.uint8) * 3, (1, SIDE, SIDE))
        return [Faces(np.concatenate([slope, noise[:1]]), 0.5), Faces(noise[1:], 1.0)]


@dataclass(frozen=True, kw_only=True)
class WaveformReading:
    """Sound, one clip at a time: lengths differ, and padding would leak into statistics."""

    min_samples: int
    sample_rate_hz: int
    batch_size: int | None = None

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "WaveformReading":
        rate_hz, least = take(values, "sample_rate_hz", int), take(values, "min_samples", int)
        if not (1 <= least <= rate_hz <= 1_000_000):
            raise ValueError(f"min_samples {least} at {rate_hz} Hz")
        return cls(min_samples=least, sample_rate_hz=rate_hz)

    def check_decode(self, decode: DecodeConfig | None) -> None:
        if decode is None:
            raise ValueError("it hears sound, and clips are words alone")
        if decode.sample_rate_hz != self.sample_rate_hz:
            raise ValueError(
                f"it hears {self.sample_rate_hz} Hz, and a clip has {decode.sample_rate_hz} Hz"
            )

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        return [Port("waveform", "float32", (None,))], [Port("features", "float32", (layers, dim))]

    def prepare(self, clips: Sequence[DecodedClip]) -> list[Floats | None]:
        return [
            None
            if clip.waveform is None or len(clip.waveform) < self.min_samples
            else clip.waveform
            for clip in clips
        ]

    def shortfall(self, item: Floats) -> ClipError | None:
        return None

    def length(self, item: Floats) -> int:
        return 0  # each is encoded alone

    def encode(self, graph: Computes, items: Sequence[Floats]) -> Floats:
        return np.stack([graph.run(waveform=waveform)[0] for waveform in items])

    def test_clips(self) -> list[DecodedClip]:
        """A tone that rises, and noise; and the shortest sound that is read."""
        time_s = np.arange(round(_SOUND_S * self.sample_rate_hz)) / self.sample_rate_hz
        noise = (_noise(len(time_s)) - 127.5) / 2550
        sound = (0.5 * np.sin(2 * np.pi * (200 + 150 * time_s) * time_s) + noise).astype(np.float32)
        return [
            DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=""), waveform=each)
            for row, each in enumerate((sound, sound[: self.min_samples]))
        ]


@dataclass(frozen=True, kw_only=True)
class SpeechReading(WaveformReading):
    """Sound, as `pipeline.encoders.speech` reads it for a network that takes any length."""

    @property
    def nothing(self) -> str:
        return f"its sound is shorter than {self.min_samples} samples"


@dataclass(frozen=True, kw_only=True)
class PieceReading(SpeechReading):
    """Sound for a network that takes one length only (Whisper): longer clips are read in pieces,
    and what is padded with silence does not count.

    piece_samples: what the network takes; piece_frames: that it makes of them
    """

    piece_samples: int
    piece_frames: int

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "PieceReading":
        whole = WaveformReading.of(values, files)
        samples, frames = take(values, "piece_samples", int), take(values, "piece_frames", int)
        if not (
            whole.min_samples <= samples <= 60 * whole.sample_rate_hz and 1 <= frames <= samples
        ):
            raise ValueError(f"pieces of {samples} samples and {frames} frames")
        return cls(
            min_samples=whole.min_samples,
            sample_rate_hz=whole.sample_rate_hz,
            piece_samples=samples,
            piece_frames=frames,
        )

    def ports(self, layers: int, dim: int) -> tuple[list[Port], list[Port]]:
        inputs = [Port("waveform", "float32", (self.piece_samples,))]
        inputs.append(Port("kept", "bool", (self.piece_frames,)))
        return inputs, [Port("sum", "float32", (layers, dim))]

    def encode(self, graph: Computes, items: Sequence[Floats]) -> Floats:
        return np.stack([self._encode(graph, waveform) for waveform in items])

    def _encode(self, graph: Computes, waveform: Floats) -> Floats:
        """float32 [samples] -> [layers, dim]. What is left at the end counts if it is long enough
        to be heard alone."""
        starts = range(0, len(waveform), self.piece_samples)
        pieces = [waveform[start : start + self.piece_samples] for start in starts]
        sums, num_frames = [], 0
        for piece in pieces:
            if len(piece) < self.min_samples:
                continue
            count = -(-len(piece) * self.piece_frames // self.piece_samples)  # rounded up
            padded = np.zeros(self.piece_samples, np.float32)
            padded[: len(piece)] = piece
            sums += graph.run(waveform=padded, kept=np.arange(self.piece_frames) < count)
            num_frames += count
        mean: Floats = (np.sum(sums, axis=0) / num_frames).astype(np.float32)
        return mean


@dataclass(frozen=True, kw_only=True)
class ProsodyReading(WaveformReading):
    """Sound, measured by `pipeline.encoders.prosody` itself: there is no network."""

    prosody: Prosody

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Mapping[str, bytes]) -> "ProsodyReading":
        whole = WaveformReading.of(values, files)
        if tuple(take(values, "features", list)) != FEATURES:
            raise ValueError("it measures other features than this program")
        if whole.sample_rate_hz < LEAST_RATE_HZ:
            raise ValueError(
                f"no voice can be measured at {whole.sample_rate_hz} Hz, {LEAST_RATE_HZ} are needed"
            )
        return cls(
            min_samples=whole.min_samples,
            sample_rate_hz=whole.sample_rate_hz,
            prosody=Prosody(whole.sample_rate_hz),
        )

    def test_clips(self) -> list[DecodedClip]:
        """Without the shortest sound: of a single cycle of a voice there is no sound measure."""
        return super().test_clips()[:1]

    def encode(self, graph: Computes, items: Sequence[Floats]) -> Floats:
        rows = [list(self.prosody.measure(waveform).values()) for waveform in items]
        return np.array(rows, np.float32)[:, None]


@dataclass(frozen=True, kw_only=True)
class ReadingKind:
    """read:  settings and files -> the reading; raises ValueError where they are not of this kind
    files: names of what it needs beside the graph
    has_graph: False where the reading computes the features by itself
    """

    read: Callable[[Mapping[str, Any], Mapping[str, bytes]], GraphReading]
    files: tuple[str, ...] = ()
    has_graph: bool = True


READINGS: Mapping[str, ReadingKind] = {
    "tokens": ReadingKind(read=TokenReading.of, files=(TOKENIZER,)),
    "frames": ReadingKind(read=FrameReading.of),
    "faces": ReadingKind(read=FaceReading.of),
    "waveform": ReadingKind(read=WaveformReading.of),
    "speech": ReadingKind(read=SpeechReading.of),
    "speech_pieces": ReadingKind(read=PieceReading.of),
    "prosody": ReadingKind(read=ProsodyReading.of, has_graph=False),
}


def _check_frames(decode: DecodeConfig | None, height: int, width: int) -> None:
    """Raises ValueError where a clip has no frames of that size, or views of several sizes."""
    if decode is None:
        raise ValueError("it reads frames, and clips are words alone")
    if decode.frame_shape != (height, width, 3):
        found = ", ".join(map(str, decode.views))
        raise ValueError(f"it reads frames of {height}x{width}, and those of a clip are {found}")


def _noise(length: int) -> NDArray[np.int64]:
    """In [0, 255]; the same on every machine and in every version of NumPy."""
    numbers = np.arange(1, length + 1, dtype=np.uint64)
    for multiplier in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9):  # of splitmix64
        numbers = numbers * np.uint64(multiplier)
        numbers ^= numbers >> np.uint64(29)
    return (numbers >> np.uint64(56)).astype(np.int64)


def take(values: Mapping[str, Any], name: str, kind: type) -> Any:
    """Raises ValueError where it is missing or of another type (a bool is no int)."""
    value = values.get(name)
    if type(value) is not kind:
        raise ValueError(f"{name} is {value!r:.80}, not a {kind.__name__}")
    return value


def take_side(values: Mapping[str, Any], name: str) -> int:
    """Of frames, or a number of them. Raises ValueError."""
    side: int = take(values, name, int)
    if not 1 <= side <= 4096:
        raise ValueError(f"{name} is {side!s:.20}")
    return side


def _take_pad_id(values: Mapping[str, Any]) -> int:
    pad_id: int = take(values, "pad_id", int)
    if not 0 <= pad_id < 2**31:
        raise ValueError(f"pad_id is {pad_id!s:.20}")
    return pad_id


def _take_batch_size(values: Mapping[str, Any]) -> int:
    size: int = take(values, "batch_size", int)
    if not 1 <= size <= 1024:
        raise ValueError(f"batch_size is {size}")
    return size
