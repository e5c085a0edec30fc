"""What the webhook of a schedule has to be told of a run. Each function runs inside its caller's transaction."""

from __future__ import annotations

from sqlalchemy import Connection, or_, update

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
            or_(runs.c.notice_after == 0, runs.c.notice_after < now()),
        )
        .order_by(runs.c.id)
    )
    return [as_run(row) for row in rows]


def note(conn: Connection, run: Run, error: str | None, delay_seconds: float) -> None:
    conn.execute(
        update(runs)
        .where(runs.c.id == run.id, runs.c.attempt == run.attempt)
        .values(
            notice_tries=runs.c.notice_tries + 1,
            notice_error=error,
            notice_after=now() + delay_seconds,
            noticed_at=now() if error is None else None,
        )
    )
