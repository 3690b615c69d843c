"""What each worker of a fine-tuning takes of its machine."""

import pytest
import torch

from fusion.finetuning import workers


@pytest.mark.parametrize(("on_this_machine", "threads"), [(2, 8), (5, 3), (32, 1)])
def test_workers_share_the_machines_cores_though_ray_tells_each_to_use_one_thread(
    monkeypatch: pytest.MonkeyPatch, on_this_machine: int, threads: int
) -> None:
    monkeypatch.setattr(workers, "num_cores", lambda: 16)
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 does
    try:
        workers._share_cores(on_this_machine)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
