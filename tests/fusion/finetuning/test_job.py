"""What fine-tuning is asked for, decided: whole paths, the device and the precision."""

from pathlib import Path

import pytest

from fusion.finetuning.job import FinetuneConfig, Hardware, choose_hardware, resolve

HERE = Hardware(device="cpu", workers_device="cpu", precision="float32")


def test_without_a_run_one_is_trained_on_the_way_on_the_usual_features(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = resolve(FinetuneConfig(), Path("runs/new"), HERE)
    assert job.trains_start
    assert (job.out, job.run) == (tmp_path / "runs/new", tmp_path / "runs/new/start")
    assert (job.data, job.features) == (tmp_path / "data", tmp_path / "features")


def test_what_is_written_down_decides_the_same_again_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    job = resolve(FinetuneConfig(store=Path("store"), resume=False), Path("run"), HERE)
    assert job.settings["precision"] == "float32"
    assert "auto" not in (job.settings["precision"], job.settings["store"])
    monkeypatch.chdir("/")
    again = FinetuneConfig(
        **{
            **job.settings,
            **{
                name: Path(job.settings[name])
                for name in ("run", "data", "features", "store", "out")
            },
            "tune": job.tune,
        }
    )
    assert resolve(again, job.out, HERE) == job


def test_workers_on_a_cluster_compute_with_what_the_cluster_has(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def look(address: str, device: str, precision: str) -> tuple[str, str]:
        assert (address, device, precision) == ("head:6379", "cuda", "auto")
        return "cuda", "bfloat16"

    monkeypatch.setattr("pipeline.parallel.cluster.look_at_cluster", look)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    away = FinetuneConfig(workers=2, address="head:6379", device="cuda")
    assert choose_hardware(away) == Hardware(
        device="cpu", workers_device="cuda", precision="bfloat16"
    )
