"""Reads users' text files in the encodings that programs write."""

import codecs
from pathlib import Path

from pipeline.errors import InputError, StorageError

MOST_BYTES = 64 * 1024 * 1024
_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text, and remarks about its encoding for the user.

    Its lines end with "\\n". UTF-8, UTF-16 with a byte-order mark, and what is neither as cp1252.

    Raises InputError where it is no text, StorageError where it cannot be read.
    """
    if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
        raise InputError(f"{path}: not a regular file; name a file with text")
    try:
        if path.stat().st_size > MOST_BYTES:
            raise InputError(f"{path}: more than {MOST_BYTES >> 20} MiB; no transcript is so long")
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        return _checked(path, content.decode(encoding)), ()
    except UnicodeDecodeError as error:
        if encoding != "utf-8":
            raise InputError(f"{path}: not {encoding}, as its first bytes say ({error})") from error
        return _checked(path, content.decode("cp1252", errors="replace")), (
            "not UTF-8; read as cp1252",
        )


def _checked(path: Path, text: str) -> str:
    if "\0" in text:
        raise InputError(f"{path}: binary, or UTF-16 without its mark; save it as UTF-8")
    return text.replace("\r\n", "\n").replace("\r", "\n")
