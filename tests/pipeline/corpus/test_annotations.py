"""CSV to utterances: the real MELD files, both generations of them, and every wrong row."""

import dataclasses
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.corpus.annotations import (
    hash_rows,
    parse_time_s,
    read_annotations,
    read_corpus,
)
from pipeline.corpus.layout import clip_stem, find_annotations, parse_clip_stem
from pipeline.corpus.texts import normalise_text, with_context
from pipeline.errors import AnnotationError, InputError
from pipeline.schema import EMOTIONS, SENTIMENTS, SPLITS, ClipKey, Split, Utterance

REAL = Path(__file__).resolve().parents[3].parent / "shared" / "meld"
needs_meld = pytest.mark.skipif(
    not (REAL / "train_sent_emo.csv").is_file(), reason="the real MELD annotations are not here"
)
HEADER = "Dialogue_ID,Utterance_ID,Utterance,Emotion,Sentiment"
ROW = "0,0,Hello there,joy,positive"

WriteCsv = Callable[..., Path]


@pytest.fixture
def write_csv(tmp_path: Path) -> WriteCsv:
    def write(*rows: str, header: str = HEADER, end: str = "\n", encoding: str = "utf-8") -> Path:
        path = tmp_path / "train_sent_emo.csv"
        path.write_bytes("".join(line + end for line in (header, *rows)).encode(encoding))
        return path

    return write


def refusal(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, "train")
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize(
    ("split", "emotions", "sentiments"),
    [
        ("train", (4710, 1205, 268, 683, 1743, 271, 1109), (4710, 2334, 2945)),
        ("dev", (470, 150, 40, 111, 163, 22, 153), (470, 233, 406)),
        ("test", (1256, 281, 50, 208, 402, 68, 345), (1256, 521, 833)),
    ],
)
def test_real_annotations_have_the_published_counts(
    split: Split, emotions: tuple[int, ...], sentiments: tuple[int, ...]
) -> None:
    utterances = read_annotations(REAL / f"{split}_sent_emo.csv", split)
    by_emotion = Counter(utterance.emotion for utterance in utterances)
    by_sentiment = Counter(utterance.sentiment for utterance in utterances)
    assert tuple(by_emotion[name] for name in EMOTIONS) == emotions
    assert tuple(by_sentiment[name] for name in SENTIMENTS) == sentiments
    assert len(utterances) == {"train": 9989, "dev": 1109, "test": 2610}[split]
    assert len({utterance.key for utterance in utterances}) == len(utterances)
    assert all(utterance.text and utterance.speaker for utterance in utterances)
    assert all(utterance.end_s >= utterance.start_s for utterance in utterances)


@needs_meld
def test_real_text_holds_nothing_a_tokenizer_would_delete() -> None:
    for utterance in read_annotations(REAL / "test_sent_emo.csv", "test"):
        assert utterance.text == normalise_text(utterance.text)
        assert not any("\u0080" <= char <= "\u009f" for char in utterance.text)
        assert not set(utterance.text) & set("‘’“”…—")


@pytest.mark.heavy
@needs_meld
@pytest.mark.parametrize("split", SPLITS)
def test_the_older_copy_with_control_characters_reads_as_the_same_text(
    split: Split, tmp_path: Path
) -> None:
    """Older copies hold the cp1252 bytes of the quotes as C1 control characters."""
    name = f"{split}_sent_emo.csv"
    text = (REAL / name).read_text(encoding="utf-8")
    older = text.translate({ord(new): bytes([byte]).decode("latin-1") for new, byte in _CP1252})
    assert older != text
    (tmp_path / name).write_text(older, encoding="utf-8")
    as_published = read_annotations(REAL / name, split)
    as_copied = read_annotations(tmp_path / name, split)
    assert as_copied == as_published
    assert "".join(row.text for row in as_copied).encode() == (
        "".join(row.text for row in as_published).encode()
    )


