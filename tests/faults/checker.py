"""What must hold after every fault, whatever it was (C1, C3 to C6): nothing lost, nothing twice, sums that add up."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from storage import layout
from storage.durable import sha256_file
from storage.records import JobId
from storage.repository import Repository
from storage.states import JOB_FINAL, ShardState

SUMS = (  # of _meta/metrics
    *("planned_tokens", "cached_tokens", "computed_tokens", "forked_tokens", "recomputed_tokens"),
    "preemptions",
)
GROUP_SUMS = ("allocated", "shared", "copied", "evicted", "evicted_unused")


def check_job(repository: Repository, job_id: JobId, keys: set[tuple[int, int]]) -> pa.Table:
    """All checks; `keys` are the (row_index, sample_index) that the input asks for. The published data, in order."""
    job = repository.get_job(job_id)
    out = Path(job.output_uri)
    table = read_data(out)
    check_rows(table, keys)
    check_manifest(out)
    check_counts(repository, job_id, table)
    check_statistics(repository, job_id, out)
    check_shards(repository, job_id)
    repository.check_integrity()
    return table


def read_data(out: Path) -> pa.Table:
    return ds.dataset(sorted((out / layout.DATA).glob("*.parquet"))).to_table()


def check_rows(table: pa.Table, keys: set[tuple[int, int]]) -> None:
    """C1: no key is missing, foreign or doubled, and they are in input order."""
    found = list(zip(table["row_index"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    assert len(found) == len(set(found)), "a row is there twice"
    assert set(found) == keys, f"missing {sorted(keys - set(found))[:5]}, foreign {sorted(set(found) - keys)[:5]}"
    assert found == sorted(found), "the rows are not in input order"


def check_manifest(out: Path) -> None:
    """C3: every part is what the manifest says, and no file is there that it does not list."""
    manifest = json.loads((out / layout.MANIFEST).read_text())
    for part in manifest["parts"]:
        path = out / part["path"]
        assert sha256_file(path) == part["sha256"], f"{path} is damaged"
        assert pq.read_metadata(path).num_rows == part["rows"], f"{path} has other rows than its manifest says"
    listed = {out / part["path"] for part in manifest["parts"]}
    assert set((out / layout.DATA).iterdir()) <= listed, "a file in data/ is not in the manifest"


def check_counts(repository: Repository, job_id: JobId, table: pa.Table) -> None:
    """C4: the job has ended and its counters equal a recount of the output."""
    job = repository.get_job(job_id)
    assert job.state in JOB_FINAL, f"job {job_id} is {job.state}"
    statuses = table["status"].to_pylist()
    recount = {status: statuses.count(status) for status in ("succeeded", "errored", "expired", "canceled")}
    counted = {
        "succeeded": job.rows_succeeded,
        "errored": job.rows_errored,
        "expired": job.rows_expired,
        "canceled": job.rows_canceled,
    }
    assert counted == recount
    assert job.rows_total == len(statuses)


def check_statistics(repository: Repository, job_id: JobId, out: Path) -> None:
    """C4: the sums in SQL equal a recount from _meta/metrics, per layer group and per limit as well."""
    stats = repository.job_stats(job_id)
    metrics = ds.dataset(sorted((out / layout.METRICS).glob("*.parquet"))).to_table().to_pylist()
    for name in SUMS:
        assert getattr(stats, name) == sum(row[name] or 0 for row in metrics), name
    assert stats.prompt_tokens == stats.cached_tokens + stats.computed_tokens
    data = read_data(out)
    assert stats.completion_tokens == sum(filter(None, data["completion_tokens"].to_pylist()))
    assert stats.rows == sum(row["attempts"] is not None for row in metrics), "rows that an attempt has sealed"
    first = (data["sample_index"].to_numpy() == 0) & data["prompt_tokens"].is_valid().to_numpy()
    assert stats.prompt_tokens == data["prompt_tokens"].filter(first).to_numpy().sum(), "a prompt counts once"
    assert abs(stats.engine_seconds - sum(row["engine_seconds"] or 0.0 for row in metrics)) < 1e-6
    limits = Counter[str]()
    for row in metrics:
        limits.update({limit["name"]: limit["tokens"] for limit in row["limited_by"] or ()})
    assert dict(stats.limited_by) == limits, "what limited the hits"
    for group in stats.groups:
        for name in GROUP_SUMS:
            recount = sum(row["groups"][group.index][name] for row in metrics if row["groups"])
            assert getattr(group, f"blocks_{name}") == recount, f"group {group.index} {name}"


def check_shards(repository: Repository, job_id: JobId) -> None:
    """C5, C6: no lease is left, every shard has ended, and a done one has exactly one file, of its last epoch."""
    for shard in repository.shards(job_id):
        assert shard.state in {ShardState.DONE, ShardState.DEAD, ShardState.CANCELLED, ShardState.SPLIT}, shard
        assert shard.lease_owner is None, shard
        if shard.state is ShardState.DONE:
            assert shard.out_key == layout.shard_file(shard.idx, shard.epoch), shard
