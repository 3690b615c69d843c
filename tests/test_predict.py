"""Any media file in, a timeline out: it says of a clip what `meld evaluate` says of it."""

import csv
import dataclasses
import importlib.util
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import jsonschema
import numpy as np
import pytest

import meld as face
from fusion.data.load import load_split
from fusion.inference.checkpoint import read_checkpoint
from fusion.inference.media import PredictedUtterance, predict_spans
from fusion.inference.predict import predict_rows
from fusion.inference.predict_media import WordsConfig, predict_media, prepare_media
from fusion.inference.predictor import Predictor
from fusion.inference.recogniser import Passage, Recognised, Word
from fusion.inference.saved_features import FOLDER, SavedFeatures
from fusion.inference.segments import SpokenSpan
from fusion.inference.speech import SpeechConfig
from fusion.inference.timeline import SCHEMA_FILE
from fusion.model.dims import ModelConfig
from fusion.training.config import TrainConfig
from fusion.training.fit import FitConfig
from fusion.training.train import train_fusion
from pipeline.corpus.annotations import read_corpus
from pipeline.corpus.clips import locate_clips
from pipeline.schema import EMOTIONS, SENTIMENTS, MediaSpan, Modality, Utterance
from tests import crashing
from tests.conftest import Meld
from tests.media import tone, write_clip

pytestmark = pytest.mark.heavy

Train = Callable[..., Path]


@pytest.fixture(scope="module")
def train(features: Path, tmp_path_factory: pytest.TempPathFactory) -> Train:
    """train(fusion="attention", modalities=("text",)) -> a run, trained once."""
    made: dict[str, Path] = {}

    def once(*, modalities: tuple[Modality, ...] | None = None, **model: object) -> Path:
        name = f"{modalities} {sorted(model.items())}"
        if name not in made:
            config = TrainConfig(
                features=features,
                modalities=modalities,
                out=tmp_path_factory.mktemp("runs") / f"run-{len(made)}",
                model=ModelConfig(**model),  # type: ignore[arg-type]
                fit=FitConfig(epochs=2),
            )
            made[name] = train_fusion(config).run
        return made[name]

    return once


@pytest.fixture(scope="module")
def rows(corpus: Path) -> list[tuple[Utterance, Path]]:
    """The dev split: its one dialogue, and each row's clip."""
    located = locate_clips(corpus, "dev", read_corpus(corpus, ("dev",))["dev"], "fixed")
    return [(clip.utterance, clip.path) for clip in located if clip.path is not None]


def wanted(run: Path, features: Path) -> dict[str, np.ndarray]:
    """float64 [rows, classes] by head: what `meld evaluate` works with, calibrated."""
    checkpoint = read_checkpoint(run)
    data = load_split(features, "dev", modalities=checkpoint.dims.names, input="raw")
    cached = predict_rows(checkpoint, data, run="")
    decoding = checkpoint.decoding
    assert decoding is not None
    return {
        "emotion": np.exp(decoding.emotion.log_probabilities(cached.emotion_logits)),
        "sentiment": np.exp(decoding.sentiment.log_probabilities(cached.sentiment_logits)),
    }


def given(utterances: list[PredictedUtterance]) -> dict[str, np.ndarray]:
    found: dict[str, list[list[float]]] = {"emotion": [], "sentiment": []}
    for each in utterances:
        assert each.prediction is not None
        assert list(each.prediction.emotion.probabilities) == list(EMOTIONS)
        assert list(each.prediction.sentiment.probabilities) == list(SENTIMENTS)
        for head, probabilities in found.items():
            probabilities.append([*getattr(each.prediction, head).probabilities.values()])
    return {head: np.array(probabilities) for head, probabilities in found.items()}


def tolerance(run: Path) -> float:
    """In bfloat16 two ways of batching give features that differ in the third digit."""
    exact = all(spec.precision == "float32" for spec in read_checkpoint(run).recipe.encoders)
    return 1e-4 if exact else 0.03