def test_both_generations_of_a_planted_text_are_byte_identical(write_csv: WriteCsv) -> None:
    new = "“Y’know… caf\u00e9—that’s ‘it’\u00a0– right?”"
    older = new.translate({ord(each): bytes([byte]).decode("latin-1") for each, byte in _CP1252})
    texts = [
        read_annotations(write_csv(f"0,0,{text},joy,positive"), "train")[0].text
        for text in (new, older)
    ]
    read = "\"Y'know... café-that's 'it' - right?\""
    assert texts[0].encode() == texts[1].encode() == read.encode()


def test_ids_may_have_gaps_and_a_window_may_have_no_length(write_csv: WriteCsv) -> None:
    path = write_csv(
        "3,1,Hi,joy,positive,0:00:01,0:00:02",
        "3,5,Ho,joy,positive,00:00:02,00:00:02",
        header=f"{HEADER},StartTime,EndTime",
    )
    utterances = read_annotations(path, "train")
    assert [row.key[1:] for row in utterances] == [(3, 1), (3, 5)]
    assert [row.end_s - row.start_s for row in utterances] == [1, 0]


_CP1252 = [(char, char.encode("cp1252")[0]) for char in "‘’“”…—–"]


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        ("It\u0092s \u0093fine\u0094", 'It\'s "fine"'),
        ("It’s “fine”", 'It\'s "fine"'),
        ("Wait\u0085 what", "Wait... what"),
        ("a\u00a0b \t c\nd", "a b c d"),
        ("cafe\u0301", "caf\u00e9"),
        ("no\u0081thing", "nothing"),
        ("", ""),
    ],
)
def test_text_is_normalised(raw: str, text: str) -> None:
    assert normalise_text(raw) == text
    assert normalise_text(normalise_text(raw)) == text


def test_normalising_every_character_twice_changes_nothing_more() -> None:
    for code in range(0x3000):
        once = normalise_text(f"a{chr(code)}b\u0301{chr(code)}")
        assert normalise_text(once) == once


@pytest.mark.parametrize("word", ["None", "NA", "null", "nan", "NULL", "N/A", "#N/A", "True"])
def test_words_that_look_like_missing_values_stay_words(write_csv: WriteCsv, word: str) -> None:
    [utterance] = read_annotations(write_csv(f"0,0,{word},joy,positive"), "train")
    assert utterance.text == word


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("00:01:02,345", 62.345),
        ("1:01:02,345", 3662.345),
        ("0:00:07,50", 7.5),
        ("0:00:07.250", 7.25),
        (" 00:00:01 ", 1.0),
        ("1:2:3", 3723.0),
        ("00:03.5", 3.5),
        ("75:30,25", 4530.25),
        ("3.5", 3.5),
        ("3,5", 3.5),
        ("12", 12.0),
        ("1e-05", 0.00001),
        ("0 days 00:00:03.500000", 3.5),
    ],
)
def test_times_are_seconds(text: str, seconds: float) -> None:
    assert parse_time_s(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "-0:00:01", "0:00:0x", "0:00:01,", f"{'9' * 400}:00:00", "inf", "1:2:3:4", "-1", "9" * 10],
)
def test_what_is_no_time_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no time like"):
        parse_time_s(text)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_line_ends_and_byte_order_mark_do_not_matter(
    write_csv: WriteCsv, end: str, encoding: str
) -> None:
    [utterance] = read_annotations(write_csv(ROW, end=end, encoding=encoding), "dev")
    assert utterance.key == ClipKey("dev", 0, 0)
    assert (utterance.text, utterance.emotion, utterance.sentiment) == (
        "Hello there",
        "joy",
        "positive",
    )


def test_columns_go_by_name_and_others_are_passed_over(write_csv: WriteCsv) -> None:
    header = "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,StartTime"
    path = write_csv('7,"Well, ""hi""",Chandler, JOY ,Positive,3,4,8,"0:16:59,049"', header=header)
    [utterance] = read_annotations(path, "train")
    assert utterance.key == ClipKey("train", 3, 4)
    assert utterance.text == 'Well, "hi"'
    assert (utterance.speaker, utterance.emotion) == ("Chandler", "joy")
    assert (utterance.start_s, utterance.end_s) == (pytest.approx(1019.049), 0.0)


