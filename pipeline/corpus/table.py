"""Reads the cells of a CSV table as written by any program.

bytes -> text (UTF-8, UTF-16, UTF-32) -> header, whose known names tell the separator -> rows

Nothing is guessed from the rows, because speech is full of commas and semicolons. For files that
are not tables (a workbook, an archive, a web page) the error says what they are and how to make a
CSV.
"""

import codecs
import csv
import io
import re
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import AnnotationError
from pipeline.system.one_line import one_line

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}

# White space, and what some programs put around names and numbers without anyone seeing it.
_UNSEEN = " \t\r\n\v\f\u00a0\u00ad\u200b\u200e\u200f\u2060\ufeff"
# "sep=;" in the first line is Excel's; a program that saved the file again has filled the row up.
_SEPARATOR_LINE = re.compile(r'"?sep=(\\t|.)"?[,;\t|]*(?:\r\n|\r|\n)', re.IGNORECASE)
# The longer marks first: that of UTF-32 begins with that of UTF-16.
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_SHOWN_NAMES, _SHOWN_CHARS = 15, 200

_SAVE_AS_CSV = "open it in a spreadsheet program and save the sheet as CSV UTF-8"
_UNPACK = "unpack it"
# First bytes -> what a file is, and how a CSV is made of it.
_FORMATS: tuple[tuple[bytes, str, str], ...] = (
    (b"\xd0\xcf\x11\xe0", "an Excel workbook (.xls)", _SAVE_AS_CSV),
    (b"PAR1", "a Parquet file", "pandas makes a CSV of it: read_parquet, to_csv(index=False)"),
    (b"ARROW1", "a Feather file", "pandas makes a CSV of it: read_feather, to_csv(index=False)"),
    (b"\x89HDF", "an HDF5 file", "write its table as CSV"),
    (b"SQLite format 3", "an SQLite database", "write its table as CSV"),
    (b"\x1f\x8b", "a gzip archive", _UNPACK),
    (b"BZh", "a bzip2 archive", _UNPACK),
    (b"\xfd7zXZ", "an xz archive", _UNPACK),
    (b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (b"%PDF", "a PDF document", "get the table itself"),
    (b"{\\rtf", "an RTF document", "save it as plain text"),
)
_ZIP = b"PK\x03\x04"
_MARK_BYTES = 32
# Beginnings of text, told of only where the columns are not found.
_TEXT_FORMATS: tuple[tuple[tuple[str, ...], str, str], ...] = (
    (("{", "["), "JSON", "pandas makes a CSV of it: read_json, to_csv(index=False)"),
    (("<",), "a web page or XML", "download the file itself"),
    (("version https://git-lfs",), "a Git LFS pointer", "git lfs pull gets the file itself"),
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """The cells of a table's rows, empty ones left out.

    separator: as found
    numbers:   of the rows, as a spreadsheet counts them: an utterance with a line break in it is
               one row, an empty row counts as well, and a line "sep=;" does not
    header, rows: cells, as they stand there
    places:    which column has a known name
    """

    path: Path
    separator: str
    numbers: tuple[int, ...]
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    places: dict[str, int]

    def column(self, name: str) -> list[str]:
        """Its cells; where a program left out the empty ones at a row's end, they are "" again."""
        place = self.places[name]
        return [row[place] if place < len(row) else "" for row in self.rows]


def read_table(path: Path, *, required: Sequence[str], optional: Sequence[str]) -> Table:
    """Reads a table by the names of its columns: exact ones, else those that differ in case,
    spaces, dots, dashes or underscores alone.

    Raises:
        AnnotationError: what is wrong, in which row, and what to do.
    """
    try:
        found = other_format(path)
        content = b"" if found is not None else path.read_bytes()
    except OSError as error:
        raise AnnotationError(f"{path}: cannot be read: {error.strerror or error}") from error
    if found is not None:
        what, how = found
        raise AnnotationError(f"{path}: {what}, not a CSV; {how}, under this name")
    text = _decode(path, content)
    named = None
    line = _SEPARATOR_LINE.match(text)
    if line is not None:
        named, text = line[1].replace("\\t", "\t"), text[line.end() :]
    known = (*required, *optional)
    separator = _find_separator(text, known, named)
    numbered = dict(enumerate(_parse(path, text, separator), start=1))
    numbered = {number: row for number, row in numbered.items() if any(map(clean, row))}
    if not numbered:
        raise AnnotationError(f"{path}: empty; wanted a header and rows")
    header = tuple(numbered.pop(min(numbered)))
    places = _find_columns(path, header, known)
    missing = [name for name in required if name not in places]
    if missing:
        raise AnnotationError(_tell_missing(path, text, missing, header, separator))
    if not numbered:
        raise AnnotationError(f"{path}: a header and no rows")
    _check_shape(path, header, numbered, max(places[name] for name in required))
    return Table(
        path=path,
        separator=separator,
        numbers=tuple(numbered),
        header=header,
        rows=tuple(map(tuple, numbered.values())),
        places=places,
    )


def clean(cell: str) -> str:
    """Without white space and unseen characters around it."""
    return cell.strip(_UNSEEN)


def split_line(line: str, separator: str) -> list[str]:
    """One line's cells, whatever its quotes are."""
    return next(csv.reader([line], delimiter=separator), [])


def other_format(path: Path) -> tuple[str, str] | None:
    """What the file is by its first bytes, and how a CSV is made of it; None for plain text.

    Raises OSError.
    """
    with path.open("rb") as file:
        start = file.read(_MARK_BYTES)
    if start.startswith(_ZIP):
        return _name_zip(path)
    for mark, what, how in _FORMATS:
        if start.startswith(mark):
            return what, how
    return None


def _name_zip(path: Path) -> tuple[str, str]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError):
        return "a zip archive or an Excel workbook, cut off or damaged", "get it again"
    if any(name.startswith("xl/") for name in names):
        return "an Excel workbook (.xlsx)", _SAVE_AS_CSV
    if "content.xml" in names:
        return "an OpenDocument spreadsheet (.ods)", _SAVE_AS_CSV
    if any(name.startswith("Index/") for name in names):
        return "a Numbers spreadsheet", _SAVE_AS_CSV
    return "a zip archive", _UNPACK


# ------------------------------------------------------------------------------------ characters


def _decode(path: Path, content: bytes) -> str:
    marked = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    encoding = marked or _guess_encoding(content)
    try:
        return content.decode(encoding).lstrip("\ufeff")
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="ignore")
        # One character more, so that a row that begins there counts.
        row = sum(1 for _ in csv.reader(io.StringIO(f"{before}?", newline="")))
        raise AnnotationError(
            f"{path}: row {row}: not {encoding.removesuffix('-sig').upper()} (byte "
            f"{error.object[error.start]:#04x} at {error.start}); save it as UTF-8"
        ) from error


