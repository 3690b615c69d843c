"""What the C library does with memory that is free again."""

import ctypes

LARGE_BYTES = 64 * 2**10
_M_MMAP_THRESHOLD = -3  # as in glibc's malloc.h


def return_large_blocks() -> bool:
    """From here on, blocks of `LARGE_BYTES` and more go back to the system as soon as they are
    free. False where the C library cannot be told so; glibc can.

    By itself it does that from 128 KiB on, but each such block that is freed raises this limit to
    its own size, up to 32 MiB. What is smaller then comes from the heap, and a small block behind
    a large one that is free keeps the heap as long as it is: a process that now and then holds many
    large blocks seems to lose memory (mallopt(3), M_MMAP_THRESHOLD).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(_M_MMAP_THRESHOLD, LARGE_BYTES) == 1