def test_empty_labels_mean_unlabelled(write_csv: WriteCsv) -> None:
    [utterance] = read_annotations(write_csv("0,0,Hi,, "), "train")
    assert utterance.emotion is None
    assert utterance.sentiment is None


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ((ROW, "0,1,Hi,bored,positive"), ("row 3", "Emotion", "bored", "neutral")),
        ((ROW, "0,1,Hi,joy,meh"), ("row 3", "Sentiment", "meh")),
        ((ROW, "x,1,Hi,joy,positive"), ("row 3", "Dialogue_ID", "'x'")),
        ((ROW, "0,-1,Hi,joy,positive"), ("row 3", "Utterance_ID", "'-1'")),
        ((ROW, "0,1.5,Hi,joy,positive"), ("row 3", "Utterance_ID", "'1.5'", "whole number")),
        ((ROW, "0,2.02401E+13,Hi,joy,positive"), ("row 3", "rounded by a spreadsheet")),
        ((ROW, f"0,{'9' * 19},Hi,joy,positive"), ("row 3", "19 digits", "at most 18")),
        ((ROW, "0,,Hi,joy,positive"), ("row 3", "Utterance_ID", "no id", "every row needs one")),
        ((ROW, "nan,1,Hi,joy,positive"), ("row 3", "Dialogue_ID", "no id")),
        ((ROW, "0,1,Hi,joy,positive", "0,0,Again,joy,positive"), ("dia0_utt0", "rows 2, 4")),
        ((ROW, "00,0,Again,joy,positive"), ("dia0_utt0", "rows 2, 3")),
        ((ROW, "0,1,Hi,joy"), ("row 3", "4 fields", "header has 5")),
        ((ROW, "0,1,Hi,joy,positive,more"), ("row 3", "6 fields", "header has 5")),
        (("0,0,Well, hi,joy,positive", "0,1,Oh, hi,joy,positive"), ("rows 2, 3", "6 fields")),
        ((ROW, '0,1,"never closed,joy,positive'), ("row 3", "not closed")),
        ((), ("a header and no rows",)),
    ],
)
def test_a_wrong_row_is_named(
    write_csv: WriteCsv, rows: tuple[str, ...], told: tuple[str, ...]
) -> None:
    message = refusal(write_csv(*rows))
    for part in told:
        assert part in message


def test_only_the_first_of_many_wrong_rows_are_listed(write_csv: WriteCsv) -> None:
    message = refusal(write_csv(*(f"0,{i},Hi,bored,positive" for i in range(100))))
    assert "rows 2, 3, 4, 5, 6 and 95 more" in message


@pytest.mark.parametrize("between", ['0,1,"two\nlines",joy,positive', ""])
def test_rows_are_counted_as_a_spreadsheet_counts_them(write_csv: WriteCsv, between: str) -> None:
    """A line break inside an utterance makes no new row; an empty line is one."""
    assert "row 4" in refusal(write_csv(ROW, between, "0,2,Hi,bored,positive"))