def _guess_encoding(content: bytes) -> str:
    """By the zero bytes beside the first character, which is one of ASCII in every header."""
    zeros = tuple(byte == 0 for byte in content[:4])
    if zeros == (False, True, True, True):
        return "utf-32-le"
    if zeros == (True, True, True, False):
        return "utf-32-be"
    if zeros == (False, True, False, True):
        return "utf-16-le"
    if zeros == (True, False, True, False):
        return "utf-16-be"
    return "utf-8"


# -------------------------------------------------------------------------------- rows and cells


def _find_separator(text: str, known: Iterable[str], named: str | None) -> str:
    """The one that finds most known names in the header, then most cells, so that a header without
    a known name is shown as it was meant; of equals the one that a line "sep=" named, then the
    comma."""
    wanted = {_plain(name) for name in known}
    candidates = [named] if named is not None else []
    candidates += [each for each in SEPARATORS if each != named]

    def count(separator: str) -> tuple[int, int]:
        """Known names, and cells where there are none."""
        try:
            cells = _first_row(text, separator)
        except (csv.Error, TypeError, ValueError):  # a character that cannot separate
            return -1, 0
        num_known = len(wanted & {_plain(cell) for cell in cells})
        return num_known, 0 if num_known else len(cells)

    best = max(candidates, key=count)  # the first of equals
    return best if count(best) >= (0, 0) else ","


