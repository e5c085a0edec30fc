"""The state machines of jobs, shards and runs on one page.

Job:    validating -> queued -> in_progress -> finalizing -> completed
        any open state -> cancelling -> cancelled,  expiring -> expired (deadline),
        failing -> failed (too many errors, or its workers died too often); any open state -> failed, without publishing
        queued, in_progress <-> paused;  any end with published results -> queued (rows run again, a new generation)
Shard:  ready -> queued -> running -> done
        running -> ready (released, or its lease expired) | dead (its attempts failed too often);  any open -> cancelled
        ready -> split | dead  (its worker died while it ran alone: fewer rows are suspected now, or one)
        done, dead -> ready  (a file of it was damaged before it was published); the job: finalizing -> in_progress
Row:    succeeded | errored | expired | canceled  (once it has ended)
Run:    queued <-> waiting (no input yet) -> running -> settling -> succeeded | gates_failed | failed | cancelled
        queued, waiting -> failed | cancelled;  waiting -> no_input;  a slot that comes to nothing: skipped | missed
        settling -> running (it could not be settled yet, and holds nobody up)
        any end -> queued (asked for again: the next attempt of the same label)
"""

from __future__ import annotations

from enum import StrEnum


class JobState(StrEnum):
    VALIDATING = "validating"
    QUEUED = "queued"
    IN_PROGRESS = "in_progress"
    PAUSED = "paused"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    CANCELLING = "cancelling"
    EXPIRING = "expiring"
    FAILING = "failing"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    FAILED = "failed"


class ShardState(StrEnum):
    READY = "ready"
    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    SPLIT = "split"
    DEAD = "dead"
    CANCELLED = "cancelled"


class RowStatus(StrEnum):
    SUCCEEDED = "succeeded"
    ERRORED = "errored"
    EXPIRED = "expired"
    CANCELED = "canceled"


class Outcome(StrEnum):
    """How an attempt ended."""

    COMMITTED = "committed"
    FAILED = "failed"  # released by its worker after an error
    PREEMPTED = "preempted"  # released by its worker, no fault of the shard
    CRASHED = "crashed"  # its worker died: the lease ran out, or the engine's death was told
    CANCELLED = "cancelled"
    DAMAGED = "damaged"  # committed, but its file was damaged before it was published


class RunState(StrEnum):
    """One firing of a schedule."""

    QUEUED = "queued"  # it waits for its turn
    WAITING = "waiting"  # its input is not there yet
    RUNNING = "running"  # it has a job
    SETTLING = "settling"  # its job has ended; somebody checks and publishes it under a lease
    SUCCEEDED = "succeeded"  # its partition is current
    GATES_FAILED = "gates_failed"  # its partition is kept aside
    FAILED = "failed"
    CANCELLED = "cancelled"
    NO_INPUT = "no_input"
    SKIPPED = "skipped"  # an earlier run was still at work (overlap)
    MISSED = "missed"  # nobody ticked in time, and it was not caught up (catch_up)


JOB_FINAL = frozenset({JobState.COMPLETED, JobState.CANCELLED, JobState.EXPIRED, JobState.FAILED})
JOB_RUNNABLE = frozenset({JobState.QUEUED, JobState.IN_PROGRESS})  # its shards may be dispatched and claimed
JOB_STOPPING = frozenset({JobState.CANCELLING, JobState.EXPIRING, JobState.FAILING})  # what is done gets published
QUARANTINE_CRASHES = 2  # a shard that was in so many crashes is suspected and runs alone
SHARD_WAITING = frozenset({ShardState.READY, ShardState.QUEUED})
SHARD_OPEN = frozenset({ShardState.READY, ShardState.QUEUED, ShardState.RUNNING})
RUN_PENDING = frozenset({RunState.QUEUED, RunState.WAITING})  # no job yet
RUN_ACTIVE = frozenset({RunState.RUNNING, RunState.SETTLING})  # takes one of max_active places
RUN_OPEN = RUN_PENDING | RUN_ACTIVE
RUN_FINAL = frozenset(RunState) - RUN_OPEN
