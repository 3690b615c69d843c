"""`pytest -p tests.avx2`: this machine is taken for one whose processor has AVX2 alone.

PyTorch, oneDNN, MKL and CTranslate2 compute with AVX2, here and in every process that is started;
and this process, which decides what extraction and training compute in, finds no bfloat16. ONNX
Runtime cannot be told, nor can what else asks the processor itself.
"""

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ |= {
    "ATEN_CPU_CAPABILITY": "avx2",
    "DNNL_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    "CT2_FORCE_CPU_ISA": "AVX2",
}
FLAGS = "flags\t\t: fpu sse4_1 sse4_2 popcnt f16c fma avx avx2 bmi1 bmi2\n"


@pytest.fixture(autouse=True, scope="session")
def a_processor_with_avx2() -> Iterator[None]:
    from pipeline.system import device

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        info = Path(folder) / "cpuinfo"
        info.write_text(FLAGS)
        patch.setattr(device, "_CPU_INFO", info)
        yield


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name == "test_this_machine_is_what_pytorch_says_it_is":
            item.add_marker(pytest.mark.skip(reason="PyTorch is asked, and knows better"))
        if item.name == "test_the_precision_is_that_of_the_clusters_machines":
            item.add_marker(pytest.mark.skip(reason="Ray's workers ask the processor itself"))
