"""Resources of the machine that this process may use; None if the system does not tell."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

# Size of Ray's object store: enough for decoded shards in flight (a clip is about 1 MB). More would
# only use memory.
OBJECT_STORE_BYTES = 512 * 1024 * 1024

_MEMORY_INFO = Path("/proc/meminfo")
_MEMORY_LIMIT = Path("/sys/fs/cgroup/memory.max")
_SHARED_MEMORY = Path("/dev/shm")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Bytes of a disk or of memory; None: the system does not tell."""

    total_bytes: int | None
    free_bytes: int | None


def num_cores() -> int:
    """CPU cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def share_cores(num_processes: int) -> int:
    """Threads for each of several parallel processes: the number of cores, or OMP_NUM_THREADS if it
    is set, divided by the number of processes."""
    told = os.environ.get("OMP_NUM_THREADS", "")
    allowed = int(told) if told.isdecimal() and int(told) else num_cores()
    return max(1, allowed // num_processes)


def memory() -> Space:
    """Main memory that this process may use; the limit of a container counts."""
    told = _memory_info()
    total, free = told.get("MemTotal"), told.get("MemAvailable")
    if total is None and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = _memory_limit()
    if total is not None and limit is not None and limit < total:
        total, free = limit, None if free is None else min(free, limit)
    return Space(total_bytes=total, free_bytes=free)


def shared_memory() -> Space | None:
    """The space of /dev/shm, where Ray's object store is on Linux; None if it does not exist."""
    return disk(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None


def disk(folder: Path) -> Space:
    """The disk of a folder, or of the nearest parent that exists."""
    folder = folder.absolute()
    # Path.exists raises for a name that is too long or a folder without permission.
    there = next(at for at in (folder, *folder.parents) if os.path.exists(at))  # noqa: PTH110
    try:
        usage = shutil.disk_usage(there)
    except OSError:
        return Space(total_bytes=None, free_bytes=None)
    return Space(total_bytes=usage.total, free_bytes=usage.free)


def _memory_info() -> dict[str, int]:
    """Bytes by name; empty if /proc/meminfo does not exist, as on macOS."""
    try:
        lines = _MEMORY_INFO.read_text().splitlines()
    except OSError:
        return {}
    fields = (line.split() for line in lines)
    return {words[0].rstrip(":"): int(words[1]) * 1024 for words in fields if len(words) == 3}


def _memory_limit() -> int | None:
    try:
        text = _MEMORY_LIMIT.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdecimal() else None  # "max" is no limit
