"""Laws that hold after every transaction."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, and_, case, exists, func, or_, select

from storage.repository.jobs import rows_left
from storage.schedule_tables import schedule_runs
from storage.states import (
    JOB_FINAL,
    JOB_STOPPING,
    RUN_ACTIVE,
    RUN_FINAL,
    RUN_PENDING,
    SHARD_OPEN,
    JobState,
    RowStatus,
    RunState,
    ShardState,
)
from storage.tables import attempts, cache_limits, cache_stats, dead_rows, jobs, shard_segments, shards


def check(conn: Connection) -> None:
    problems = [
        *_row_counts(conn),
        *_shard_counts(conn),
        *_states(conn),
        *_leases(conn),
        *_attempts(conn),
        *_committed(conn),
        *_outputs(conn),
        *_runs(conn),
    ]
    assert not problems, "; ".join(problems)


def _row_counts(conn: Connection) -> Iterator[str]:
    """Counts of a job = what it keeps of the generation before + a recount over segments and dead rows of the present
    one; the rest of an ended job is canceled or expired."""
    statuses = [status.value for status in RowStatus]
    sealed = {
        row.job_id: row
        for row in conn.execute(
            select(shards.c.job_id, *(func.sum(shard_segments.c[status]).label(status) for status in statuses))
            .join(shards, shards.c.id == shard_segments.c.shard_id)
            .join(jobs, and_(jobs.c.id == shards.c.job_id, jobs.c.generation == shards.c.generation))
            .group_by(shards.c.job_id)
        )
    }
    dead: dict[int, int] = {
        row.job_id: int(row.num)
        for row in conn.execute(
            select(dead_rows.c.job_id, func.sum(dead_rows.c.num_outputs).label("num"))
            .join(shards, shards.c.id == dead_rows.c.shard_id)
            .join(jobs, and_(jobs.c.id == shards.c.job_id, jobs.c.generation == shards.c.generation))
            .group_by(dead_rows.c.job_id)
        )
    }
    for job in conn.execute(select(jobs, rows_left.label("rows_left"))):
        found = sealed.get(job.id)
        for status in statuses:
            counted = job._mapping[f"rows_{status}"]
            recount = job._mapping[f"kept_{status}"] + (0 if found is None else int(found._mapping[status]))
            recount += dead.get(job.id, 0) if status == RowStatus.ERRORED else 0
            if job.state in JOB_FINAL and status == _rest_of(job.state):
                ok = counted >= recount
            else:
                ok = counted == recount
            if not ok:
                yield f"job {job.id} counts {counted} rows {status}, a recount gives {recount}"
        if job.state in JOB_FINAL and job.rows_left:
            yield f"job {job.id} is {job.state} with {job.rows_left} rows that have not ended"


def _rest_of(state: str) -> RowStatus:
    """As what the rows of an ended job count that never had their turn."""
    return RowStatus.EXPIRED if state == JobState.EXPIRED else RowStatus.CANCELED


def _shard_counts(conn: Connection) -> Iterator[str]:
    done = func.sum(case((shards.c.state == ShardState.DONE, 1), else_=0))
    alive = func.sum(case((shards.c.state != ShardState.SPLIT, 1), else_=0))
    for row in conn.execute(
        select(jobs.c.id, jobs.c.shards_done, jobs.c.shards_total, done.label("done"), alive.label("alive"))
        .join(shards, shards.c.job_id == jobs.c.id)
        .group_by(jobs.c.id)
    ):
        if row.shards_done != row.done or row.shards_total != row.alive:
            yield (
                f"job {row.id} counts {row.shards_done} of {row.shards_total} shards done,"
                f" but {row.done} of {row.alive} are"
            )


def _states(conn: Connection) -> Iterator[str]:
    closed = [*JOB_FINAL, JobState.FINALIZING, JobState.VALIDATING]
    for row in conn.execute(
        select(jobs.c.id, jobs.c.state, shards.c.id.label("shard_id"), shards.c.state.label("shard_state"))
        .join(shards, shards.c.job_id == jobs.c.id)
        .where(
            or_(
                and_(jobs.c.state.in_(closed), shards.c.state.in_(SHARD_OPEN)),
                and_(jobs.c.state.in_(JOB_STOPPING), shards.c.state.in_([ShardState.READY, ShardState.QUEUED])),
            )
        )
    ):
        yield f"job {row.id} is {row.state} but its shard {row.shard_id} is {row.shard_state}"
    for shard_id in conn.scalars(
        select(shards.c.id).where(
            (shards.c.state == ShardState.DEAD) != exists().where(dead_rows.c.shard_id == shards.c.id)
        )
    ):
        yield f"shard {shard_id} is dead without dead rows, or has them without being dead"


def _leases(conn: Connection) -> Iterator[str]:
    running = shards.c.state == ShardState.RUNNING
    for row in conn.execute(
        select(shards.c.id, shards.c.state, shards.c.lease_owner).where(
            or_(
                running != shards.c.lease_owner.is_not(None),
                running != (shards.c.lease_until > 0),
            )
        )
    ):
        yield f"shard {row.id} is {row.state} with lease owner {row.lease_owner}"


def _attempts(conn: Connection) -> Iterator[str]:
    """Each epoch is one attempt; one runs exactly if its shard does; each has sealed what its counters say."""
    num_attempts = select(func.count()).where(attempts.c.shard_id == shards.c.id).scalar_subquery()
    num_open = (
        select(func.count()).where(attempts.c.shard_id == shards.c.id, attempts.c.outcome.is_(None)).scalar_subquery()
    )
    is_running = case((shards.c.state == ShardState.RUNNING, 1), else_=0)
    for row in conn.execute(
        select(shards.c.id, shards.c.epoch, shards.c.attempts).where(
            or_(
                shards.c.epoch != num_attempts,
                shards.c.attempts != num_attempts,
                num_open != is_running,
                shards.c.crashes + shards.c.failures + shards.c.preemptions > num_attempts,
            )
        )
    ):
        yield f"shard {row.id} has epoch {row.epoch} and {row.attempts} attempts, which its attempts do not show"

    sealed = (
        select(func.coalesce(func.sum(shard_segments.c.rows), 0))
        .where(shard_segments.c.shard_id == attempts.c.shard_id, shard_segments.c.epoch == attempts.c.epoch)
        .scalar_subquery()
    )
    prompt_tokens = attempts.c.cached_tokens + attempts.c.computed_tokens
    for wrong in conn.execute(
        select(attempts.c.shard_id, attempts.c.epoch).where(
            or_(attempts.c.rows != sealed, attempts.c.prompt_tokens != prompt_tokens)
        )
    ):
        yield f"shard {wrong.shard_id} epoch {wrong.epoch}: the counters are not those of its segments"
    for table in (cache_stats, cache_limits):
        for orphan in conn.execute(
            select(table.c.shard_id, table.c.epoch).where(
                ~exists().where(attempts.c.shard_id == table.c.shard_id, attempts.c.epoch == table.c.epoch)
            )
        ):
            yield f"{table.name} of shard {orphan.shard_id} epoch {orphan.epoch} belong to no attempt"


def _outputs(conn: Connection) -> Iterator[str]:
    """What a shard must bring is what it has sealed, what is given up, what its parts must bring, and the rest."""
    sealed = (
        select(func.coalesce(func.sum(shard_segments.c.rows), 0))
        .where(shard_segments.c.shard_id == shards.c.id)
        .scalar_subquery()
    )
    given_up = (
        select(func.coalesce(func.sum(dead_rows.c.num_outputs), 0))
        .where(dead_rows.c.shard_id == shards.c.id)
        .scalar_subquery()
    )
    part = shards.alias()
    in_parts = (
        select(func.coalesce(func.sum(part.c.num_outputs), 0)).where(part.c.parent_id == shards.c.id).scalar_subquery()
    )
    has_ended = shards.c.state.in_([ShardState.DONE, ShardState.DEAD, ShardState.SPLIT])
    known = sealed + given_up + in_parts
    for row in conn.execute(
        select(shards.c.id, shards.c.state, shards.c.num_outputs, known.label("known")).where(
            or_(
                known > shards.c.num_outputs,
                and_(has_ended, known != shards.c.num_outputs),
                and_(in_parts > 0, shards.c.state != ShardState.SPLIT),
            )
        )
    ):
        yield f"shard {row.id} is {row.state} with {row.known} of {row.num_outputs} rows accounted for"


def _committed(conn: Connection) -> Iterator[str]:
    sealed = (
        select(func.coalesce(func.sum(shard_segments.c.rows), 0))
        .where(shard_segments.c.shard_id == shards.c.id)
        .scalar_subquery()
    )
    for row in conn.execute(
        select(shards, sealed.label("sealed")).where(
            shards.c.state == ShardState.DONE,
            or_(shards.c.out_key.is_(None), shards.c.out_sha256.is_(None), shards.c.out_rows != sealed),
        )
    ):
        yield f"shard {row.id} is done with {row.out_rows} rows in {row.out_key}, but {row.sealed} were sealed"


def _runs(conn: Connection) -> Iterator[str]:
    """A run at work has a job of its own, one that waits has none; only who settles holds a lease."""
    jobs_seen: set[int] = set()
    for run in conn.execute(select(schedule_runs)):
        state, name = RunState(run.state), f"run {run.id} ({run.label})"
        has_job = run.job_id is not None and run.run_id is not None
        if (state in RUN_ACTIVE and not has_job) or (state in RUN_PENDING and run.job_id is not None):
            yield f"{name} is {state} with job {run.job_id}"
        if run.lease_owner is not None and state != RunState.SETTLING:
            yield f"{name} is {state} and held by {run.lease_owner}"
        if (state in RUN_FINAL) != (run.finished_at is not None):
            yield f"{name} is {state} and finished at {run.finished_at}"
        if run.job_id in jobs_seen:
            yield f"{name} shares job {run.job_id} with another run"
        jobs_seen |= set() if run.job_id is None else {run.job_id}
