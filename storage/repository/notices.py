"""What the webhook of a schedule has to be told of a run. Each function runs inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import ColumnElement, Connection, and_, update

from storage.database import now
from storage.repository.rows import as_run
from storage.repository.runs import selected
from storage.schedule_records import Run
from storage.schedule_tables import schedule_runs as runs


def unsent(conn: Connection, most_tries: int) -> list[Run]:
    rows = conn.execute(
        selected()
        .where(
            runs.c.notice.is_not(None),
            runs.c.noticed_at.is_(None),
            runs.c.notice_tries < most_tries,
            runs.c.notice_after <= now(),
        )
        .order_by(runs.c.notice_tries, runs.c.id)
    )
    return [as_run(row) for row in rows]


def claim(conn: Connection, run: Run, lease_seconds: float) -> bool:
    claimed = conn.execute(
        update(runs)
        .where(_of(run), runs.c.notice_tries == run.notice_tries, runs.c.noticed_at.is_(None))
        .values(notice_tries=runs.c.notice_tries + 1, notice_after=now() + lease_seconds)
    )
    return claimed.rowcount == 1


def note(conn: Connection, run: Run, error: str | None, delay_seconds: float) -> None:
    """What was taken stays so, whatever a slower try has met with."""
    conn.execute(
        update(runs)
        .where(_of(run), runs.c.noticed_at.is_(None))
        .values(
            notice_error=error,
            notice_after=now() + delay_seconds,
            noticed_at=now() if error is None else None,
        )
    )


def _of(run: Run) -> ColumnElement[bool]:
    """The end of the run that was seen: neither made again nor settled again since."""
    seen = (runs.c.id == run.id, runs.c.attempt == run.attempt, runs.c.epoch == run.epoch)
    return and_(*seen, runs.c.notice == run.notice)
