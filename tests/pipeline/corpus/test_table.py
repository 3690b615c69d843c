"""CSV tables of every dialect: the same rows, whichever program wrote them, and what is none."""

import codecs
import csv
import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.corpus.annotations import read_annotations
from pipeline.corpus.table import read_table
from pipeline.errors import AnnotationError

# Commas, semicolons, tabs, quotes and bars in what is said; MELD's own order of columns.
HEADER = (
    "Sr No.,Utterance,Speaker,Emotion,Sentiment,Dialogue_ID,Utterance_ID,Season,Episode,"
    "StartTime,EndTime"
).split(",")
TEXTS = ["Hello, my friend!", "One; two; three\u2026", 'He said "no", twice', "a\tb | c", "\u00d6l"]
ROWS = [
    [str(i), text, "Ann", "joy", "positive", "3", str(i), "1", "1", "00:00:01,000", "00:00:02,500"]
    for i, text in enumerate(TEXTS)
]
READ = ["Hello, my friend!", "One; two; three...", 'He said "no", twice', "a b | c", "\u00d6l"]


def as_csv(rows: list[list[str]] = ROWS, header: list[str] = HEADER, separator: str = ",") -> str:
    text = io.StringIO()
    writer = csv.writer(text, delimiter=separator, lineterminator="\r\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


@pytest.fixture
def save(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "train_sent_emo.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


Save = Callable[[str | bytes], Path]


def texts(path: Path) -> list[str]:
    rows = read_annotations(path, "train")
    assert [row.key[1:] for row in rows] == [(3, i) for i in range(len(rows))]
    assert {(row.emotion, row.sentiment, row.speaker) for row in rows} == {
        ("joy", "positive", "Ann")
    }
    assert {(row.start_s, row.end_s) for row in rows} == {(1.0, 2.5)}
    return [row.text for row in rows]


def refusal(path: Path) -> str:
    with pytest.raises(AnnotationError) as caught:
        read_annotations(path, "train")
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    return message


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("above", ["", "sep={}\r\n", '"sep={}"\r\n', "SEP={}\n", "sep={},,,,\r\n"])
def test_the_header_tells_the_separator_whatever_is_said(
    save: Save, separator: str, above: str
) -> None:
    path = save(above.format(separator) + as_csv(separator=separator))
    assert texts(path) == READ


def test_a_line_that_names_another_separator_than_the_header_has_is_passed_over(save: Save) -> None:
    assert texts(save("sep=;\r\n" + as_csv())) == READ


def test_a_separator_that_only_such_a_line_can_tell_is_taken(save: Save) -> None:
    assert texts(save("sep=^\r\n" + as_csv(separator="^"))) == READ


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("marks", [0, 1, 2])
@pytest.mark.parametrize("separator", [",", ";"])
def test_every_unicode_is_read_with_and_without_its_mark(
    save: Save, encoding: str, marks: int, separator: str
) -> None:
    content = "\ufeff" * marks + as_csv(separator=separator)
    assert texts(save(content.encode(encoding))) == READ


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le"])
def test_bytes_that_are_no_characters_are_named_with_their_row(save: Save, encoding: str) -> None:
    content = as_csv().encode(encoding)
    third = content.index("He said".encode(encoding))
    wrong = b"\x92" if encoding == "utf-8" else b"\x00\xdc"
    message = refusal(save(content[:third] + wrong + content[third:]))
    assert "row 4: not UTF-" in message
    assert "save it as UTF-8" in message


def test_half_a_character_at_the_end_is_named(save: Save) -> None:
    assert "row 7: not UTF-16" in refusal(
        save(codecs.BOM_UTF16_LE + as_csv().encode("utf-16-le") + b"x")
    )


@pytest.mark.parametrize(
    "change",
    [
        str.upper,
        str.lower,
        lambda name: f"  {name}\u00a0",
        lambda name: f"\u200b{name}",
        lambda name: name.replace("_", " "),
    ],
)
def test_names_of_columns_may_differ_in_case_and_spaces(
    save: Save, change: Callable[[str], str]
) -> None:
    assert texts(save(as_csv(header=[change(name) for name in HEADER]))) == READ


def test_of_alike_names_the_exact_one_is_taken_and_two_others_are_refused(save: Save) -> None:
    rows = [[*row, "anger"] for row in ROWS]
    assert texts(save(as_csv(rows, [*HEADER, "emotion"]))) == READ
    both = [name.replace("Emotion", "emotion") for name in HEADER]
    message = refusal(save(as_csv(rows, [*both, "EMOTION"])))
    assert "more than one column Emotion ('emotion', 'EMOTION')" in message


def _add(cells: int, *, header: int = 0, rows: list[int] | None = None) -> str:
    chosen = range(len(ROWS)) if rows is None else rows
    more = [[*row, *([""] * cells if i in chosen else [])] for i, row in enumerate(ROWS)]
    return as_csv(more, [*HEADER, *[""] * header])


HARMLESS = {
    "a comma at each row's end": _add(1),
    "a comma at one row's end": _add(1, rows=[2]),
    "commas at all ends": _add(3, header=3),
    "commas at the header's end": _add(0, header=2),
    "an empty column between": as_csv(
        [[*row[:2], "", *row[2:]] for row in ROWS], [*HEADER[:2], "", *HEADER[2:]]
    ),
    "two unknown columns of one name": as_csv(
        [[*row, "x", "y"] for row in ROWS], [*HEADER, "Notes", "Notes"]
    ),
    "a column without a name": as_csv([[*row, "x"] for row in ROWS], [*HEADER, ""]),
    "empty rows at the end": as_csv() + "\r\n" + "," * 10 + "\r\n\r\n",
    "empty rows between": as_csv([ROWS[0], [""] * 11, [" "] * 11, [], *ROWS[1:]]),
    "empty lines above": "\r\n,,,\r\n" + as_csv(),
}


@pytest.mark.parametrize("what", HARMLESS)
def test_empty_cells_columns_and_rows_are_no_reason_to_refuse(save: Save, what: str) -> None:
    assert texts(save(HARMLESS[what])) == READ


def test_empty_cells_that_a_spreadsheet_left_out_are_empty(save: Save) -> None:
    """Excel writes no separators for empty cells at the end of some rows."""
    path = save(as_csv([ROWS[0], ROWS[1][:9]]))
    assert [(row.start_s, row.end_s) for row in read_annotations(path, "train")] == [
        (1.0, 2.5),
        (0.0, 0.0),
    ]


def test_one_cell_too_many_in_some_rows_is_reported_though_the_last_ones_are_empty(
    save: Save,
) -> None:
    """ "Well, hi" without quotes, and no labels: nothing else would tell."""
    header = "Dialogue_ID,Utterance_ID,Utterance,Speaker,Emotion,Sentiment"
    message = refusal(save(f"{header}\n0,0,Hi,Ann,,\n0,1,Well, hi,Ann,,\n"))
    assert "row 3: 7 fields, the header has 6" in message
    assert "needs quotes" in message


@pytest.mark.parametrize(
    "words",
    [
        '"It" is, a table.',
        '"It is \\"a, so called\\" table."',
        '"It is a table.',
        'It is "a table.\r\n7,"so',
    ],
)
@pytest.mark.parametrize("separator", [",", ";"])
def test_a_stray_quote_is_reported_with_its_row(save: Save, words: str, separator: str) -> None:
    many = [[*row[:5], str(i), "0", *row[7:]] for i, row in enumerate(ROWS * 40)]
    lines = as_csv(many, separator=separator).split("\r\n")
    assert len(lines) == 202
    lines[150] = separator.join(["149", words, "Ann", "joy", "positive", "149", "0", *"11", "", ""])
    message = refusal(save("\r\n".join(lines)))
    assert any(f"row {row}" in message for row in (151, 152))


def test_a_row_after_one_of_two_lines_is_reported_with_its_line_too(save: Save) -> None:
    two_lines = [*ROWS[0][:1], "one\ntwo", *ROWS[0][2:]]
    text = as_csv([two_lines]) + '1,"It" is,Ann,joy,positive,3,1,1,1,,\r\n'
    assert "row 3 (line 4 of the file)" in refusal(save(text))


def test_a_whole_lecture_in_one_cell_is_read(save: Save) -> None:
    lecture = "and so on " * 20_000
    [row] = read_annotations(save(as_csv([[ROWS[0][0], lecture, *ROWS[0][2:]]])), "train")
    assert row.text == lecture.strip()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "an Excel workbook (.xls)"),
        (b"PAR1\x15\x04", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "a gzip archive, not a CSV; unpack it"),
        (b"PK\x03\x04", "cut off or damaged"),
        (b'[{"Utterance": "Hi"}]', "JSON, not a CSV; pandas makes a CSV of it: read_json"),
        (b'{"Utterance": "Hi"}\n{"Utterance": "Ho"}\n', "JSON"),
        (b"<!DOCTYPE html>\n<html>", "a web page or XML"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
        (b"\r\n", "empty"),
        (b"\x00" * 64, "no column"),
        (b"Some words.\n", "no column Dialogue_ID"),
    ],
)
def test_what_is_no_table_is_named(save: Save, content: bytes, told: str) -> None:
    assert told in refusal(save(content))


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("[Content_Types].xml", "xl/workbook.xml"), "an Excel workbook (.xlsx)"),
        (("mimetype", "content.xml"), "an OpenDocument spreadsheet (.ods)"),
        (("Index/Document.iwa",), "a Numbers spreadsheet"),
        (("train_sent_emo.csv",), "a zip archive, not a CSV; unpack it"),
    ],
)
def test_a_workbook_is_named_with_the_way_to_make_a_csv(
    tmp_path: Path, names: tuple[str, ...], told: str
) -> None:
    path = tmp_path / "train_sent_emo.csv"
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, "<xml/>")
    assert told in refusal(path)


def test_a_missing_column_is_reported_with_those_that_were_found_and_how(save: Save) -> None:
    message = refusal(save("Dialogue_ID;Utterance;Emotion\n0;Hi;joy\n"))
    assert "no column Utterance_ID, Sentiment" in message
    assert "read with semicolons between cells, is: Dialogue_ID, Utterance, Emotion" in message


def test_a_header_in_another_language_is_shown_cell_by_cell_as_it_is_written(save: Save) -> None:
    message = refusal(save("Dialog;Äußerung​;Gefühl\n1;Hallo, du;Freude\n"))
    assert "read with semicolons between cells, is: Dialog, Äußerung, Gefühl;" in message
    assert message.endswith("rename the columns that hold them")


def test_rows_are_numbered_as_they_stand_in_the_file(save: Save) -> None:
    table = read_table(save("\nA,B\n\n1,2\n,\n3,\n"), required=["A"], optional=["B", "C"])
    assert table.numbers == (4, 6)
    assert (table.column("A"), table.column("B")) == (["1", "3"], ["2", ""])
    assert "C" not in table.places