def test_what_is_no_time_is_reported_with_its_rows_and_keeps_nothing_from_being_read(
    write_csv: WriteCsv, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [f"0,{i},Hi,joy,positive,{start},{i + 1}" for i, start in enumerate(["0", *"abcdefg"])]
    path = write_csv(*rows, header=f"{HEADER},StartTime,EndTime")
    read = read_annotations(path, "train")
    assert [(row.start_s, row.end_s) for row in read] == [(0.0, 1.0), *[(0.0, 0.0)] * 7]
    (message,) = caplog.messages
    assert str(path) in message
    assert (
        "column StartTime, rows 3, 4, 5, 6, 7 and 2 more: no time in 7 cells, such as 'a'"
        in message
    )


@pytest.mark.parametrize("empty", ["", "nan", "NaN", "NaT", "None", "N/A", "-", " "])
def test_a_time_that_is_not_there_is_nothing_to_tell(
    write_csv: WriteCsv, caplog: pytest.LogCaptureFixture, empty: str
) -> None:
    path = write_csv(f"{ROW},{empty},0:00:09", header=f"{HEADER},StartTime,EndTime")
    [row] = read_annotations(path, "train")
    assert (row.start_s, row.end_s) == (0.0, 0.0)  # half a window is none
    assert not caplog.messages


@pytest.mark.parametrize(
    ("written", "read"),
    [("0.0", 0), ("12.00", 12), ("007", 7), (" 3 ", 3), ("20240101120000", 20240101120000)],
)
def test_ids_are_read_as_pandas_and_dates_write_them(
    write_csv: WriteCsv, written: str, read: int
) -> None:
    [row] = read_annotations(write_csv(f"{written},{written},Hi,joy,positive"), "train")
    assert row.key == ClipKey("train", read, read)


def test_a_clip_of_a_long_id_is_found_by_its_name() -> None:
    key = ClipKey("test", 20240101120000, 10**18 - 1)
    assert parse_clip_stem(clip_stem(key), "test") == (key, False)


def test_a_quote_that_is_closed_in_a_later_row_swallows_none(write_csv: WriteCsv) -> None:
    """By the grammar of CSV these are two rows, one of them with a line break in its text."""
    message = refusal(write_csv(ROW, '1,0,"Never, ever,joy,positive', '1,1,closed",anger,negative'))
    assert "row 3: 2 rows are read as one" in message
    two_lines = '1,0,"5, 6, 7\n8, 9",joy,positive'
    assert read_annotations(write_csv(two_lines), "train")[0].text == "5, 6, 7 8, 9"


@pytest.mark.parametrize("missing", HEADER.split(","))
def test_a_missing_column_is_named(write_csv: WriteCsv, missing: str) -> None:
    message = refusal(write_csv(ROW, header=HEADER.replace(missing, "Other")))
    assert f"no column {missing}" in message


def test_a_column_given_twice_is_refused(write_csv: WriteCsv) -> None:
    assert "Emotion" in refusal(write_csv(f"{ROW},anger", header=f"{HEADER},Emotion"))


def test_a_file_that_is_not_utf8_is_named_with_the_byte(write_csv: WriteCsv) -> None:
    message = refusal(write_csv("0,0,It’s,joy,positive", encoding="cp1252"))
    assert "not UTF-8" in message
    assert "0x92" in message


@pytest.mark.parametrize("content", [b"", b"\n\n", b"\xff\xfeD\x00i\x00", b"\x00" * 64])
def test_a_file_that_is_no_table_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "train_sent_emo.csv"
    path.write_bytes(content)
    refusal(path)


def test_a_folder_in_place_of_the_file_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path)


@pytest.mark.parametrize("folder", ["", "train", "MELD.Raw", "MELD.Raw/train"])
def test_the_csv_is_found_where_archives_put_it(tmp_path: Path, folder: str) -> None:
    place = tmp_path / folder
    place.mkdir(parents=True, exist_ok=True)
    (place / "train_sent_emo.csv").write_text(f"{HEADER}\n{ROW}\n")
    assert find_annotations(tmp_path, "train") == place / "train_sent_emo.csv"
    assert list(read_corpus(tmp_path, None)) == ["train"]


def test_an_absent_split_or_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "train_sent_emo.csv").write_text(f"{HEADER}\n{ROW}\n")
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv"):
        read_corpus(tmp_path, ("train", "dev"))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="file: a file; --data takes the folder"):
        read_corpus(tmp_path / "file", None)
    with pytest.raises(InputError, match="no such folder"):
        read_corpus(tmp_path / "nowhere", None)
    with pytest.raises(InputError, match="File name too long"):
        read_corpus(tmp_path / ("a" * 300), None)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no train_sent_emo\.csv"):
        read_corpus(tmp_path / "empty", None)


