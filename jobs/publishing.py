"""From the records of an ended job to its published data set: which files hold its rows, and which rows are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from jobs import report
from storage.parquet.generations import Generation
from storage.parquet.publisher import Published, PublishJob, publish
from storage.parquet.rows import LostRows, SealedFile
from storage.records import Job, Shard
from storage.repository import Repository
from storage.states import JobState, RowStatus, ShardState


def publish_job(repository: Repository, job: Job, epoch: int, *, beat: Callable[[], None] = lambda: None) -> Published:
    """Publish what there is of a job without open shards. Raises FilesDamaged, FileDamaged."""
    assert job.plan is not None, f"job {job.id} ended without a plan"
    out = Path(job.output_uri)
    shards = [shard for shard in repository.shards(job.id) if shard.generation == job.generation]
    base = job.published_generation
    return publish(
        out,
        PublishJob(
            name=job.name,
            epoch=epoch,
            plan_sha256=job.plan.sha256,
            generation=job.generation,
            reopenings=sum(shard.reopenings for shard in shards),
            plan=job.plan.path,
            base=Generation.load(out, base, job.manifest_sha256) if 0 < base < job.generation else None,
            num_samples=int(job.spec.get("sampling", {}).get("n", 1)),
            footer=_footer(job),
            job_json={"job": int(job.id), "name": job.name, "input": job.input_uri, "spec": job.spec, "tags": job.tags},
            stats_json=report.statistics(job, repository.job_stats(job.id)),
        ),
        list(_files(repository, shards)),
        _lost(repository, job, shards),
        beat=beat,
    )


def _files(repository: Repository, shards: Sequence[Shard]) -> Iterator[SealedFile]:
    """The file of each done shard; of the others what they had sealed."""
    for shard in shards:
        if shard.state is ShardState.DONE:
            assert shard.out_key is not None, f"shard {shard.id} is done and has no file"
            yield SealedFile(key=shard.out_key, sha256=shard.out_sha256 or "", rows=shard.out_rows or 0)
        else:
            for segment in repository.segments(shard.id):
                yield SealedFile(key=segment.key, sha256=segment.sha256, rows=segment.rows)


def _lost(repository: Repository, job: Job, shards: Sequence[Shard]) -> list[LostRows]:
    lost = [
        LostRows(row_lo=lo, row_hi=hi, status=RowStatus.ERRORED, code=reason, message=_reason(reason))
        for lo, hi, reason in repository.dead_rows(job.id)
    ]
    status, code, message = _left_behind(job.state)
    lost += [
        LostRows(row_lo=shard.row_lo, row_hi=shard.row_hi, status=status, code=code, message=message)
        for shard in shards
        if shard.state is ShardState.CANCELLED
    ]
    return lost


def _left_behind(state: JobState) -> tuple[RowStatus, str, str]:
    """How rows end whose job was stopped before their turn: status, code, message."""
    match state:
        case JobState.EXPIRING:
            return RowStatus.EXPIRED, "deadline", "the job's deadline passed before this row was finished"
        case JobState.FAILING:
            return RowStatus.CANCELED, "canceled", "the job failed before this row was finished"
        case _:
            return RowStatus.CANCELED, "canceled", "the job was cancelled before this row was finished"


def _reason(code: str) -> str:
    if code == "engine_killer":
        return "workers died each time that they ran this row, in the end with nothing beside it"
    return "each attempt at the shard of this row failed; `nightmill status` has the last error"


def _footer(job: Job) -> dict[str, str]:
    """What affects results, and nothing that differs between two runs of the same job."""
    sampling = job.spec.get("sampling", {})
    return {
        "model": job.model.source,
        "model_revision": job.model.revision or "",
        "dtype": job.model.dtype,
        "sampling": ", ".join(f"{name}={value}" for name, value in sorted(sampling.items())),
        "input_fingerprint": job.input_fingerprint,
    }
