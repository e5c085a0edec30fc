"""The tables of schedules and their runs; what is said of times in `storage.tables` holds here as well.

schedules 1-n schedule_runs n-1 jobs     a run is one (schedule, label); its job is that of its newest attempt
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    String,
    Table,
    UniqueConstraint,
    false,
    text,
)

from storage.tables import BigId, metadata


def _integer(name: str, first: int) -> Column[int]:
    return Column(name, Integer, nullable=False, server_default=text(str(first)))


schedules = Table(
    "schedules",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("name", String, nullable=False),
    Column("cron", String, nullable=False),
    Column("zone", String, nullable=False),  # IANA name
    Column("job", JSON, nullable=False),  # what a run's job is made from
    Column("terms", JSON, nullable=False),  # what the data set asks of a run, and does with it
    Column("dataset", String, nullable=False),  # absolute path
    Column("catch_up", String, nullable=False),  # none, latest, all
    _integer("catch_up_limit", 1),
    Column("overlap", String, nullable=False),  # skip, queue, cancel_previous
    _integer("max_active", 1),
    Column("only_new", Boolean, nullable=False, server_default=false()),  # rows that no earlier run has generated
    Column("deadline_seconds", Double),  # of a run's job, from its creation
    Column("input_wait_seconds", Double, nullable=False, server_default=text("0")),
    _integer("revision", 1),  # raised by every change
    Column("cursor", String, nullable=False),  # the last slot that was looked at, in the schedule's own zone
    Column("created_at", Double, nullable=False),
    Column("ticked_at", Double),  # when the last slots were recorded
    Column("left_out_after", String),  # slots between these two came due at once and are in no run, being too many
    Column("left_out_before", String),
    Column("paused_at", Double),
    Column("removed_at", Double),  # its name and data set are free again; its history stays
)
_present = text("removed_at IS NULL")
Index("uq_schedules_name", schedules.c.name, unique=True, sqlite_where=_present, postgresql_where=_present)
Index("uq_schedules_dataset", schedules.c.dataset, unique=True, sqlite_where=_present, postgresql_where=_present)

schedule_runs = Table(
    "schedule_runs",
    metadata,
    Column("id", BigId, primary_key=True),
    Column("schedule_id", ForeignKey("schedules.id"), nullable=False),
    Column("label", String, nullable=False),
    Column("slot", String, nullable=False),  # the time that the label names, in the schedule's own zone
    Column("logical_time", Double, nullable=False),  # the same in UTC
    Column("state", String, nullable=False),
    Column("cause", String, nullable=False),  # schedule, manual, backfill
    _integer("attempt", 1),
    Column("run_id", String),  # of the attempt that has a job: names its folder in the data set
    Column("job_id", ForeignKey("jobs.id"), index=True),
    _integer("generation", 0),  # of the job's output that was settled; 0: none
    _integer("max_active", 1),  # it starts when fewer runs of its kind are at work
    _integer("rank", 0),  # order of starts
    Column("backfill", String),  # which backfill asked for it last
    Column("wait_until", Double),  # without input by then: no_input
    # the right to settle
    Column("epoch", BigInteger, nullable=False, server_default=text("0")),
    Column("lease_owner", String),
    Column("lease_until", Double, nullable=False, server_default=text("0")),  # of a running one: not settled before
    _integer("settle_tries", 0),  # of this attempt
    Column("gates", JSON),
    Column("reason", String),  # why it ended as it did, or what it waits for
    Column("created_at", Double, nullable=False),
    Column("started_at", Double),
    Column("settling_at", Double),
    Column("finished_at", Double),
    # what the schedule's webhook has to be told, at least once
    Column("notice", String),  # success, failure, missed
    _integer("notice_tries", 0),
    Column("notice_after", Double, nullable=False, server_default=text("0")),
    Column("notice_error", String),
    Column("noticed_at", Double),
    UniqueConstraint("schedule_id", "label"),  # never two runs for one logical date
    Index(None, "state"),
)
