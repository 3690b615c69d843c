"""What people hand to `meld predict` that is not what it wants: one line, the right exit status,
and nothing else lost. Text alone is predicted here, by the model that the package carries."""

import json
import os
import stat
import wave
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import av
import pytest
import torch

from fusion.inference.bundled import bundled_run
from fusion.inference.checkpoint import read_checkpoint, write_checkpoint
from fusion.inference.load import ModelChoice
from fusion.prediction import predict_files
from pipeline.decode.process import DecoderProcess
from tests.conftest import Meld
from tests.media import AS_TIMED, grey, tone, write_clip

pytestmark = pytest.mark.heavy

WORDS = ("--text", "Hi!")
SRT = "1\n00:00:00,000 --> 00:00:00,900\nHello!\n"


class _Kept(DecoderProcess):
    """For all tests of this file: a process takes a second to start."""

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module", autouse=True)
def loaded_once(minilm_folder: Path) -> Iterator[None]:
    with _Kept() as decoder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ModelChoice, "load", cache(ModelChoice.load))
        patch.setattr(predict_files, "DecoderProcess", lambda: decoder)
        yield
        decoder.close()


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A clip of a second."""
    path = tmp_path_factory.mktemp("good") / "good.mp4"
    options = {"movflags": "+faststart"}
    write_clip(path, num_frames=24, sound=tone([440]), container_options=options)
    return path.read_bytes()


@dataclass(frozen=True)
class Desk:
    """A folder to make things in; `clip` is a good one."""

    folder: Path
    clip: Path

    def file(self, name: str, content: str | bytes) -> Path:
        path = self.folder / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path


@pytest.fixture
def desk(tmp_path: Path, good: bytes) -> Desk:
    made = Desk(tmp_path, tmp_path / "clip.mp4")
    made.clip.write_bytes(good)
    return made


# ------------------------------------------------------------------------- media that are none


def _pipe(desk: Desk) -> Path:
    os.mkfifo(desk.folder / "bad.mp4")
    return desk.folder / "bad.mp4"


def _link_to_itself(desk: Desk) -> Path:
    (desk.folder / "bad.mp4").symlink_to(desk.folder / "bad.mp4")
    return desk.folder / "bad.mp4"


def _link_to_nothing(desk: Desk) -> Path:
    (desk.folder / "bad.mp4").symlink_to(desk.folder / "gone.mp4")
    return desk.folder / "bad.mp4"


def _no_packets(desk: Desk) -> Path:
    """Headers, and nothing that they are the headers of."""
    path = desk.folder / "bad.mkv"
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=24)
        video.width, video.height, video.pix_fmt = 160, 128, "yuv420p"
        container.start_encoding()
    return path


def _no_length(desk: Desk) -> Path:
    with wave.open(str(desk.folder / "bad.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16_000)
    return desk.folder / "bad.wav"


def _image(desk: Desk) -> Path:
    path = desk.folder / "bad.mp4"
    with av.open(str(path), "w", format="image2") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 160, 128, "rgb24"
        frame = av.VideoFrame.from_ndarray(grey(3), format="rgb24")
        container.mux([*stream.encode(frame), *stream.encode()])
    return path


def _folder(desk: Desk) -> Path:
    (desk.folder / "bad").mkdir()
    (desk.folder / "bad" / ".hidden.mp4").write_bytes(desk.clip.read_bytes())
    return desk.folder / "bad"


PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{0}\n#EXT-X-ENDLIST\n"
BAD_MEDIA: dict[str, tuple[Callable[[Desk], Path], str]] = {
    "no such file": (lambda desk: desk.folder / "none.mp4", "no such file or folder"),
    "a folder without media": (_folder, "the folder holds no media file"),
    "a text": (lambda desk: desk.file("bad.mp4", "Dear diary"), "not MP4"),
    "a web page": (lambda desk: desk.file("bad.mp4", "<html>404"), "a web page"),
    "a playlist of this machine's files": (
        lambda desk: desk.file("bad.m3u8", PLAYLIST.format(desk.clip)),
        "not MP4",
    ),
    "a playlist of the network": (
        lambda desk: desk.file("bad.mp4", PLAYLIST.format("http://127.0.0.1:9/a.ts")),
        "not MP4",
    ),
    "a list of files to join": (
        lambda desk: desk.file("bad.mp4", f"ffconcat version 1.0\nfile '{desk.clip}'\n"),
        "not MP4",
    ),
    "a description of a stream": (
        lambda desk: desk.file("bad.mp4", "v=0\r\nm=audio 9 RTP/AVP 0\r\nc=IN IP4 127.0.0.1\r\n"),
        "not MP4",
    ),
    "a manifest": (
        lambda desk: desk.file("bad.mp4", '<?xml version="1.0"?><MPD><BaseURL>/etc/</MPD>'),
        "a web page or other markup",
    ),
    "a pipe": (_pipe, "not a regular file"),
    "a device": (lambda desk: Path("/dev/zero"), "not a regular file"),
    "an empty file": (lambda desk: desk.file("bad.mp4", b""), "0 bytes"),
    "one byte": (lambda desk: desk.file("bad.mp4", b"\0"), "not MP4"),
    "headers and nothing else": (_no_packets, "End of file"),
    "no length": (_no_length, "it lasts 0.0 s, so there is nothing in it to predict from"),
    "a file cut off before its index": (
        lambda desk: desk.file("bad.mp4", desk.clip.read_bytes()[:600]),
        "bad.mp4: ",
    ),
    "an archive": (lambda desk: desk.file("bad.mp4", b"PK\3\4" + bytes(60)), "ZIP"),
    "a picture": (_image, "PNG"),
    "noise": (lambda desk: desk.file("bad.mp4", bytes(range(1, 256)) * 9), "not MP4"),
    "a link to itself": (_link_to_itself, "bad.mp4: "),
    "a link to nothing": (_link_to_nothing, "no such file or folder"),
}


def one_line(meld: Meld, *arguments: object) -> tuple[int, str]:
    """Exit status and what is told, where nothing is predicted."""
    done = meld("predict", *arguments)
    assert done.out == ""
    [line] = told_in(done.err)
    return done.status, line


def told_in(err: str) -> list[str]:
    """Without the lines of progress, which a busy machine adds."""
    return [line for line in err.strip().splitlines() if not line.startswith("predicting: ")]


@pytest.mark.parametrize("kind", BAD_MEDIA)
def test_what_is_no_media_file_is_reported_in_one_line(meld: Meld, desk: Desk, kind: str) -> None:
    make, told = BAD_MEDIA[kind]
    path = make(desk)
    status, line = one_line(meld, path, *WORDS, "--out", desk.folder / "out")
    assert status == 4
    assert line.startswith(f"meld: error: {path}: ")
    assert told in line
    assert not (desk.folder / "out").exists()


def test_of_a_folder_only_what_is_bad_is_lost(meld: Meld, desk: Desk) -> None:
    kinds = ("a text", "an empty file", "a picture", "headers and nothing else", "noise")
    folder = desk.folder / "in"
    folder.mkdir()
    for number, kind in enumerate(kinds):
        bad = BAD_MEDIA[kind][0](desk)
        bad.rename(folder / f"{number}{bad.suffix}")
    for name in ("a", "z"):
        (folder / f"{name}.mp4").write_bytes(desk.clip.read_bytes())
        (folder / f"{name}.srt").write_text(SRT.replace("o!", "\u00f6!"), encoding="cp1252")
    done = meld("predict", folder, "--out", desk.folder / "out", "--json")
    assert done.status == 3
    failed = [each["path"] for each in done.json["files"] if each["timeline"] is None]
    assert [Path(path).stem for path in failed] == ["0", "1", "2", "3", "4"]
    *lines, count = told_in(done.err)
    assert [line.endswith("read as cp1252") for line in lines] == 2 * [True] + 5 * [False]
    for path, line in zip(failed, lines[2:], strict=True):  # failures last, where they are seen
        assert line.startswith(f"meld: {path}: ")
    assert count == "meld: 5 of 7 files could not be predicted"
    written = sorted(path.name for path in (desk.folder / "out").iterdir())
    assert written == ["a.mp4.meld.json", "z.mp4.meld.json"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_what_may_not_be_read_or_written_is_reported(meld: Meld, desk: Desk) -> None:
    desk.clip.chmod(0)
    status, line = one_line(meld, desk.clip, *WORDS, "--out", desk.folder / "out")
    assert (status, "Permission denied" in line) == (4, True)
    desk.clip.chmod(0o600)
    desk.folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    status, line = one_line(meld, desk.clip, *WORDS, "--out", desk.folder / "out")
    desk.folder.chmod(0o700)
    assert (status, "Permission denied" in line) == (5, True)


# -------------------------------------------------------------- words, options, models, the disk


def _run(desk: Desk, **config: object) -> Path:
    """A copy of a good run, its description changed."""
    run = desk.folder / "run"
    write_checkpoint(run, read_checkpoint(bundled_run()))
    described = json.loads((run / "config.json").read_text())
    (run / "config.json").write_text(json.dumps({**described, **config}))
    return run


def _run_without_encoders(desk: Desk) -> Path:
    checkpoint = read_checkpoint(bundled_run())
    [spec] = checkpoint.recipe.encoders
    recipe = replace(checkpoint.recipe, encoders=(replace(spec, name="nobody/nothing"),))
    write_checkpoint(desk.folder / "run", replace(checkpoint, recipe=recipe))
    return desk.folder / "run"


def _run_that_overflows(desk: Desk) -> Path:
    """Each weight is a number, and what they compute is none."""
    checkpoint = read_checkpoint(bundled_run())
    with torch.no_grad():
        for weights in checkpoint.model.parameters():
            weights.mul_(1e30)
    write_checkpoint(desk.folder / "run", checkpoint)
    return desk.folder / "run"


Asked = Sequence[object]
BAD: dict[str, tuple[int, Callable[[Desk], Asked], str]] = {
    "no sound and no words": (
        4,
        lambda desk: [write_clip(desk.folder / "mute.mp4", num_frames=24)],
        "its sound cannot be used (the file has no sound)",
    ),
    "broken subtitles": (
        4,
        lambda desk: [desk.clip, "--subtitles", desk.file("a.srt", "Dear diary")],
        "no subtitles of a known kind",
    ),
    "subtitles with a broken time": (
        4,
        lambda desk: [desk.clip, "--subtitles", desk.file("a.srt", SRT.replace("00:", "xx:"))],
        "a.srt: ",
    ),
    "subtitles in which nothing is said": (
        4,
        lambda desk: [desk.clip, "--subtitles", desk.file("a.srt", SRT.replace("Hello!", "♪"))],
        "1 cues, none with spoken words",
    ),
    "subtitles of another film": (
        4,
        lambda desk: [
            desk.clip,
            "--subtitles",
            desk.file("a.srt", SRT.replace("00:00:", "00:10:")),
        ],
        "none of its 1 utterances (a.srt) lies between 0.0 s and 1.0 s of it",
    ),
    "subtitles beside the file that are a picture": (
        4,
        lambda desk: [desk.clip, desk.file("clip.srt", b"\x89PNG\r\n\x1a\n\0\0")][:1],
        "clip.srt: binary, or UTF-16 without its mark",
    ),
    "subtitles that are a folder": (
        4,
        lambda desk: [desk.clip, "--subtitles", desk.folder],
        "not a regular file",
    ),
    "no such subtitles": (
        4,
        lambda desk: [desk.clip, "--subtitles", desk.folder / "none.srt"],
        "none.srt: no such file",
    ),
    "a transcript without times": (
        4,
        lambda desk: [desk.clip, "--transcript", desk.file("a.txt", "How you doin'?\n")],
        'row 1: "How you doin\'?" begins with no time',
    ),
    "a transcript with a time that is no number": (
        4,
        lambda desk: [
            desk.clip,
            "--transcript",
            desk.file("a.csv", "Utterance,StartTime,EndTime\nHi,nan,1\n"),
        ],
        "a.csv: row 2: ",
    ),
    "a transcript that goes backwards": (
        4,
        lambda desk: [desk.clip, "--transcript", desk.file("a.txt", "0:00.9 - 0:00.2 Hi\n")],
        "row 1: it ends at 0.200 s and starts at 0.900 s",
    ),
    "a transcript without the column": (
        4,
        lambda desk: [
            desk.clip,
            "--transcript",
            desk.file("a.csv", "Utterance,EndTime\nHi,1\n"),
        ],
        "StartTime",
    ),
    "words from two places": (
        2,
        lambda desk: [desk.clip, *WORDS, "--subtitles", desk.file("a.srt", SRT)],
        "--subtitles and --text: the words come from one place",
    ),
    "half a character": (2, lambda desk: [desk.clip, "--text", "caf\udce9"], "no UTF-8"),
    "words and none": (2, lambda desk: [desk.clip, *WORDS, "--no-text"], "--no-text leaves out"),
    "no words for a model of words": (
        2,
        lambda desk: [desk.clip, "--no-text"],
        "meld-text reads text alone",
    ),
    "a recogniser and no words": (
        2,
        lambda desk: [desk.clip, "--no-text", "--asr", "nobody"],
        "--no-text recognises nothing",
    ),
    "an unknown recogniser": (
        6,
        lambda desk: [desk.clip, "--asr", "nobody"],
        "--asr nobody: no folder of that name",
    ),
    "one text for two files": (
        2,
        lambda desk: [desk.clip, desk.file("b.mp4", desk.clip.read_bytes()), *WORDS],
        "belong to one file, not to 2",
    ),
    "two files of one name": (
        2,
        lambda desk: [desk.clip, _copy_in_folder(desk)],
        "clip.mp4 occurs in several folders",
    ),
    "an unknown format": (
        2,
        lambda desk: [desk.clip, *WORDS, "--format", "docx"],
        "--format docx",
    ),
    "no format": (2, lambda desk: [desk.clip, *WORDS, "--format", ","], "--format"),
    "a start past the end": (
        4,
        lambda desk: [desk.clip, *WORDS, "--start", "5"],
        "none of its 1 utterances lies between 5.0 s and 1.0 s of it",
    ),
    "an end before the start": (
        2,
        lambda desk: [desk.clip, *WORDS, "--start", "2", "--end", "1"],
        "--end 1.0 must be after --start 2.0",
    ),
    "a start that is no number": (
        2,
        lambda desk: [desk.clip, *WORDS, "--start", "nan"],
        "--start nan: seconds from the file's start",
    ),
    "a file as --out": (
        5,
        lambda desk: [desk.clip, *WORDS, "--out", desk.file("out", "mine")],
        "not a folder; --out takes one",
    ),
    "an --out that cannot be made": (
        5,
        lambda desk: [desk.clip, *WORDS, "--out", "/proc/nowhere"],
        "/proc/nowhere",
    ),
    "no run": (
        4,
        lambda desk: [desk.clip, *WORDS, "--model", desk.folder],
        "is no trained run (an unfinished or foreign folder)",
    ),
    "a run of another format": (
        6,
        lambda desk: [desk.clip, *WORDS, "--model", _run(desk, format_version=99)],
        "format version 99, this program reads 2",
    ),
    "a damaged run": (
        5,
        lambda desk: [desk.clip, *WORDS, "--model", _run(desk, dims="wide")],
        "not a run's description",
    ),
    "a run whose encoders are missing": (
        6,
        lambda desk: [desk.clip, *WORDS, "--model", _run_without_encoders(desk)],
        "nobody/nothing",
    ),
}


def _copy_in_folder(desk: Desk) -> Path:
    (desk.folder / "below").mkdir()
    (desk.folder / "below" / desk.clip.name).write_bytes(desk.clip.read_bytes())
    return desk.folder / "below"


@pytest.mark.parametrize("kind", BAD)
def test_what_does_not_fit_is_reported_in_one_line(
    meld: Meld, desk: Desk, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    status, ask, told = BAD[kind]
    asked = ask(desk)
    out = [] if "--out" in asked else ["--out", desk.folder / "new"]
    found, line = one_line(meld, *asked, *out)
    assert found == status, line
    assert told in line
    assert not (desk.folder / "new").exists()


def test_a_run_that_overflows_says_so_and_not_neutral(meld: Meld, desk: Desk) -> None:
    run = _run_that_overflows(desk)
    status, line = one_line(
        meld, desk.clip, *WORDS, "--model", run, "--out", desk.folder / "new", "--json"
    )
    assert status == 5
    assert line == (
        "meld: error: run: the model computes values that are not finite for 1 of 1 utterances "
        "(the first is number 1); train the run again"
    )
    assert not list((desk.folder / "new").glob("*.json"))


# --------------------------------------------------------------------- odd, and still to be used


def _long_header(content: bytes) -> bytes:
    """The movie, its tracks and its media say that they last ten hours."""
    content = bytearray(content)  # type: ignore[assignment]
    for name, at in ((b"mvhd", 12), (b"tkhd", 16), (b"mdhd", 12)):
        place = content.find(name)
        while place >= 0:
            scale = place + 4 + at
            units = int.from_bytes(content[scale : scale + 4], "big") if name != b"tkhd" else 1000
            length = place + 4 + (20 if name == b"tkhd" else at + 4)
            content[length : length + 4] = (36_000 * units).to_bytes(4, "big")  # type: ignore[index]
            place = content.find(name, place + 4)
    return bytes(content)


def _encrypted(desk: Desk) -> Path:
    """As it is sold: the samples say nothing without a key."""
    path = desk.folder / "odd.mp4"
    options = {
        "encryption_scheme": "cenc-aes-ctr",
        "encryption_key": "00112233445566778899aabbccddeeff",
        "encryption_kid": "ffeeddccbbaa99887766554433221100",
    }
    return write_clip(path, num_frames=24, sound=tone([440]), container_options=options)


ODD: dict[str, Callable[[Desk], Path]] = {
    "no picture": lambda desk: write_clip(
        desk.folder / "odd.wav", codec=None, sound=tone([440]), sound_codec="pcm_s16le"
    ),
    "no sound": lambda desk: write_clip(desk.folder / "odd.mp4", num_frames=24),
    "a header of ten hours": lambda desk: desk.file(
        "odd.mp4", _long_header(desk.clip.read_bytes())
    ),
    "cut off": lambda desk: desk.file("odd.mp4", desk.clip.read_bytes()[:-2000]),
    "encrypted": _encrypted,
    "sound that starts late": lambda desk: write_clip(
        desk.folder / "odd.mkv",
        num_frames=24,
        sound=tone([440]),
        sound_starts_s=3,
        container_options=AS_TIMED,
    ),
    "another extension": lambda desk: desk.file("odd.mkv", desk.clip.read_bytes()),
    "no extension": lambda desk: desk.file("odd", desk.clip.read_bytes()),
    "a name with a line in it": lambda desk: desk.file("od\nd.mp4", desk.clip.read_bytes()),
    "a name that is no number": lambda desk: desk.file("nan.mp4", desk.clip.read_bytes()),
    "a name in another script": lambda desk: desk.file("早上好 ☀.mp4", desk.clip.read_bytes()),
    "a name that looks like an address": lambda desk: desk.file(
        "concat:a|b.mp4", desk.clip.read_bytes()
    ),
}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_only_odd_is_predicted(meld: Meld, desk: Desk, kind: str) -> None:
    path = ODD[kind](desk)
    done = meld("predict", path, *WORDS, "--out", desk.folder / "out", "--json")
    assert done.status == 0, done.err
    [utterance] = done.json["files"][0]["timeline"]["utterances"]
    assert utterance["emotion"] is not None
    assert [each.name for each in (desk.folder / "out").iterdir()] == [f"{path.name}.meld.json"]


CUES: dict[str, tuple[str | bytes, list[tuple[int, int, str]], str]] = {
    "overlapping": (
        "1\n00:00:00,000 --> 00:00:00,900\nOne\n\n2\n00:00:00,300 --> 00:00:00,600\nTwo\n",
        [(0, 900, "One"), (300, 600, "Two")],
        "",
    ),
    "before the start": (
        "1\n-00:00:00,500 --> 00:00:00,400\nOne\n",
        [(0, 400, "One")],
        "1 times lie before the file's start and are cut there",
    ),
    "past the end": (
        SRT + "\n2\n00:00:09,000 --> 00:00:09,900\nBye\n",
        [(0, 900, "Hello!")],
        "1 utterances start after the end of the media",
    ),
    "backwards": (
        SRT + "\n2\n00:00:00,950 --> 00:00:00,920\nBye\n",
        [(0, 900, "Hello!")],
        "end before start",
    ),
    "empty": (
        SRT + "\n2\n00:00:00,910 --> 00:00:00,950\n\n",
        [(0, 900, "Hello!")],
        "",
    ),
    "another encoding": (
        SRT.replace("Hello!", "Olé!").encode("cp1252"),
        [(0, 900, "Olé!")],
        "not UTF-8; read as cp1252",
    ),
}


@pytest.mark.parametrize("kind", CUES)
def test_cues_that_are_odd_lose_no_other(meld: Meld, desk: Desk, kind: str) -> None:
    content, wanted, told = CUES[kind]
    desk.file("clip.srt", content)
    done = meld("predict", desk.clip, "--out", desk.folder / "out", "--json")
    assert done.status == 0, done.err
    utterances = done.json["files"][0]["timeline"]["utterances"]
    assert [(each["start_ms"], each["end_ms"], each["text"]) for each in utterances] == wanted
    assert told in done.err
    assert len(told_in(done.err)) == bool(told)
