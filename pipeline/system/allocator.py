"""What the C library does with memory that is free again."""

import ctypes

LARGE_BYTES = 64 * 2**10
_M_MMAP_THRESHOLD = -3  # as in glibc's malloc.h


def map_large_blocks() -> bool:
    """From here on, the heap does not grow for blocks of `LARGE_BYTES` and more: where it has no
    room, they are mapped by themselves, and go back to the system as soon as they are free. False
    where the C library cannot be told so; glibc can.

    By itself it does that from 128 KiB on, but each such block that is freed raises this limit to
    its own size, up to 32 MiB (mallopt(3), M_MMAP_THRESHOLD). What is smaller then makes the heap
    grow, and a small block behind it keeps the heap as long as it is: a process that now and then
    holds many large blocks seems to lose memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) == 1
