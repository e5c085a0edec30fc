"""Commands that run until they are stopped: worker, reconciler, beat, flower, and up for all of them."""

from __future__ import annotations

import logging
from typing import Annotated

import typer

from jobs import place
from jobs.exits import UsageError


def add_to(app: typer.Typer) -> None:
    for command in (up, worker, reconciler, beat, flower):
        app.command()(command)


def up(
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="Port of Flower on 127.0.0.1; 0 takes a free one.")
    ] = 5555,
    no_flower: Annotated[bool, typer.Option("--no-flower", help="Without Flower.")] = False,
    gpus: Annotated[
        str | None, typer.Option(help="Real mode: one worker per GPU, all, or indices or UUIDs with commas.")
    ] = None,
) -> None:
    """Run everything that schedules need on this host: broker, worker, reconciler, beat and Flower.

    Ctrl-C, SIGTERM or the end of its terminal stops all of them in order; what was begun is sealed, and the next start
    goes on with it.
    """
    _log_to_stderr()
    from jobs.up import run_up

    settings = place.find().settings
    if gpus is not None and settings.embedded:
        raise UsageError("--gpus is for real mode; in embedded mode NIGHTMILL_DEVICE says where the one worker runs")
    raise typer.Exit(run_up(settings, flower_port=None if no_flower else port, gpus=gpus))


def worker(
    model: Annotated[
        str | None, typer.Option(help="Serve this model only; otherwise the oldest waiting job's.")
    ] = None,
    model_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit of --model on the Hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Type of --model (NIGHTMILL_DTYPE); a job brings its own.")] = None,
    gpus: Annotated[str | None, typer.Option(help="One child per GPU: all, or indices or UUIDs with commas.")] = None,
    device: Annotated[str | None, typer.Option(help="Torch device, cpu or cuda (NIGHTMILL_DEVICE).")] = None,
) -> None:
    """Serve shards: one process, one device, one model, one engine.

    Ends with 0 when nothing waits (without --model), with 78 when the model cannot be served.
    """
    if gpus is not None and device is not None:
        raise UsageError("--gpus and --device exclude each other: a worker of --gpus runs on its GPU")
    if model is None and (model_revision is not None or dtype is not None):
        raise UsageError("--model-revision and --dtype need --model: without it the job says what is served")
    _log_to_stderr()
    given = {"device": device, "dtype": dtype}
    settings = place.find({name: value for name, value in given.items() if value is not None}).settings
    if gpus is not None:
        from jobs.launcher import run_launcher

        raise typer.Exit(run_launcher(settings, gpus=gpus, model=model, revision=model_revision))
    from jobs.restarts import EXIT_DRAINED
    from jobs.worker import run_worker

    code = run_worker(settings, model=model, revision=model_revision)
    raise typer.Exit(0 if code == EXIT_DRAINED else code)


def reconciler() -> None:
    """Send waiting shards to the broker, end expired leases, publish finished jobs. A second one is harmless."""
    _log_to_stderr()
    from jobs.presence import announced
    from jobs.reconciler import run_reconciler

    found = place.find()
    if found.settings.embedded:
        raise UsageError("in embedded mode the owner reconciles; name NIGHTMILL_BROKER_URL and NIGHTMILL_DATABASE_URL")
    with announced(found.settings, found.database_url):
        code = run_reconciler(found.settings)
    raise typer.Exit(code)


def beat() -> None:
    """Ask every 30 seconds for a look at the schedules. A second one is harmless, and so is none: reconcilers look
    as well."""
    _log_to_stderr()
    from jobs.beat import run_beat

    raise typer.Exit(run_beat(place.find().settings))


def flower(
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")] = 5555,
) -> None:
    """Show the shards live in Flower: on 127.0.0.1, read-only, on the same broker."""
    from jobs.embedded import connect
    from jobs.monitor.flower import run_flower

    settings = place.find().settings
    raise typer.Exit(run_flower(connect(settings).broker_url, prefix=settings.redis_prefix, port=port))


def _log_to_stderr() -> None:
    """What a service manager collects; torch and Celery log the same way."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
