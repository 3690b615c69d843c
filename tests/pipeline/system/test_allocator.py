"""Memory that is free again, in a process of its own: settings of the C library stay."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
# A block that is freed first raises the limit of those that go back, unless it is fixed.
PROGRAM = """
import ctypes, sys
{before}
def num_mapped():
    class Told(ctypes.Structure):
        _fields_ = [(f"f{{n}}", ctypes.c_size_t) for n in range(10)]
    ask = ctypes.CDLL(None).mallinfo2
    ask.restype = Told
    return ask().f3  # hblks
large = bytes(2**21)
del large
before = num_mapped()
block = bytes(100_000)
held = num_mapped() - before
del block
print(held, num_mapped() - before)
"""


SET = """
from pipeline.system.allocator import return_large_blocks
assert return_large_blocks()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 tells")
@pytest.mark.parametrize(("before", "wanted"), [("", "0 0"), (SET, "1 0")], ids=["as it is", "set"])
def test_a_block_of_an_upload_goes_back_to_the_system_however_large_others_were(
    before: str, wanted: str
) -> None:
    told = subprocess.check_output(
        [sys.executable, "-S", "-c", PROGRAM.format(before=before)], cwd=ROOT, text=True
    )
    assert told.strip() == wanted
