"""Result lines for tests of the benchmark's own logic."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ops.bench.cells import Cell

HASHES = ("a", "b")


def line(engine: str, seconds: float, *, number: int = 0, workload: str = "few-shot", **changes: Any) -> dict[str, Any]:
    """Two rows of eight new tokens on "a CPU"; `changes` replace fields."""
    cell = Cell(number, "tiny", workload, engine, rows=2, new_tokens_per_row=8, threads=1)
    speed = {"seconds": seconds, "cpu_seconds": seconds / 2, "tok_s": 16 / seconds}
    counts = {"prompt_tokens": 100, "cached_tokens": 80 if engine == "nightmill" else None, "row_hashes": list(HASHES)}
    made = {"cpu": "a CPU", "dtype": "float32", "versions": {"python": "3.11", "torch": "2"}, "engine_tree": "abc"}
    return {"kind": "cell"} | asdict(cell) | speed | counts | made | {"measured_at": "2030-01-02T03:04:05Z"} | changes
