"""How the threads of a computation wait for each other."""

import os

# Rounds of a loop, each of some 30 nanoseconds. GNU's OpenMP, which PyTorch for Linux brings, waits
# for 300,000 by default: a core that another program needs, and then the other thread, which all
# wait for, has none. Beside other work that makes extraction and fine-tuning 2 to 10 times slower,
# and a prediction, whose media are decoded by a process beside it, a quarter slower also on a
# machine that does nothing else. Fewer rounds make many small computations slower there (LOG.md).
ROUNDS = 10_000
ROUNDS_BESIDE_A_DECODER = 1_000


def wait_briefly(rounds: int = ROUNDS) -> None:
    """Where threads wait longer than that, they sleep. For libraries that this process and those
    that it starts have not loaded yet; `OMP_WAIT_POLICY` and `GOMP_SPINCOUNT`, if set, decide."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", str(rounds))