def _first_row(text: str, separator: str) -> list[str]:
    _let_cells_be_long(text)
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator):
        if any(cell.strip(_UNSEEN + "".join(SEPARATORS)) for cell in row):
            return row
    return []


def _let_cells_be_long(text: str) -> None:
    """The library's limit is 131,072 characters a cell, for the whole process; a lecture has more.
    It only ever grows."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))


def _parse(path: Path, text: str, separator: str) -> list[list[str]]:
    """Parses strictly, or a stray quote would join cells and rows."""
    _let_cells_be_long(text)
    rows: list[list[str]] = []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    line = 1
    try:
        for row in reader:
            rows.append(row)
            line = reader.line_num + 1
    except csv.Error as error:
        number = len(rows) + 1
        place = f"row {number}" if line == number else f"row {number} (line {line} of the file)"
        raise AnnotationError(
            f"{path}: {place}: a quote is not closed, or is inside a quoted cell "
            f'({error}); inside a quoted cell write it twice (""), or take it out'
        ) from error
    return rows


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold()


def _find_columns(path: Path, header: Sequence[str], known: Sequence[str]) -> dict[str, int]:
    places = {}
    for name in known:
        exact = [place for place, cell in enumerate(header) if clean(cell) == name]
        alike = [place for place, cell in enumerate(header) if _plain(cell) == _plain(name)]
        found = exact or alike
        if len(found) > 1:
            written = ", ".join(repr(header[place]) for place in found)
            raise AnnotationError(
                f"{path}: more than one column {name} ({written}); leave one of them"
            )
        if found:
            places[name] = found[0]
    return places


def _tell_missing(
    path: Path, text: str, missing: Sequence[str], header: Sequence[str], separator: str
) -> str:
    start = text.lstrip()
    for beginnings, what, how in _TEXT_FORMATS:
        if start.startswith(beginnings):
            return f"{path}: {what}, not a CSV; {how}"
    names = [one_line(clean(cell)) for cell in header if clean(cell)]
    found = ", ".join(names[:_SHOWN_NAMES])[:_SHOWN_CHARS]
    between = SEPARATORS.get(separator, repr(separator))
    return (
        f"{path}: no column {', '.join(missing)}; its first row, read with {between} between "
        f"cells, is: {found}; rename the columns that hold them"
    )


def _check_shape(
    path: Path, header: Sequence[str], rows: dict[int, list[str]], last_required: int
) -> None:
    """A row may have fewer or more cells than the header only at its end and where they are empty:
    spreadsheets leave such cells out of some rows, and add them to others.

    Beside an empty last cell that is required, one more in some rows alone may as well come from a
    separator in a text without quotes: that is refused.
    """
    num_named = max(place for place, cell in enumerate(header) if clean(cell)) + 1
    are_alike = len({len(row) for row in rows.values()}) == 1
    ragged = {}
    for number, row in rows.items():
        num_filled = max(place for place, cell in enumerate(row) if clean(cell)) + 1
        is_clear = are_alike or len(row) < len(header) or bool(clean(row[last_required]))
        may_differ = num_filled <= num_named and len(row) > last_required and is_clear
        if len(row) != len(header) and not may_differ:
            ragged[number] = len(row)
    if ragged:
        first = next(iter(ragged))
        broken = any("\n" in cell or "\r" in cell for cell in rows[first])
        hint = (
            "is a quote before a line break not closed?"
            if broken
            else "a cell with a separator or a line break in it needs quotes around it"
        )
        raise AnnotationError(
            f"{path}: {tell_rows(list(ragged))}: {ragged[first]} fields, the header has "
            f"{len(header)}; {hint}"
        )


def tell_rows(numbers: Sequence[int], shown: int = 5) -> str:
    """ "row 3", "rows 2, 3, 4, 5, 6 and 95 more"."""
    listed = ", ".join(map(str, numbers[:shown]))
    rest = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return f"{'row' if len(numbers) == 1 else 'rows'} {listed}{rest}"
