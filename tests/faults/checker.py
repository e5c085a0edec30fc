"""What must hold after every fault, whatever it was: nothing lost, nothing twice, sums that add up.

C1 rows          the published keys are the wanted ones, each once, in input order
C2 contents      each succeeded row holds what the engine makes of it
C3 files         every part is as the manifest says, and its generation is kept
C4 counts        the job has ended; its counts and sums equal a recount of what was published
C5 leftovers     no lease is held; no file is there that nobody lists
C6 epochs        each shard's epochs count up by one; a done shard has one commit, under its last epoch
C7 waste         results that were computed again: no more than what the lost attempts may have held
C8 time          the job has ended within its time
"""

from __future__ import annotations

import json
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from sqlalchemy import select

from storage import layout
from storage.durable import sha256_file
from storage.records import Job, JobId
from storage.repository import Repository
from storage.states import JOB_FINAL, Outcome, ShardState
from storage.tables import attempts
from tests.faults.findings import Findings

SUMS = (  # of _meta/metrics
    *("planned_tokens", "cached_tokens", "computed_tokens", "forked_tokens", "recomputed_tokens"),
    "preemptions",
)
GROUP_SUMS = ("allocated", "shared", "copied", "evicted", "evicted_unused")
STATUSES = ("succeeded", "errored", "expired", "canceled")
ENDS = frozenset({ShardState.DONE, ShardState.DEAD, ShardState.CANCELLED, ShardState.SPLIT})
SWEEP_SECONDS = 5.0
KNOWN = (  # what a published output directory may hold
    *(layout.MANIFEST, layout.README, layout.JOB_JSON, layout.STATS_JSON, layout.OWNER),
    f"{layout.META}/verdict-*.json",  # of the data set that it is a run of
    *(f"{layout.META}/manifest-*.json", f"{layout.METRICS}/part-*.parquet", f"{layout.ERRORS}/part-*.parquet"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What C2, C7 and C8 measure against; None: that is not looked at."""

    text: Callable[[dict[str, Any]], str] | None = None  # the output that a data row must have
    trace: Path | None = None  # the engine's list of all results it made
    wasted_rows: int = 24  # of one attempt that did not commit
    seconds: float | None = None


def check_job(
    repository: Repository, job_id: JobId, keys: set[tuple[int, int]], bounds: Bounds | None = None
) -> pa.Table:
    """All checks; `keys` are the (row_index, sample_index) that the input asks for. The published data, in order."""
    job = repository.get_job(job_id)
    out = Path(job.output_uri)
    findings = Findings(f"job {job.id} ({job.state}) in {out}")
    bounds = bounds or Bounds()
    table = read_data(out)
    _rows(findings, table, keys)
    _contents(findings, table, bounds)
    _files(findings, out)
    _counts(findings, job, table)
    _statistics(findings, repository, job_id, out, table)
    _leftovers(findings, repository, job_id, out)
    _epochs(findings, repository, job_id)
    _waste(findings, repository, job_id, bounds)
    _time(findings, job, bounds)
    try:
        repository.check_integrity()
    except AssertionError as error:
        findings.expect("C4", False, str(error))
    findings.raise_if_any()
    return table


def read_data(out: Path) -> pa.Table:
    return ds.dataset(sorted((out / layout.DATA).glob("*.parquet"))).to_table()


def _rows(findings: Findings, table: pa.Table, keys: set[tuple[int, int]]) -> None:
    found = list(zip(table["row_index"].to_pylist(), table["sample_index"].to_pylist(), strict=True))
    twice = [key for key, times in Counter(found).items() if times > 1]
    findings.expect("C1", not twice, f"rows are there twice: {twice[:5]}")
    findings.expect("C1", keys <= set(found), f"rows are missing: {sorted(keys - set(found))[:5]}")
    findings.expect("C1", set(found) <= keys, f"rows are foreign: {sorted(set(found) - keys)[:5]}")
    findings.expect("C1", found == sorted(found), "the rows are not in input order")


def _contents(findings: Findings, table: pa.Table, bounds: Bounds) -> None:
    if bounds.text is None:
        return
    for row in table.to_pylist():
        if row["status"] == "succeeded":
            findings.equal("C2", f"row {row['row_index']}.{row['sample_index']}", row["output_text"], bounds.text(row))


def _files(findings: Findings, out: Path) -> None:
    manifest = json.loads((out / layout.MANIFEST).read_text())
    for part in (*manifest["parts"], *manifest["metrics"], *manifest["errors"]):
        path = out / part["path"]
        if not path.is_file():
            findings.expect("C3", False, f"{part['path']} is missing")
            continue
        findings.equal("C3", f"sha256 of {part['path']}", part["sha256"], sha256_file(path))
        findings.equal("C3", f"rows of {part['path']}", part["rows"], pq.read_metadata(path).num_rows)
    kept = out / layout.manifest_generation(manifest["generation"])
    findings.expect("C3", kept.read_bytes() == (out / layout.MANIFEST).read_bytes(), f"{kept} is another manifest")


def _counts(findings: Findings, job: Job, table: pa.Table) -> None:
    statuses = Counter(table["status"].to_pylist())
    findings.expect("C4", job.state in JOB_FINAL, f"the job is {job.state}")
    for status in STATUSES:
        findings.equal("C4", f"rows {status}", getattr(job, f"rows_{status}"), statuses[status])
    findings.equal("C4", "rows in all", job.rows_total, statuses.total())


def _statistics(findings: Findings, repository: Repository, job_id: JobId, out: Path, data: pa.Table) -> None:
    """The sums in SQL equal a recount from _meta/metrics, per layer group and per limit as well."""
    stats = repository.job_stats(job_id)
    metrics = ds.dataset(sorted((out / layout.METRICS).glob("*.parquet"))).to_table().to_pylist()
    for name in SUMS:
        findings.equal("C4", name, getattr(stats, name), sum(row[name] or 0 for row in metrics))
    findings.equal("C4", "cached + computed", stats.prompt_tokens, stats.cached_tokens + stats.computed_tokens)
    completion_tokens = sum(filter(None, data["completion_tokens"].to_pylist()))
    findings.equal("C4", "completion tokens", stats.completion_tokens, completion_tokens)
    sealed = sum(row["attempts"] is not None for row in metrics)
    findings.equal("C4", "rows that an attempt has sealed", stats.rows, sealed)
    first = (data["sample_index"].to_numpy() == 0) & data["prompt_tokens"].is_valid().to_numpy()
    prompt_tokens = data["prompt_tokens"].filter(first).to_numpy().sum()
    findings.equal("C4", "prompt tokens, each prompt once", stats.prompt_tokens, prompt_tokens)
    seconds = sum(row["engine_seconds"] or 0.0 for row in metrics)
    findings.equal("C4", "engine seconds", round(stats.engine_seconds, 5), round(seconds, 5))
    limits = Counter[str]()
    for row in metrics:
        limits.update({limit["name"]: limit["tokens"] for limit in row["limited_by"] or ()})
    findings.equal("C4", "what limited the hits", dict(stats.limited_by), dict(limits))
    for group in stats.groups:
        for name in GROUP_SUMS:
            recount = sum(row["groups"][group.index][name] for row in metrics if row["groups"])
            findings.equal("C4", f"group {group.index} {name}", getattr(group, f"blocks_{name}"), recount)


def _leftovers(findings: Findings, repository: Repository, job_id: JobId, out: Path) -> None:
    for shard in repository.shards(job_id):
        findings.expect("C5", shard.state in ENDS, f"shard {shard.id} is {shard.state}")
        findings.expect("C5", shard.lease_owner is None, f"shard {shard.id} is leased to {shard.lease_owner}")
    _wait_for_sweep(out / layout.INPROGRESS)
    manifest = json.loads((out / layout.MANIFEST).read_text())
    listed = {part["path"] for kind in ("parts", "metrics", "errors") for part in manifest[kind]}
    for path in sorted(path for path in out.rglob("*") if path.is_file()):
        name = path.relative_to(out)
        known = str(name) in listed or (not name.is_relative_to(layout.DATA) and any(map(name.match, KNOWN)))
        findings.expect("C5", known, f"{name} is listed nowhere")


def _wait_for_sweep(folder: Path) -> None:
    """It comes after the job's end, and takes a while with a thousand shards: until it makes no progress any more."""
    left, until = -1, 0.0
    while folder.exists() and (left < 0 or time.monotonic() < until):
        found = sum(len(files) for _, _, files in os.walk(folder))
        if found != left:
            left, until = found, time.monotonic() + SWEEP_SECONDS
        time.sleep(0.02)


def _epochs(findings: Findings, repository: Repository, job_id: JobId) -> None:
    tried = attempts_of(repository, job_id)
    for shard in repository.shards(job_id):
        mine = tried.get(shard.id, {})
        findings.equal("C6", f"epochs of shard {shard.id}", list(mine), list(range(1, shard.epoch + 1)))
        commits = [epoch for epoch, outcome in mine.items() if outcome == Outcome.COMMITTED]
        done = shard.state is ShardState.DONE
        findings.equal("C6", f"commits of shard {shard.id}", commits, [shard.epoch] if done else [])
        if done:
            wanted = layout.shard_file(shard.idx, shard.epoch)
            findings.equal("C6", f"file of shard {shard.id}", shard.out_key, wanted)


def attempts_of(repository: Repository, job_id: JobId) -> dict[int, dict[int, str | None]]:
    """How each attempt ended, by shard and epoch."""
    query = select(attempts).where(attempts.c.job_id == job_id).order_by(attempts.c.shard_id, attempts.c.epoch)
    found: dict[int, dict[int, str | None]] = {}
    with repository._db.read() as conn:
        for row in conn.execute(query):
            found.setdefault(row.shard_id, {})[row.epoch] = row.outcome
    return found


def _waste(findings: Findings, repository: Repository, job_id: JobId, bounds: Bounds) -> None:
    if bounds.trace is None:
        return
    tried = attempts_of(repository, job_id)
    made = Counter[tuple[int, str]]()
    for line in bounds.trace.read_text().splitlines():
        shard, _, row = line.split(".", 2)
        if int(shard) in tried:
            made[int(shard), row] += 1
    lost = sum(outcome != Outcome.COMMITTED for mine in tried.values() for outcome in mine.values())
    again = made.total() - len(made)
    allowed = bounds.wasted_rows * lost
    findings.expect("C7", again <= allowed, f"{again} results were made again; {lost} lost attempts allow {allowed}")


def _time(findings: Findings, job: Job, bounds: Bounds) -> None:
    if bounds.seconds is None or job.finished_at is None:
        return
    took = (job.finished_at - job.created_at).total_seconds()
    findings.expect("C8", took <= bounds.seconds, f"the job took {took:.1f} s, allowed are {bounds.seconds:.0f}")
