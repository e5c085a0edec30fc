"""The engine: one thread that turns requests into completions, step by step, for as long as the process lives."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from typing import Protocol

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache
from engine.config import EngineConfig
from engine.errors import ConfigError, EngineDead, RequestRefused
from engine.feed import Feed
from engine.grid import Grid
from engine.recovery import Batch, Timeouts, Trouble, trouble_of
from engine.request import Completion, Request
from engine.scheduler import Scheduler
from engine.sequence import End, Finished
from engine.stats import BlockUse, EngineTotals
from engine.step import Sampled, Step

log = logging.getLogger(__name__)

_IDLE_SECONDS = 0.5  # how long an idle loop sleeps before it shows that it lives


class Runner(Protocol):
    """The side with the tensors."""

    def run(self, step: Step) -> list[Sampled]:
        """One forward pass; one answer per chunk with `samples`, in the chunks' order."""

    def forget(self, sequence_id: int) -> None:
        """The sequence has left the batch: drop what is kept for it alone. It may come back."""


def _pool_size(group: LayerGroup, config: EngineConfig) -> int:
    """Blocks, or state slots, of this group."""
    size = config.num_blocks if group.has_blocks else config.num_state_slots
    if size is None:
        name = "num_blocks" if group.has_blocks else "num_state_slots"
        raise ConfigError(f"{name} is not resolved; whoever sizes the memory must tell the engine")
    return size


