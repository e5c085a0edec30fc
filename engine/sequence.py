"""One sequence: its tokens, how far it is computed, when it ends, and what it has cost so far."""

from __future__ import annotations

from dataclasses import dataclass

from engine.cache.tables import SequenceBlocks
from engine.request import Completion, Counters, Request, StopCheck
from engine.step import Chunk, Sampled


@dataclass(frozen=True, slots=True)
class End:
    """Why a sequence has ended."""

    reason: str  # stop, length, abort or error
    stop_token_id: int | None = None
    error_code: str | None = None
    error_message: str | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence that has ended; its blocks are given back already."""

    sequence_id: int
    completion: Completion


class Sequence:
    """A prompt and what was generated from it.

    |  0 .. computed  |  computed .. len(tokens)  |
    |   in the cache  |      still to run         |

    A decoding sequence has exactly one token to run, its newest. A preempted one starts again from what is cached.
    """

    __slots__ = (
        "blocks",
        "cached_tokens",
        "computed",
        "computed_tokens",
        "engine_seconds",
        "expected_tokens",
        "id",
        "logprob",
        "preemptions",
        "prompt_len",
        "recomputed_tokens",
        "request",
        "sample_index",
        "seen",
        "stop",
        "stop_token_ids",
        "tokens",
    )

    def __init__(
        self,
        sequence_id: int,
        request: Request,
        sample_index: int,
        blocks: SequenceBlocks,
        stop: StopCheck | None,
        stop_token_ids: frozenset[int],
    ) -> None:
        self.id = sequence_id
        self.request = request
        self.sample_index = sample_index
        self.blocks = blocks
        self.stop = stop
        self.stop_token_ids = stop_token_ids
        self.tokens = [int(token) for token in request.prompt]
        self.prompt_len = len(self.tokens)
        self.computed = 0
        self.seen = 0  # the furthest that `computed` has ever been: below it, tokens run for a second time
        self.expected_tokens = 0  # the length at which admission expects the end
        self.logprob = 0.0
        self.cached_tokens = 0
        self.computed_tokens = 0
        self.recomputed_tokens = 0
        self.preemptions = 0
        self.engine_seconds = 0.0

    @property
    def num_generated(self) -> int:
        return len(self.tokens) - self.prompt_len

    def start_at(self, length: int) -> None:
        """Begin, or begin again, with `length` tokens from the cache. Only what never ran before counts as cached."""
        self.computed = length
        self.cached_tokens += max(0, min(length, self.prompt_len) - self.seen)
        self.seen = max(self.seen, length)

    def advance(self, length: int) -> None:
        """The next `length` tokens have run."""
        end = self.computed + length
        self.recomputed_tokens += max(0, min(end, self.seen) - self.computed)
        self.computed_tokens += max(0, min(end, self.prompt_len) - max(self.computed, self.seen))
        self.computed = end
        self.seen = max(self.seen, end)

    def chunk(self, length: int, forks: tuple[int, ...]) -> Chunk:
        """The next `length` tokens. Where they end the prompt, the samples of `forks` are drawn as well."""
        draws = self.computed + length == len(self.tokens)
        return Chunk(
            sequence_id=self.id,
            token_ids=self.tokens,
            start=self.computed,
            length=length,
            tables=self.blocks.views,
            sample_indices=(self.sample_index, *forks) if draws else (),
            sampling=self.request.sampling,
            prompt_len=self.prompt_len,
        )

    def preempt(self) -> None:
        self.computed = 0
        self.preemptions += 1

    def accept(self, sampled: Sampled) -> End | None:
        """Append the new token, unless it ends the sequence without being part of it."""
        if sampled.error is not None:
            return End("error", error_code=sampled.error_code, error_message=sampled.error)
        token = sampled.token_id
        if token in self.stop_token_ids:
            return End("stop", stop_token_id=token)
        self.tokens.append(token)
        self.logprob += sampled.logprob
        if self.stop is not None:
            try:
                stopped = self.stop(token)
            except Exception as error:  # noqa: BLE001 - foreign code: it may end its own row, never the engine
                message = f"the stop check of request {self.request.request_id!r} raised {error!r}"
                return End("error", error_code="internal", error_message=message)
            if stopped:
                return End("stop")
        if self.num_generated >= self.request.sampling.max_tokens:
            return End("length")
        return None

    def check_integrity(self, *, is_running: bool) -> None:
        if is_running:
            assert self.computed < len(self.tokens), "a running sequence has nothing to run"
        else:
            assert (self.blocks.room, any(self.blocks.views)) == (0, False), "a waiting sequence holds blocks"

    def completion(self, end: End) -> Completion:
        return Completion(
            request_id=self.request.request_id,
            job=self.request.job,
            sample_index=self.sample_index,
            token_ids=tuple(self.tokens[self.prompt_len :]),
            finish_reason=end.reason,
            stop_token_id=end.stop_token_id,
            cumulative_logprob=self.logprob,
            error_code=end.error_code,
            error_message=end.error_message,
            counters=self.counters(),
        )

    def counters(self) -> Counters:
        """Prompt tokens are those dealt with, cached or computed: all of them unless the sequence ended early."""
        first = self.sample_index == 0
        return Counters(
            prompt_tokens=self.cached_tokens + self.computed_tokens if first else 0,
            cached_tokens=self.cached_tokens if first else 0,
            computed_tokens=self.computed_tokens if first else 0,
            completion_tokens=self.num_generated,
            forked_tokens=0 if first else self.computed_tokens,
            recomputed_tokens=self.recomputed_tokens,
            preemptions=self.preemptions,
            planned_tokens=self.request.planned_tokens if first and self.seen else 0,
            limited_by=self.blocks.limits if first else (),
            engine_seconds=self.engine_seconds,
            groups=self.blocks.counters(),
        )
