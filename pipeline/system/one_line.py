"""Foreign text (from a server, a path, a command line) made safe for one line of output."""

import re

# Anchored at the start of a word: tried from every letter, a long word would take for ever.
_ADDRESS = re.compile(r"((?<!\w)\w+://)(?:[^/?#\s]*@)?([^?#\s]*)(?:[?#]\S*)?")


def is_utf_8(text: str) -> bool:
    """Whether UTF-8 can express it. The name of a file on Linux may be of any bytes, JSON can name
    half a character, and Python holds both."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def one_line(text: str) -> str:
    """Escapes line breaks, terminal controls and undecodable bytes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def without_secrets(text: str) -> str:
    """Removes user, password and query from URLs, because these are often secrets."""
    return _ADDRESS.sub(r"\1\2", text)
