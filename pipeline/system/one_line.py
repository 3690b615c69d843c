"""Text from elsewhere (a server, a path, a command line) made fit for one line of ours."""

import re

# From a word's begin on: tried from each of its letters, a long word would take for ever.
_ADDRESS = re.compile(r"((?<!\w)\w+://)(?:[^/?#\s]*@)?([^?#\s]*)(?:[?#]\S*)?")


def one_line(text: str) -> str:
    """With line breaks, terminal controls and undecodable bytes written out as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def without_secrets(text: str) -> str:
    """Addresses without user, password and query: those are often keys."""
    return _ADDRESS.sub(r"\1\2", text)