def test_a_table_of_any_name_is_told_how_it_would_be_read(tmp_path: Path) -> None:
    (tmp_path / "my_clips.csv").write_text(f"{HEADER}\n{ROW}\n")
    with pytest.raises(InputError, match=r"my_clips\.csv: if it holds .* rename it to train_sent"):
        read_corpus(tmp_path, None)
    (tmp_path / "notes.csv").write_text("")
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv or test_sent_emo\.csv$"):
        read_corpus(tmp_path, None)


def test_a_folder_is_no_table_whatever_its_name(tmp_path: Path) -> None:
    (tmp_path / "train_sent_emo.csv").mkdir()
    with pytest.raises(InputError, match=r"dev_sent_emo\.csv or test_sent_emo\.csv$"):
        read_corpus(tmp_path, None)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("train_sent_emo.xlsx", "an Excel workbook (.xlsx): open it in a spreadsheet program"),
        ("train_sent_emo.csv.gz", "a gzip archive: unpack it, as train_sent_emo.csv"),
        ("Train_Sent_Emo.CSV", "rename it to train_sent_emo.csv"),
        ("train/train_sent_emo (1).csv", "rename it to train_sent_emo.csv"),
    ],
)
def test_a_file_of_nearly_the_csvs_name_is_named(tmp_path: Path, name: str, told: str) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".xlsx":
        write_zip(path, "[Content_Types].xml", "xl/workbook.xml")
    else:
        path.write_bytes(b"\x1f\x8b\x08" if path.suffix == ".gz" else f"{HEADER}\n{ROW}".encode())
    for splits in (("train",), None):
        with pytest.raises(InputError) as caught:
            read_corpus(tmp_path, splits)  # type: ignore[arg-type]
        assert f"there is {path}" in str(caught.value)
        assert told in str(caught.value)


def test_a_split_that_is_passed_over_for_its_name_is_reported(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "dev_sent_emo.csv").write_text(f"{HEADER}\n{ROW}\n")
    write_zip(tmp_path / "train_sent_emo.xlsx", "xl/workbook.xml")
    assert list(read_corpus(tmp_path, None)) == ["dev"]
    (message,) = caplog.messages
    assert "train_sent_emo.xlsx, an Excel workbook" in message


def write_zip(path: Path, *names: str) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "<xml/>")


def test_context_is_what_was_said_before_in_the_same_dialogue(write_csv: WriteCsv) -> None:
    header = HEADER + ",Speaker"
    rows = [
        "0,2,Three,joy,positive,Ann",  # out of order in the file
        "0,0,One,joy,positive,Ann",
        "0,1,Two,joy,positive,Bob",
        "1,0,Elsewhere,joy,positive,Cat",
    ]
    read = read_annotations(write_csv(*rows, header=header), "train")
    assert [row.context for row in with_context(read, 2)] == [
        "Ann: One Bob: Two Ann:",
        "Ann:",
        "Ann: One Bob:",
        "Cat:",
    ]
    assert with_context(read, 1)[0].context == "Bob: Two Ann:"
    assert with_context(read, 0) == read


@pytest.mark.parametrize(
    "changed",
    [
        {"key": ClipKey("dev", 0, 1)},
        {"key": ClipKey("dev", 1, 0)},
        {"key": ClipKey("test", 0, 0)},
        {"text": "Hello."},
        {"speaker": "Ross"},
    ],
)
def test_whatever_decides_features_is_in_the_hash_that_ties_a_cache_to_its_rows(
    changed: dict,
) -> None:
    row = Utterance(
        key=ClipKey("dev", 0, 0), text="Hello", speaker="Joey", emotion="joy", sentiment="positive"
    )
    assert hash_rows([row]) != hash_rows([dataclasses.replace(row, **changed)])
    assert hash_rows([row]) != hash_rows([row, row])
    # Where its clip lies in the episode changes no feature.
    assert hash_rows([row]) == hash_rows([dataclasses.replace(row, start_s=1.0, end_s=2.0)])
    corrected = dataclasses.replace(row, emotion="anger", sentiment=None)
    assert hash_rows([row]) == hash_rows([corrected])  # no feature depends on a label
