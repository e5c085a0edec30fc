"""What `make demo` shows, on fewer rows: real prompts, the real hybrid model, the real path."""

from __future__ import annotations

import hashlib
import json

import pyarrow.parquet as pq
import pytest

from ops.demo.humaneval import few_shot_problems
from ops.demo.input import write_input
from tests.acceptance.conftest import Shell

pytestmark = [pytest.mark.models, pytest.mark.integration]

ROWS = 10


@pytest.mark.timeout(1200)
def test_few_shot_rows_share_their_prefix_on_the_hybrid_model_and_the_records_agree(shell: Shell, demo_model, tmp_path):
    rows = few_shot_problems()[:ROWS]
    write_input(tmp_path / "prompts.parquet", rows)
    out = tmp_path / "out"

    job = shell.submit_job(
        tmp_path / "prompts.parquet", "-o", out, "--model", demo_model("gemma3-270m"), "--raw-prompt",
        "--max-tokens", "8", "--ignore-eos",
    )  # fmt: skip

    # The data set: every row once, in input order, with the columns that pass through.
    data = pq.read_table(out / "data")
    assert data["custom_id"].to_pylist() == [row.task_id for row in rows]
    assert data["entry_point"].to_pylist() == [row.entry_point for row in rows]
    assert data["completion_tokens"].to_pylist() == [8] * ROWS

    # The manifest: exactly the files that are there.
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["rows"] == ROWS
    assert {part["path"] for part in manifest["parts"]} == {
        str(path.relative_to(out)) for path in (out / "data").iterdir()
    }
    for part in manifest["parts"]:
        assert hashlib.sha256((out / part["path"]).read_bytes()).hexdigest() == part["sha256"]

    # The statistics: sums of the rows' own counters, and most of the prompt taken from the cache.
    stats = json.loads(shell.nightmill("stats", str(job), "--json"))
    metrics = pq.read_table(out / "_meta" / "metrics")
    assert stats["rows"] == ROWS
    assert stats["prompt_tokens"] == sum(data["prompt_tokens"].to_pylist())
    assert stats["cached_tokens"] == sum(metrics["cached_tokens"].to_pylist())
    assert stats["prompt_tokens"] == stats["cached_tokens"] + stats["computed_tokens"]
    assert stats["completion_tokens"] == 8 * ROWS
    assert stats["cached_tokens"] > 0.7 * stats["prompt_tokens"]
    assert {group["kind"]: group["layers"] for group in stats["groups"]} == {"full": 3, "sliding": 15}
    assert all(group["blocks_shared"] > 0 for group in stats["groups"])
