"""One worker process: one device, one model, one engine, one Celery consumer on the model's queue.

torch is imported here and nowhere else, by the engine's factory, after the launcher has chosen the device.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from typing import Any

from celery.signals import worker_shutting_down

from engine.errors import ConfigError, ModelRefused
from jobs.app import NightmillApp, make_app
from jobs.devices import check_pinned, lock_folder
from jobs.disk import DiskWatch
from jobs.embedded import connect
from jobs.engines import engine_factory
from jobs.exits import explain
from jobs.gate import Gate
from jobs.leases import LeaseKeeper
from jobs.models import ModelUnknown, model_files, named_model, takes
from jobs.monitor.broker import broker_answers
from jobs.names import cpu_place, machine_mark, worker_name
from jobs.place import find
from jobs.prompts import PromptEncoder
from jobs.restarts import EXIT_DRAINED, EXIT_MODEL
from jobs.runtime import Runtime, Watchdog
from jobs.settings import Settings
from jobs.signals import handle_once
from jobs.tools import Tools
from jobs.withdrawal import withdraw_unserved
from storage import failpoints
from storage.errors import Fenced, InputInvalid, StorageError
from storage.records import ModelRef, WorkerRecord
from storage.repository import Repository
from storage.states import JOB_STOPPING, JobState, ShardState

log = logging.getLogger(__name__)

NO_DATABASE = "no database"
MANY_JOBS = 10_000
JOB_WORKING = frozenset({JobState.IN_PROGRESS, JobState.PAUSED}) | JOB_STOPPING


def run_worker(
    settings: Settings, *, model: str | None = None, revision: str | None = None, name: str | None = None
) -> int:
    """Serve one model until SIGTERM; without `model` the oldest waiting job's, until nothing waits. The exit code.

    Raises StorageError or OwnerMissing when broker or database cannot be found.
    """
    check_pinned(settings.device, os.environ, sys.modules)
    addresses = connect(settings)
    repository = Repository(addresses.database_url)
    failpoints.arm(settings.failpoints, repository.turn)
    try:
        repository.check_schema()
        wanted = _wanted(repository, settings, model, revision)
        if wanted is None:
            threading.Event().wait(settings.idle_exit_seconds)
            log.info("no job waits for a worker")
            return 0
        # The job says in which type its model runs; the settings say it only for a model that was named here.
        settings = settings.model_copy(update={"dtype": wanted.dtype})
        worker = Worker(settings, repository, addresses.broker_url, wanted, name)
        try:
            return worker.run(stays=model is not None)
        except ConfigError as error:  # this worker's settings are wrong: the jobs wait for one that is set up well
            _say(str(error))
            return EXIT_MODEL
        except (ModelUnknown, ModelRefused, InputInvalid) as error:
            _say(str(error))
            if withdraw_unserved(repository, wanted.key, str(error), settings.worker_stale_seconds) is None:
                log.warning("another worker serves this model, or will: its jobs go on")
            return EXIT_MODEL
    finally:
        repository.close()


class Worker:
    """Puts the parts of a worker together and takes them apart again."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        broker_url: str,
        model: ModelRef,
        name: str | None,
    ) -> None:
        assert settings.dtype == model.dtype, f"an engine in {settings.dtype} for a queue of {model.dtype}"
        self.settings = settings
        self.repository = repository
        self.broker_url = broker_url
        self.model = model
        folder = lock_folder()
        self._place = None if name else cpu_place(folder)
        device = self._place.device.uuid if self._place else str(name)
        self.name = worker_name(device, machine_mark(folder), repository.workers(), settings.worker_stale_seconds)
        self.gate = Gate(settings.worker_slots, settings.batch_target)
        self._watchdog: Watchdog | None = None
        self.leases = LeaseKeeper(
            repository,
            self.name.node,
            self.name.boot_id,
            lease_seconds=settings.lease_seconds,
            heartbeat_seconds=settings.heartbeat_seconds,
            on_health=self._on_health,
        )

    def run(self, *, stays: bool) -> int:
        """From finding the model to the end of the process.

        Raises ModelUnknown, ModelRefused, InputInvalid; Fenced when another process took this worker's name.
        """
        self._register()
        self._take_over()
        self.leases.say("starting")
        self.leases.start()
        try:
            path = model_files(self.model, self.settings.home)  # a download, maybe; our record says "starting"
            engine = engine_factory(self.settings.engine_factory)(path, self.settings)
            engine.start()
            try:
                tools = Tools(
                    repository=self.repository,
                    engine=engine,
                    encoder=PromptEncoder.open(path, self.settings.max_model_len),
                    leases=self.leases,
                    gate=self.gate,
                    settings=self.settings,
                    stopping=threading.Event(),
                    disk=DiskWatch(self.settings.disk_reserve_bytes),
                )
                self._check_name()
                runtime = Runtime(tools)
                self.leases.health = runtime.health
                self.leases.say("ready")
                code = self._consume(runtime, stays)
                self._check_name()
                return EXIT_DRAINED if code == 0 and self.leases.drain_requested else code
            finally:
                engine.stop()
        finally:
            self._leave()
            if self._watchdog is not None:
                self._watchdog.end()

    def _consume(self, runtime: Runtime, stays: bool) -> int:
        app = make_app(self.broker_url, prefix=self.settings.redis_prefix, slots=self.settings.worker_slots)
        app.runtime = runtime

        def on_stop(**_: Any) -> None:
            runtime.drain()

        worker_shutting_down.connect(on_stop, weak=False)
        self._watchdog = Watchdog(
            runtime,
            stop=lambda: os.kill(os.getpid(), signal.SIGTERM),
            nobody_waits=None if stays else self._nobody_waits,
            broker_answers=lambda: broker_answers(self.broker_url),
        )
        self._watchdog.start()
        try:
            code = _serve(app, self.name.node, app.queues(self.model.key))
            runtime.wait_idle()
            return code
        finally:
            runtime.tools.stopping.set()  # the watchdog watches on: an engine or SQL may keep us
            worker_shutting_down.disconnect(on_stop)

    def _check_name(self) -> None:
        if self.leases.replaced is not None:
            raise self.leases.replaced

    def _nobody_waits(self) -> bool:
        try:
            waiting = self.repository.waiting_models()
        except StorageError:
            return False
        return not waiting or waiting[0][0].key != self.model.key

    def _on_health(self, healthy: bool) -> None:
        if healthy:
            self.gate.open(NO_DATABASE)
        else:
            self.gate.close(NO_DATABASE)

    def _register(self) -> None:
        self.repository.register_worker(
            WorkerRecord(
                id=self.name.node,
                boot_id=self.name.boot_id,
                model_key=self.model.key,
                model_source=self.model.source,
                device=os.environ.get("CUDA_VISIBLE_DEVICES") or self.settings.device,
                state="starting",
                heartbeat_age=0.0,
            )
        )

    def _take_over(self) -> None:
        """Give back what an earlier process of this name held when it died; should it still live, it is fenced.

        What a process on another machine holds, it keeps as long as its leases.
        """
        if not self.name.inherits:
            return
        for job in self.repository.list_jobs(limit=MANY_JOBS):
            for shard in self.repository.shards(job.id) if job.state in JOB_WORKING else ():
                if shard.state is ShardState.RUNNING and shard.lease_owner == self.name.node:
                    try:
                        reason = f"worker {self.name.node} was lost"
                        self.repository.release_shard(
                            shard.id, shard.epoch, reason=reason, preempted=False, crashed=True
                        )
                    except Fenced:
                        continue  # it gave the shard back itself, or its lease ran out

    def _leave(self) -> None:
        self.leases.say("gone")
        self.leases.stop()
        try:
            self.leases.beat()
        except StorageError as error:
            log.warning("the worker's end could not be recorded: %s", error)
        if self._place is not None:
            self._place.release()


