"""Celery's thread pool with three repairs: cooperative cancel, no lost slot, and a limit that follows the engine."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Any

from billiard.einfo import ExceptionInfo
from billiard.exceptions import WorkerLostError
from celery.concurrency.base import apply_target
from celery.concurrency.thread import ApplyResult, TaskPool

TICK_SECONDS = 1.0
JOIN_SECONDS = 1.0  # for tasks to end when the pool stops; whoever stops the worker waits for the rest


class Cancels:
    """One cancel event per running task, found by the id of its thread. Thread-safe."""

    def __init__(self) -> None:
        self._events: dict[int, threading.Event] = {}
        self._here = threading.local()

    def register(self) -> None:
        event = threading.Event()
        self._events[threading.get_ident()] = event
        self._here.event = event

    def forget(self) -> None:
        self._events.pop(threading.get_ident(), None)
        self._here.event = None

    def cancel(self, thread_id: int) -> None:
        """Ask the task of this thread to end; nothing happens when it has ended already."""
        if event := self._events.get(thread_id):
            event.set()

    def cancel_all(self) -> None:
        for event in list(self._events.values()):
            event.set()

    @property
    def current(self) -> threading.Event:
        """The event of the task that asks; never set outside a task."""
        return getattr(self._here, "event", None) or threading.Event()


class ShardPool(TaskPool):  # type: ignore[misc]
    """Threads that wait for the engine. With prefetch disabled the consumer pops a message only while fewer than
    `num_processes` are reserved, so that property is the worker's intake."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        runtime = self.app.runtime if self.app is not None else None
        self.cancels: Cancels = runtime.cancels if runtime is not None else Cancels()
        self.gate = runtime.gate if runtime is not None else None
        self._tick: Callable[[], None] | None = runtime.tick if runtime is not None else None
        self._drain: Callable[[], None] | None = runtime.drain if runtime is not None else None
        # A change of the gate must wake the event loop, which else would notice at its next tick, up to 1 s later.
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.gate is not None:
            self.gate.on_open = self.wake

    @property
    def num_processes(self) -> int:
        return int(self.limit) if self.gate is None else self.gate.limit

    def wake(self) -> None:
        try:
            os.write(self._wake_write, b"x")
        except BlockingIOError:
            pass  # the pipe is full of earlier wakes, which serve as well

    def register_with_event_loop(self, hub: Any) -> None:
        hub.add_reader(self._wake_read, os.read, self._wake_read, 4096)
        if self._tick is not None:
            self._tick()
            hub.call_repeatedly(TICK_SECONDS, self._tick)

    def on_apply(
        self,
        target: Callable[..., Any],
        args: Any = None,
        kwargs: Any = None,
        callback: Any = None,
        accept_callback: Any = None,
        error_callback: Any = None,
        **_: Any,
    ) -> ApplyResult:
        future = self.executor.submit(self._apply, target, args, kwargs, callback, accept_callback, error_callback)
        return ApplyResult(future)

    def _apply(
        self, target: Any, args: Any, kwargs: Any, callback: Any, accept_callback: Any, error_callback: Any
    ) -> None:
        self.cancels.register()
        try:
            # The thread id stands for the process id, so that each running request has its own.
            apply_target(target, args, kwargs, callback, accept_callback, pid=threading.get_ident())
        except BaseException as error:  # noqa: BLE001 - SystemExit and MemoryError would leak the slot for ever
            lost = WorkerLostError(repr(error))
            lost.__cause__ = error
            try:
                raise lost.with_traceback(sys.exc_info()[2])
            except WorkerLostError:
                if error_callback is not None:
                    error_callback(ExceptionInfo())
        finally:
            self.cancels.forget()

    def on_close(self) -> None:
        """Whoever asks the worker to stop: only signals are announced beforehand, a remote shutdown is not."""
        if self._drain is not None:
            self._drain()

    def on_stop(self) -> None:
        """Celery calls this in its handler of SIGQUIT too, which may have interrupted a `submit`: that holds the
        executor's lock, so another thread takes it."""
        self.on_close()
        ending = threading.Thread(target=self.executor.shutdown, name="pool-shutdown", daemon=True)
        ending.start()
        ending.join(JOIN_SECONDS)

    def terminate_job(self, pid: int, signal: Any = None) -> None:
        """Revoke with terminate, SIGQUIT and a lost connection all mean: end when you can."""
        self.cancels.cancel(pid)

    def on_terminate(self) -> None:
        self.cancels.cancel_all()
