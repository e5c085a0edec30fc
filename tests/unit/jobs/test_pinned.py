"""51: a worker that is to serve on a GPU sees one GPU and imports torch afterwards, or does not start."""

from __future__ import annotations

import pytest

from jobs import worker
from jobs.devices import DeviceError, check_pinned
from jobs.settings import Settings


@pytest.mark.parametrize(
    ("environment", "modules", "reason"),
    [
        ({}, set(), "CUDA_VISIBLE_DEVICES is ''.*nightmill worker --gpus 0"),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, set(), "serves on exactly one GPU"),
        ({"CUDA_VISIBLE_DEVICES": "GPU-8a5c"}, {"torch"}, "torch was imported before"),
    ],
)
def test_51_it_refuses_to_start_with_the_reason(environment: dict[str, str], modules: set[str], reason: str) -> None:
    with pytest.raises(DeviceError, match=reason):
        check_pinned("cuda", environment, modules)


def test_51_a_pinned_process_starts_and_a_cpu_needs_no_pin() -> None:
    check_pinned("cuda", {"CUDA_VISIBLE_DEVICES": "GPU-8a5c"}, {"celery"})
    check_pinned("cpu", {}, {"torch"})


def test_51_it_is_looked_at_before_anything_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    with pytest.raises(DeviceError, match="CUDA_VISIBLE_DEVICES"):
        worker.run_worker(Settings(device="cuda"))