def _serve(app: NightmillApp, node: str, queues: Sequence[str]) -> int:
    """The Celery worker, until it is told to stop; its exit code."""

    class StoppedOnce(app.Worker):  # type: ignore[name-defined, misc]
        def install_platform_tweaks(self, worker: Any) -> None:
            super().install_platform_tweaks(worker)
            handle_once(signal.SIGTERM)

    worker = StoppedOnce(
        hostname=node,
        queues=list(queues),
        task_events=True,
        without_gossip=True,
        without_mingle=True,
        loglevel=logging.INFO,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _wanted(repository: Repository, settings: Settings, model: str | None, revision: str | None) -> ModelRef | None:
    """The model to serve: the one that was named, else the one that waits longest; None when none does."""
    if model is not None:
        return named_model(model, revision, settings.dtype, settings.max_model_len)
    return next((ref for ref, _ in repository.waiting_models() if takes(ref, settings.max_model_len)), None)


def _say(message: str) -> None:
    print(f"nightmill worker: {message}", file=sys.stderr)  # noqa: T201 - the message for whoever started us


def main(argv: list[str] | None = None) -> int:
    """`python -m jobs.worker`, as launcher and embedded mode start it. A known error ends with message and code."""
    parser = argparse.ArgumentParser(prog="nightmill worker")
    parser.add_argument("--model")
    parser.add_argument("--model-revision")
    parser.add_argument("--name", help="first half of the node name, e.g. gpu0")
    parser.add_argument("--supervised", action="store_true", help="say with code 79 that it was drained")
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    try:
        settings = find().settings
        code = run_worker(settings, model=options.model, revision=options.model_revision, name=options.name)
        return 0 if code == EXIT_DRAINED and not options.supervised else code
    except Exception as error:
        failure = explain(error)
        if failure is None:
            raise
        _say(failure.message)
        return failure.code


if __name__ == "__main__":
    sys.exit(main())
