"""Models are built one at a time, and the same wherever they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import RLock

from pipeline.system.extras import needs_extra

# Reentrant: an encoder may be made of several.
_one_at_a_time = RLock()


@contextmanager
def one_builder() -> Iterator[None]:
    """Inside it no other thread builds a model, and floats are float32 where nothing else is said.

    A model's first weights come from PyTorch's random numbers, and transformers sets PyTorch's
    default type while it loads one: both belong to the whole process. Threads that built models
    side by side would each get what the others had set, and could leave the process with another
    default type. What a caller has set is restored.
    """
    with needs_extra("torch"):
        import torch

    with _one_at_a_time:
        before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