class Engine:
    """Fed by any number of feeds at once; never drains between them.

    Only the loop's thread touches the scheduler. Other threads use feeds and read numbers.
    """

    def __init__(
        self,
        runner: Runner,
        groups: tuple[LayerGroup, ...],
        config: EngineConfig,
        eos_token_ids: frozenset[int],
        max_model_len: int,
        vocab_size: int | None = None,
    ) -> None:
        self.groups = groups  # what the counters of completions and `block_use` are per
        self._runner = runner
        self._max_sequences = config.max_sequences
        cache = KVCache(
            groups,
            [_pool_size(group, config) for group in groups],
            max_chunk=config.max_batch_tokens,
            allow_block_sharing=config.allow_block_sharing,
            use_prefix_sharing=config.use_prefix_sharing,
            grid=Grid(config.grid),
        )
        if cache.most_sequences() < config.max_sequences:
            log.warning(
                "num_state_slots is %d, so at most %d sequences run at once instead of %d",
                *(config.num_state_slots, cache.most_sequences(), config.max_sequences),
            )
        self._scheduler = Scheduler(
            cache,
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_model_len=max_model_len,
            eos_token_ids=eos_token_ids,
            vocab_size=vocab_size,
        )
        self._batch = Batch(config.max_sequences, config.max_batch_tokens, config.grid)
        self._timeouts = Timeouts(config.request_timeout_seconds)
        self._lock = threading.Lock()  # guards _feeds and the two ends of life
        self._feeds: list[Feed] = []
        self._feed_of: dict[int, Feed] = {}  # by sequence id
        self._wake = threading.Event()
        self._stopping = False
        self._death: EngineDead | None = None
        self._thread: threading.Thread | None = None
        self._last_sign = time.monotonic()

    # -- any thread

    def start(self) -> None:
        assert self._thread is None, "an engine is started once"
        self._last_sign = time.monotonic()
        self._thread = threading.Thread(target=self._loop, name="engine", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the loop after the step that runs now; open requests end as "abort". Idempotent."""
        with self._lock:
            self._stopping = True
        self._wake.set()
        if self._thread is None:
            self._abort_everything()
        else:
            self._thread.join()

    def feed(self, requests: Iterable[Request]) -> Feed:
        feed = Feed(requests, self._wake.set)
        with self._lock:
            if self._death is not None:
                raise self._death
            if self._stopping:
                raise EngineDead("the engine was stopped; it takes no more requests")
            self._feeds.append(feed)
        self._wake.set()
        return feed

    @property
    def load(self) -> int:
        """Sequences in the engine, waiting and running."""
        return self._scheduler.num_running + self._scheduler.num_waiting

    @property
    def alive(self) -> bool:
        return self._death is None and not self._stopping and (self._thread is None or self._thread.is_alive())

    def last_step_age(self) -> float:
        """Seconds since the loop last showed that it lives: ended a step, or woke up idle."""
        return time.monotonic() - self._last_sign

    def block_use(self, job: str) -> tuple[BlockUse, ...]:
        """The job's use of blocks per layer group, over the steps in which it had any."""
        return self._scheduler.cache.block_use(job)

    def totals(self) -> EngineTotals:
        return self._scheduler.tally.totals(self._max_sequences)

    def check_integrity(self) -> None:
        """For the loop's own thread, or when nothing runs."""
        self._scheduler.check_integrity()
        assert len(self._feed_of) == self.load, "a sequence has no feed"

    # -- the loop's thread

    def _loop(self) -> None:
        try:
            while not self._stopping:
                if not self.turn():
                    self._wake.wait(_IDLE_SECONDS)
                self._wake.clear()
                self._last_sign = time.monotonic()
            self._abort_everything()
        except BaseException as error:
            log.exception("engine_died")
            self._die(error)

    def turn(self) -> bool:
        """Take in what the feeds have, then one step; False if there was nothing to run. For an engine that was not
        started, whoever made it may call this instead of the loop."""
        self._serve_feeds()
        self._end_overdue()
        if self.load == 0:
            return False
        self.step()
        return True

    def step(self) -> None:
        """Schedule, run, update."""
        tally = self._scheduler.tally
        start = time.perf_counter()
        step = self._scheduler.schedule()
        for sequence_id in self._scheduler.take_released():
            self._runner.forget(sequence_id)
        if step is None:
            return
        scheduled = time.perf_counter()
        try:
            sampled = self._runner.run(step)
        except Exception as error:  # noqa: BLE001 - foreign code: it may end the row that it cannot run
            self._recover(step, error)
            return
        if self._batch.went_well():
            self._scheduler.limit(self._batch.max_sequences, self._batch.max_tokens)
        ran = time.perf_counter()
        for finished in self._scheduler.update(step, sampled, ran - start):
            self._deliver(finished)
        tally.schedule_seconds += scheduled - start
        tally.run_seconds += ran - scheduled
        tally.update_seconds += time.perf_counter() - ran

    def _recover(self, step: Step, error: Exception) -> None:
        """Run less at once; what cannot run alone ends as its row's error. Raises the error if the engine is at fault.

        Nothing of the step is kept, so the tokens of the others are what they would have been.
        """
        trouble = trouble_of(error)
        if trouble is Trouble.DEVICE:
            raise error
        can_be_tried = self._batch.failed(step, trouble)
        self._scheduler.rewind(self._batch.max_sequences, self._batch.max_tokens)
        if can_be_tried:
            return
        log.error("sequence_failed reason=%s", trouble.value, exc_info=error)
        message = f"the engine cannot run this row, not even alone: {error!r}"
        finished = self._scheduler.abort(step.chunks[0].sequence_id, End("error", None, trouble.value, message))
        assert finished is not None, "a sequence of the last step is gone"
        self._deliver(finished)
        if self._batch.blames_too_many(finished.completion.request_id):
            raise error

    def _end_overdue(self) -> None:
        for sequence_id in self._timeouts.overdue(self._scheduler.running_ids, time.monotonic()):
            message = "this row ran for longer than request_timeout_seconds allows"
            finished = self._scheduler.abort(sequence_id, End("error", None, "request_timeout", message))
            assert finished is not None, "a running sequence is gone"
            self._deliver(finished)

    def _serve_feeds(self) -> None:
        """Take in cancellations, then pull from the feeds in turn while the queue is short."""
        with self._lock:
            feeds = list(self._feeds)
        for feed in feeds:
            if feed.is_cancelled:
                self._cancel(feed)
        open_feeds = [feed for feed in feeds if feed.has_more]
        while open_feeds and self._scheduler.num_waiting < self._max_sequences:
            feed = open_feeds.pop(0)
            request = feed.pull()
            if request is not None:
                self._submit(feed, request)
                open_feeds.append(feed)
        for feed in feeds:
            if feed.is_closed:
                self._scheduler.cache.end_plan(feed)
        with self._lock:
            self._feeds = [feed for feed in self._feeds if not feed.is_closed]

    def _submit(self, feed: Feed, request: Request) -> None:
        try:
            sequence_ids = self._scheduler.submit(request, plan=feed)
        except RequestRefused as refusal:
            self._refuse(feed, request, refusal.code, str(refusal))
        except Exception as error:  # noqa: BLE001 - a malformed request may end its own row, never the engine
            self._refuse(feed, request, "invalid_request", f"request {request.request_id!r} is malformed: {error!r}")
        else:
            feed.opened(len(sequence_ids))
            for sequence_id in sequence_ids:
                self._feed_of[sequence_id] = feed

    def _refuse(self, feed: Feed, request: Request, code: str, message: str) -> None:
        """One error per sample, so that a request always gives as many completions as it asked for."""
        for sample_index in range(max(1, request.sampling.num_samples)):
            feed.opened(1)
            feed.deliver(
                Completion(
                    request_id=request.request_id,
                    job=request.job,
                    sample_index=sample_index,
                    token_ids=(),
                    finish_reason="error",
                    error_code=code,
                    error_message=message,
                )
            )

    def _deliver(self, finished: Finished) -> None:
        self._timeouts.forget(finished.sequence_id)
        self._feed_of.pop(finished.sequence_id).deliver(finished.completion)

    def _cancel(self, feed: Feed) -> None:
        feed.close()
        for sequence_id in [key for key, owner in self._feed_of.items() if owner is feed]:
            finished = self._scheduler.abort(sequence_id)
            if finished is not None:
                self._deliver(finished)

    def _abort_everything(self) -> None:
        with self._lock:
            feeds, self._feeds = self._feeds, []
        for feed in feeds:
            self._cancel(feed)

    def _die(self, error: BaseException) -> None:
        death = EngineDead(f"the engine has died of {error!r}; this process must exit")
        death.__cause__ = error
        with self._lock:
            self._death = death
            feeds, self._feeds = self._feeds, []
        for feed in feeds:
            feed.close(death)
