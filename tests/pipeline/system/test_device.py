"""What the machine computes with: the same as PyTorch says, wherever PyTorch need not be asked."""

from pathlib import Path

import pytest
import torch

from pipeline.system import device

XEON = "processor : 0\nflags\t\t: fpu avx2 {}\nbugs : none\nprocessor : 1\nflags\t\t: fpu avx2 {}\n"


def test_this_machine_is_what_pytorch_says_it_is() -> None:
    told = torch.cpu.get_capabilities()
    has_bfloat16 = bool(told.get("avx512_bf16") or told.get("amx_bf16"))
    assert device.native_precision("cpu") == ("bfloat16" if has_bfloat16 else "float32")
    assert device.has_gpu() == torch.cuda.is_available()


@pytest.mark.parametrize(
    ("features", "precision"),
    [("avx512_bf16", "bfloat16"), ("amx_bf16 amx_tile", "bfloat16"), ("avx512f", "float32")],
)
def test_bfloat16_is_taken_where_the_cpu_multiplies_in_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, features: str, precision: str
) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text(XEON.format(features, features))
    monkeypatch.setattr(device, "_CPU_INFO", info)
    assert device.native_precision("cpu") == precision


def test_pytorch_is_asked_if_the_system_has_no_information(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(device, "_CPU_INFO", tmp_path / "none")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": True, "sse2": True})
    assert device.native_precision("cpu") == "bfloat16"
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"amx_bf16": False, "bf16": True})
    assert device.native_precision("cpu") == "float32"


@pytest.mark.parametrize(("driver", "asked"), [("nvidia0", True), ("dxg", True), ("tty0", False)])
def test_pytorch_is_asked_for_a_gpu_where_a_driver_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, driver: str, asked: bool
) -> None:
    (tmp_path / driver).touch()
    monkeypatch.setattr(device, "_DEVICES", tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device.has_gpu() == asked
