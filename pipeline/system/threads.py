"""How the threads of a computation wait for each other."""

import os

# Rounds of a loop, some 0.1 ms. GNU's OpenMP, which PyTorch for Linux brings, waits for
# milliseconds by default: a core that another program needs, and then the other thread, which all
# wait for, has none. Beside other work that made extraction and fine-tuning 2 to 10 times slower,
# and shorter loops than this one slow them down where there is no other work (LOG.md).
SPINS = "10000"


def wait_briefly() -> None:
    """Where threads wait longer than `SPINS`, they sleep. For libraries that this process and those
    that it starts have not loaded yet; `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT`, if set, decide."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPINS)
