"""Optional parts: what is told where the package of one is not installed."""

from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.errors import UsageError

# Packages of ours: that one of their modules is missing is a bug.
_OURS = ("pipeline", "fusion", "serving", "console", "meld")


@contextmanager
def needs_extra(name: str) -> Iterator[None]:
    """Context for the imports of an optional part; a missing package is a UsageError that names the
    command to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in _OURS:
            raise
        raise UsageError(
            f"{error.name} is not installed; get it with: pip install 'meld[{name}]'"
        ) from error
