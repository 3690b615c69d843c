"""Whether the service that uses a folder takes work on, for those who watch containers:

    python -m serving.probe FOLDER      exit status 0 where it does, else 1 and a line why

A service writes its address into its folder, so the probe asks the port that was really chosen.
"""

import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from pipeline.system.files import write_whole

_ADDRESS = "address"
_SECONDS = 4.0


@contextmanager
def announced(folder: Path, address: str) -> Iterator[None]:
    """The folder names the address as long as the block runs. Raises StorageError."""
    path = folder / _ADDRESS
    write_whole(path, address.encode())
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def probe(folder: Path) -> str | None:
    """None where the service is ready, else why it is not."""
    try:
        address = (folder / _ADDRESS).read_text(encoding="utf-8")
    except OSError as error:
        return f"no service uses {folder} ({error.strerror or error})"
    # A proxy of the environment has nothing to do with it.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        opener.open(f"{address}/readyz", timeout=_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        return f"{address} does not take work on (status {error.code})"
    except (OSError, HTTPException) as error:
        return f"{address} does not answer ({error})"
    return None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        sys.stderr.write("python -m serving.probe FOLDER, the --data-dir of the service\n")
        return 1
    reason = probe(Path(arguments[0]))
    if reason is not None:
        sys.stderr.write(f"{reason}\n")
    return int(reason is not None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
