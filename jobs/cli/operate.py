"""`nightmill db upgrade | current` and `nightmill doctor`."""

from __future__ import annotations

from typing import Annotated

import typer

from jobs import place
from jobs.cli import terminal
from jobs.exits import Exit

db = typer.Typer(help="The database schema.", no_args_is_help=True)


def add_to(app: typer.Typer) -> None:
    app.add_typer(db, name="db")
    app.command()(doctor)


@db.command()
def upgrade() -> None:
    """Bring the database to this program's schema; keeps what is in it."""
    from storage import migrate

    found = place.find()
    found.prepare()
    migrate.upgrade(found.database_url)
    terminal.say(f"database {found.shown_database} is at schema {migrate.current(found.database_url)}")


@db.command()
def current(
    json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print the schema of the database and the one that this program needs; exit 8 when they differ."""
    from storage import migrate

    found = place.find()
    found.prepare()
    here, head = migrate.current(found.database_url), migrate.head()
    row = {"database": found.shown_database, "schema": here, "needed": head}
    terminal.write_rows([row], list(row), as_json=json or not terminal.is_terminal())
    if here != head:
        terminal.say("Run: nightmill db upgrade")
        raise typer.Exit(Exit.UNREACHABLE)


def doctor(
    json: Annotated[bool, typer.Option("--json", help="One JSON line for each check.")] = False,
) -> None:
    """Check this machine and the services; says what to do about each problem. Exit 8 when there is one."""
    from jobs.doctor import examine

    checks = examine(place.find())
    rows = [{"check": check.name, "ok": check.ok, "found": check.found, "do": check.remedy} for check in checks]
    terminal.write_rows(rows, ["check", "ok", "found", "do"], as_json=json or not terminal.is_terminal())
    if not all(check.ok for check in checks):
        raise typer.Exit(Exit.UNREACHABLE)
