"""The frame around every command: one typer application, and one place where an error becomes a message and a code."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

from jobs.cli import control, crew, generations, inspect, operate, processes, schedule, submit
from jobs.exits import Exit, explain, table

HELP = "Offline LLM batch processor: Parquet in, hybrid-cache engine, Parquet out, exactly once."
EPILOG = f"Exit codes:\n{table()}"


def build() -> typer.Typer:
    """The application with all commands."""
    app = typer.Typer(
        name="nightmill",
        help=HELP,
        epilog=EPILOG,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def options(
        debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
    ) -> None:
        """Hold the options of all commands; `main` reads --debug itself, since it may follow the command."""

    for group in (submit, inspect, control, generations, schedule, processes, crew, operate):
        group.add_to(app)
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and exit with its code; a known error becomes one message on stderr.

    typer itself ends on Ctrl-C (130) and on a reader that has left (1) without a traceback.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        build()(args=arguments, prog_name="nightmill")
    except Exception as error:
        failure = explain(error)
        if failure is None or debug:
            raise
        sys.stderr.write(f"nightmill: {failure.message}\n")
        sys.exit(failure.code)
    sys.exit(Exit.DONE)