@pytest.mark.parametrize(("fusion", "clips"), [("late", None), ("attention", 2)])
def test_every_clip_gets_the_probabilities_that_evaluate_gives_it(
    train: Train,
    features: Path,
    rows: list[tuple[Utterance, Path]],
    fusion: str,
    clips: int | None,
) -> None:
    """All clips of the split, or the first so many."""
    run = train(fusion=fusion)
    model = face.load(run)
    found = [next(model.predict(path, text=row.text)) for row, path in rows[:clips]]
    for head, probabilities in given(found).items():
        expected = wanted(run, features)[head][:clips]
        np.testing.assert_allclose(probabilities, expected, atol=tolerance(run))


def join(paths: list[Path], out: Path) -> list[tuple[int, int]]:
    """The clips one after the other, their packets untouched; where each lies, in ms."""
    borders, at_ms = [], 0
    with av.open(str(out), "w") as joined:
        streams: dict[str, av.stream.Stream] = {}
        for path in paths:
            with av.open(str(path)) as clip:
                length_ms = 0
                for stream in (clip.streams.video[0], clip.streams.audio[0]):
                    if stream.type not in streams:
                        streams[stream.type] = joined.add_stream_from_template(stream)
                    length_ms = max(length_ms, round(1000 * stream.duration * stream.time_base))
                for packet in clip.demux():
                    if packet.size == 0 or packet.stream.type not in streams:
                        continue
                    shift = round(at_ms / 1000 / packet.time_base)
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = streams[packet.stream.type]
                    joined.mux(packet)
            borders.append((at_ms, at_ms + length_ms))
            at_ms += -(-length_ms // 1000) * 1000  # each begins at a whole second
    return borders


def kind_of_sound(path: Path) -> tuple[int, str]:
    with av.open(str(path)) as clip:
        context = clip.streams.audio[0].codec_context
        return context.sample_rate, context.layout.name


@pytest.fixture(scope="module")
def talk(
    rows: list[tuple[Utterance, Path]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """The dialogue as one file, and its transcript."""
    folder = tmp_path_factory.mktemp("talk")
    borders = join([path for _, path in rows], folder / "talk.mp4")
    with (folder / "talk.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["Utterance", "Speaker", "StartTime", "EndTime"])
        for (row, _), (start_ms, end_ms) in zip(rows, borders, strict=True):
            table.writerow([row.text, row.speaker, start_ms / 1000, end_ms / 1000])
    return folder / "talk.mp4", folder / "talk.csv"


@pytest.mark.parametrize("future", [False, True])
def test_a_dialogue_as_one_file_gets_what_its_rows_get_in_the_corpus(
    train: Train, features: Path, talk: tuple[Path, Path], future: bool
) -> None:
    run = train(modalities=("text",), context="dialogue", future=future)
    media, transcript = talk
    timeline = face.load(run).timeline(media, transcript=transcript)
    for head, probabilities in given(list(timeline.utterances)).items():
        np.testing.assert_allclose(probabilities, wanted(run, features)[head], atol=tolerance(run))


def test_clips_joined_into_one_file_are_seen_and_heard_as_they_were_alone(
    train: Train, features: Path, talk: tuple[Path, Path], rows: list[tuple[Utterance, Path]]
) -> None:
    """Not to the bit: a clip's last picture now lasts until the next clip, and an AAC decoder's
    first samples come from the sound before."""
    run = train()
    media, transcript = talk
    first, *_ = kinds = [kind_of_sound(path) for _, path in rows]
    # One stream has one rate and one layout; the sound of the others cannot be read in it.
    alike = [row for row, kind in enumerate(kinds) if kind == first]
    assert len(alike) >= 3
    timeline = face.load(run).timeline(media, transcript=transcript)
    utterances = [timeline.utterances[row] for row in alike]
    assert [each.missing for each in utterances] == [{}] * len(alike)
    for head, probabilities in given(utterances).items():
        np.testing.assert_allclose(probabilities, wanted(run, features)[head][alike], atol=0.02)


def test_what_a_killed_prediction_left_is_taken_over_and_changes_nothing(
    train: Train, talk: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fusion.inference.media.UTTERANCES_PER_BATCH", 2)
    predictor = Predictor.load(train(modalities=("text", "audio")))
    media, transcript = talk
    prepared = prepare_media(media, WordsConfig(transcript=transcript), predictor)
    unbroken = list(predict_media(predictor, prepared))

    def saved() -> SavedFeatures:
        return SavedFeatures(tmp_path, media=prepared.media.sha256, model="m", spans=prepared.spans)

    broken = predict_media(predictor, prepared, saved=saved())
    first = list(itertools.islice(broken, 3))
    encoded = 0

    def count(self: Predictor, clips: list[object]) -> object:
        nonlocal encoded
        encoded += len(clips)
        return encode(self, clips)

    encode = Predictor.encode
    monkeypatch.setattr(Predictor, "encode", count)
    again = list(predict_media(predictor, prepared, saved=saved()))
    assert encoded == len(unbroken) - 4  # two batches of two were there
    assert again == unbroken
    assert first == unbroken[:3]
    # A damaged batch is made anew.
    [batch] = saved().folder.glob("*000001*")
    batch.write_bytes(batch.read_bytes()[:-5])
    assert list(predict_media(predictor, prepared, saved=saved())) == unbroken
    saved().remove()
    assert not (tmp_path / FOLDER).exists()


def test_other_words_or_another_model_take_nothing_over(tmp_path: Path) -> None:
    span = SpokenSpan(span=MediaSpan(end_ms=1000), text="Hi", text_source="given")
    folders = {
        SavedFeatures(tmp_path, media=media, model=model, spans=spans).folder
        for media, model, spans in (
            ("a", "m", [span]),
            ("b", "m", [span]),
            ("a", "n", [span]),
            ("a", "m", [dataclasses.replace(span, text="Ho")]),
            ("a", "m", [dataclasses.replace(span, speaker="Joey")]),
        )
    }
    assert len(folders) == 5


def test_an_utterance_of_which_nothing_is_there_is_reported_and_the_others_are_predicted(
    train: Train, tmp_path: Path
) -> None:
    silent = write_clip(tmp_path / "silent.mp4", num_frames=48)  # two seconds, no sound
    predictor = Predictor.load(train(modalities=("text", "audio")))
    spans = [
        SpokenSpan(span=MediaSpan(start_ms=0, end_ms=1000)),
        SpokenSpan(span=MediaSpan(start_ms=1000, end_ms=2000), text="Hi!", text_source="given"),
    ]
    nothing, words = predict_spans(predictor, silent, spans)
    assert nothing.prediction is None
    assert nothing.error is not None
    assert "audio: the file has no sound" in nothing.error
    assert words.prediction is not None
    assert words.missing == {"audio": "the file has no sound"}


# --------------------------------------------------------------------------- the command line


def test_the_command_writes_what_it_shows_and_replaces_only_its_own_files(
    meld: Meld, train: Train, talk: tuple[Path, Path], tmp_path: Path
) -> None:
    media, transcript = talk
    own = tmp_path / "talk.mp4.srt"
    own.write_text("mine")
    arguments = (
        "predict",
        media,
        "--transcript",
        transcript,
        "--model",
        train(),
        "--out",
        tmp_path,
    )
    done = meld(*arguments, "--format", "json,csv,srt,vtt,html", "--json")
    assert done.status == 0
    names = sorted(path.name for path in tmp_path.iterdir() if path != own)
    assert names == [f"talk.mp4.meld.{kind}" for kind in ("csv", "html", "json", "srt", "vtt")]
    assert own.read_text() == "mine"
    written = json.loads((tmp_path / "talk.mp4.meld.json").read_text())
    jsonschema.validate(written, json.loads(SCHEMA_FILE.read_text()))
    assert done.json["files"][0]["timeline"] == written
    assert str(media.parent) not in json.dumps(written)  # no folder travels
    again = meld(*arguments)
    assert again.status == 0
    assert written["utterances"][0]["emotion"]["label"] in again.out
    assert "0:00.0" in again.out
    assert json.loads((tmp_path / "talk.mp4.meld.json").read_text()) == written


def test_one_format_of_one_file_goes_to_stdout(
    meld: Meld, train: Train, talk: tuple[Path, Path], tmp_path: Path
) -> None:
    media, transcript = talk
    arguments = (
        "predict",
        media,
        "--transcript",
        transcript,
        "--model",
        train(modalities=("text", "audio")),
        "--out",
        "-",
    )
    done = meld(*arguments, "--format", "csv")
    assert done.status == 0
    assert done.out.startswith("file,id,start_ms")
    assert len(list(csv.DictReader(done.out.splitlines()))) > 1
    refused = meld(*arguments, "--format", "csv,json")
    assert (refused.status, refused.out) == (2, "")


def test_subtitles_beside_a_file_are_found_and_named(
    meld: Meld, train: Train, tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.mp4", num_frames=48, sound=tone([440, 660]))
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:01,500\nHello there!\n")
    done = meld(
        "predict",
        tmp_path,
        "--model",
        train(modalities=("text", "audio")),
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.status == 0
    [file] = done.json["files"]
    assert file["timeline"]["segmentation"]["file"] == "a.srt"
    assert file["timeline"]["utterances"][0]["text"] == "Hello there!"


def test_verbose_names_model_device_precision_utterances_and_what_is_decoded(
    meld: Meld, train: Train, tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.mp4", num_frames=24, sound=tone([440]))
    run = train()
    arguments = ("predict", tmp_path / "a.mp4", "--text", "Hello!", "--model", run, "--verbose")
    shown = meld(*arguments, "--out", tmp_path / "out")
    assert shown.status == 0, shown.err
    assert f"meld: model {run} (" in shown.err
    assert "in float32) on cpu" in shown.err
    assert "meld: a.mp4: 1.0 s, utterances: 1, from whole" in shown.err
    assert "meld: a.mp4: utterances to encode: 1, decoding " in shown.err


def test_settings_of_hearing_are_refused_where_every_file_has_subtitles(
    meld: Meld, train: Train, tmp_path: Path
) -> None:
    write_clip(tmp_path / "a.mp4", num_frames=24, sound=tone([440]))
    (tmp_path / "a.srt").write_text("1\n00:00:00,000 --> 00:00:00,500\nHello!\n")
    settings = tmp_path / "heard.toml"
    settings.write_text("[words.speech]\njoin_ms = 1000\n")
    arguments = ("predict", tmp_path, "--model", train(), "--config", settings)
    refused = meld(*arguments, "--out", tmp_path / "out")
    assert refused.status == 2
    assert "the words of a.mp4 are from a.srt; leave words.speech out" in refused.err
    assert not (tmp_path / "out").exists()


def test_one_bad_file_of_several_is_reported_and_the_others_are_done(
    meld: Meld, train: Train, tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in ("a", "c"):
        write_clip(folder / f"{name}.mp4", num_frames=24, sound=tone([440]))
        (folder / f"{name}.srt").write_text("1\n00:00:00,000 --> 00:00:01,000\nHello!\n")
    (folder / "b.mp4").write_text("<html>404")
    done = meld(
        "predict",
        folder,
        "--model",
        train(modalities=("text", "audio")),
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.status == 3
    assert "b.mp4: a web page" in done.err
    assert [each["timeline"] is not None for each in done.json["files"]] == [True, False, True]


def test_a_file_that_crashes_its_decoder_is_reported_and_what_was_done_of_it_is_kept(
    meld: Meld,
    train: Train,
    talk: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fusion.inference.media.UTTERANCES_PER_BATCH", 1)
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    media, _ = talk
    cues = [f"{n}\n00:00:0{n},000 --> 00:00:0{n},900\nHello!\n" for n in range(4)]
    for name in ("bad", "good"):
        (folder / f"{name}.mp4").write_bytes(media.read_bytes())
        (folder / f"{name}.srt").write_text("\n".join(cues))
    arguments = ("--model", train(modalities=("text", "audio")), "--out", out)
    with monkeypatch.context() as patch:
        patch.setattr("pipeline.decode.process.decode_spans", crashing.decode_all_but_bad)
        done = meld("predict", folder, *arguments, "--json")
        assert done.status == 3
        line, count = [each for each in done.err.splitlines() if each.startswith("meld: ")]
        assert count == "meld: 1 of 2 files could not be predicted"
        assert (
            "bad.mp4: the decoder process ended while it read this file (SIGABRT) after 1.9 s of it"
            in line
        )
        assert [each["timeline"] is not None for each in done.json["files"]] == [False, True]
        alone = meld("predict", folder / "bad.mp4", *arguments)
        assert (alone.status, alone.out, alone.err.count("meld: ")) == (4, "", 1)
    batches = [path.name for path in (out / FOLDER).rglob("*.safetensors")]
    assert sorted(batches) == ["batch-000000.safetensors", "batch-000001.safetensors"]
    assert meld("predict", folder / "bad.mp4", *arguments).status == 0  # with a decoder that can
    timelines = [
        json.loads((out / f"{name}.mp4.meld.json").read_text()) for name in ("bad", "good")
    ]
    assert timelines[0]["utterances"] == timelines[1]["utterances"]
    assert not (out / FOLDER).exists()


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return write_clip(tmp_path / "clip.mp4", num_frames=24, sound=tone([440]))


def test_utterances_that_are_asked_for_later_are_of_the_file_that_was_named(
    train: Train, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = face.load(train())
    wanted = [*model.predict(clip, text="Hi")]
    monkeypatch.chdir(tmp_path)
    later = model.predict(clip.name, text="Hi")
    monkeypatch.chdir("/")
    assert [*later] == wanted


def test_a_model_in_python_speaks_of_arguments(
    train: Train, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = face.load(train(modalities=("text",)))
    assert model.modalities == ("text",)
    with pytest.raises(face.InputError, match="of its 1 utterances lies between"):
        model.predict(clip, text="Hi", start=5.0)
    with pytest.raises(face.UsageError, match=r"end 1\.0 must be after start 2\.0"):
        model.predict(clip, text="Hi", start=2.0, end=1.0)
    with pytest.raises(face.UsageError, match="subtitles and text: the words"):
        model.predict(clip, text="Hi", subtitles="talk.srt")
    with pytest.raises(face.UsageError, match=r"^no_text=True: "):
        model.predict(clip, no_text=True)

    def break_off(*_: object, **__: object) -> Iterator[PredictedUtterance]:
        raise face.InputError("take the part that can be read: --end")
        yield

    monkeypatch.setattr("fusion.inference.predict_media.predict_media", break_off)
    for use in (
        lambda: next(model.predict(clip, text="Hi")),
        lambda: model.timeline(clip, text="Hi"),
    ):
        with pytest.raises(face.InputError, match=r"can be read: end$"):
            use()


# ------------------------------------------------------------------------------------ by ear

needs_ears = pytest.mark.skipif(
    importlib.util.find_spec("faster_whisper") is None, reason="the extra asr is not installed"
)


@needs_ears
def test_a_file_without_subtitles_is_heard(
    meld: Meld, train: Train, rows: list[tuple[Utterance, Path]], tmp_path: Path
) -> None:
    path = rows[0][1]
    done = meld("predict", path, "--model", train(), "--out", tmp_path, "--json")
    assert done.status == 0, done.err
    [file] = done.json["files"]
    jsonschema.validate(file["timeline"], json.loads(SCHEMA_FILE.read_text()))
    told = file["timeline"]["segmentation"]
    assert told["source"] == "speech"
    assert told["speech"]["recogniser"]["name"] == "tiny.en"
    [heard] = file["timeline"]["utterances"]
    assert {"text", "video", "audio"} >= set(heard["modalities"])
    assert heard["emotion"] is not None
    assert heard["text_source"] in ("recognised", "none")  # a synthetic voice may not be believed
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"{path.name}.meld.json"]


@needs_ears
def test_media_without_speech_give_no_utterance_and_a_note(
    meld: Meld, train: Train, clip: Path, tmp_path: Path
) -> None:
    done = meld(
        "predict",
        clip,
        "--model",
        train(modalities=("text", "audio")),
        "--out",
        tmp_path / "out",
        "--json",
    )
    assert done.status == 0
    assert done.json["files"][0]["timeline"]["utterances"] == []
    assert "no speech was found in it" in done.err


class Ears:
    """Hears the same two words in whatever it is given, and counts how often."""

    name, fingerprint, languages = "ears", "sha256:0", ("en",)

    def __init__(self) -> None:
        self.heard = 0

    def __enter__(self) -> "Ears":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def recognise(self, samples: np.ndarray, language: str | None) -> Recognised:
        self.heard += 1
        half_s = len(samples) / 32_000
        words = (
            Word(start_s=0, end_s=half_s, text=" Hello"),
            Word(start_s=half_s, end_s=2 * half_s, text=" there."),
        )
        return Recognised(passages=(Passage(words=words),))


@needs_ears
def test_speech_recognised_before_a_kill_is_not_recognised_again(
    train: Train,
    rows: list[tuple[Utterance, Path]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ears = Ears()
    monkeypatch.setattr("fusion.inference.hearing.load_recogniser", lambda name: ears)
    predictor = Predictor.load(train())
    path = rows[0][1]
    unbroken = prepare_media(path, WordsConfig(), predictor)
    assert [span.text for span in unbroken.spans] == ["Hello there."]
    first = prepare_media(path, WordsConfig(), predictor, saved_in=tmp_path)
    assert ears.heard == 2
    again = prepare_media(path, WordsConfig(), predictor, saved_in=tmp_path)
    assert ears.heard == 2
    assert again.spans == first.spans == unbroken.spans
    assert again.segmentation == first.segmentation
    # Other settings are heard anew, and so is what is damaged.
    other = WordsConfig(speech=SpeechConfig(join_ms=1000))
    prepare_media(path, other, predictor, saved_in=tmp_path)
    assert ears.heard == 3
    assert first.saved is not None
    [kept] = first.saved.folder.iterdir()
    kept.write_bytes(kept.read_bytes()[:-3])
    assert prepare_media(path, WordsConfig(), predictor, saved_in=tmp_path).spans == first.spans
    assert ears.heard == 4


@needs_ears
def test_without_words_utterances_are_where_somebody_speaks(
    train: Train, rows: list[tuple[Utterance, Path]]
) -> None:
    timeline = face.load(train()).timeline(rows[0][1], no_text=True)
    [heard] = timeline.utterances
    assert (heard.spoken.text, heard.spoken.text_source) == ("", "none")
    assert heard.prediction is not None
    assert [part.modality for part in heard.prediction.parts] == ["video", "audio"]
    assert heard.missing == {"text": "no words are known"}


def test_without_words_utterances_are_where_subtitles_say(train: Train, clip: Path) -> None:
    clip.with_suffix(".srt").write_text("1\n00:00:00,200 --> 00:00:00,700\nHello\n")
    [told] = face.load(train()).timeline(clip, no_text=True).utterances
    assert (told.spoken.span.start_ms, told.spoken.span.end_ms) == (200, 700)
    assert (told.spoken.text, told.missing) == ("", {"text": "no words are known"})


@pytest.fixture(autouse=True)
def nothing_is_left_in_the_repository() -> Iterator[None]:
    yield
    assert not Path("predictions").exists()
