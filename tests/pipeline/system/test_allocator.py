"""Memory that is free again, in a process of its own: settings of the C library stay."""

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.heavy

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
blocks = [bytes(100_000) for _ in range(100)]  # the heap has room for some of them
held = num_mapped() - before
del blocks
print(held > 50, num_mapped() - before)
"""


SET = """
from pipeline.system.allocator import map_large_blocks
assert map_large_blocks()
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="glibc 2.33 tells")
@pytest.mark.parametrize(
    ("before", "wanted"), [("", "False 0"), (SET, "True 0")], ids=["as it is", "set"]
)
def test_a_block_of_an_upload_is_no_part_of_the_heap_however_large_others_were(
    before: str, wanted: str
) -> None:
    told = subprocess.check_output(
        [sys.executable, "-S", "-c", PROGRAM.format(before=before)], cwd=ROOT, text=True
    )
    assert told.strip() == wanted
