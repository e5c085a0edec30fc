r"""Which tokens run next: pure decisions over sequences and blocks. No tensors, no clock, no threads.

    waiting  --admit-->  running  --finish-->  completion
       ^  \                 |
       |   held (its prefix is being computed by a running sequence)
       +------preempt-------+

Laws: every request that is accepted could run alone in the empty cache, the oldest running sequence can always go on
at the cost of the younger ones, and every chunk has at least one token. So something moves in every step.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from engine.cache.manager import Hit, KVCache
from engine.cache.prefix import PrefixNode
from engine.errors import EngineError, RequestRefused
from engine.request import Completion, Request
from engine.sequence import End, Sequence
from engine.stats import Tally
from engine.step import Chunk, Sampled, Step

_RATIO_MEMORY = 0.95  # how slowly the expected share of max_tokens follows what finished sequences used
_RATIO_BACKOFF = 0.1  # and how much it rises when a preemption shows that it was too low


@dataclass(frozen=True, slots=True)
class Finished:
    """A sequence that has ended; its blocks are given back already."""

    sequence_id: int
    completion: Completion


class Scheduler:
    """The owner of all sequences, from `submit` to `Finished`."""

    def __init__(
        self,
        cache: KVCache,
        *,
        max_batch_tokens: int,
        max_sequences: int,
        max_model_len: int,
        eos_token_ids: frozenset[int],
        vocab_size: int | None = None,
    ) -> None:
        self.cache = cache
        self.tally = Tally()
        self._max_batch_tokens = max_batch_tokens
        self._max_sequences = max_sequences
        self._max_model_len = max_model_len
        self._eos_token_ids = eos_token_ids
        self._vocab_size = vocab_size
        self._next_id = 0
        self._sequences: dict[int, Sequence] = {}  # waiting, held and running
        self._waiting: list[int] = []  # a heap: ids grow in order of submission; may name sequences that have ended
        self._held: dict[int, PrefixNode] = {}
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._released: list[int] = []  # left the batch since the last take_released()
        self._output_ratio = 1.0  # expected output length / max_tokens

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - len(self._running)

    def submit(self, request: Request) -> tuple[int, ...]:
        """Queue the request's sequences and return their ids; raise RequestRefused if it can never run."""
        self.tally.num_requests += 1
        self._check(request)
        stop_ids = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            stop_ids |= self._eos_token_ids
        new: list[Sequence] = []
        for sample_index in range(request.sampling.num_samples):
            stop = request.make_stop() if request.make_stop is not None else None
            blocks = self.cache.new_sequence(request.job)
            new.append(Sequence(self._next_id + sample_index, request, sample_index, blocks, stop, stop_ids))
        for seq in new:
            self._sequences[seq.id] = seq
            heapq.heappush(self._waiting, seq.id)
        self._next_id += len(new)
        return tuple(seq.id for seq in new)

    def _check(self, request: Request) -> None:
        sampling = request.sampling
        if not len(request.prompt):
            raise RequestRefused("invalid_request", f"request {request.request_id!r} has an empty prompt")
        if sampling.max_tokens < 1 or sampling.num_samples < 1:
            message = f"request {request.request_id!r}: max_tokens and num_samples must be at least 1"
            raise RequestRefused("invalid_request", message)
        problem = sampling.problem()
        if problem is not None:
            raise RequestRefused("invalid_request", f"request {request.request_id!r}: {problem}")
        if self._vocab_size is not None and not (0 <= min(request.prompt) <= max(request.prompt) < self._vocab_size):
            message = f"request {request.request_id!r} has a token id outside 0..{self._vocab_size - 1}"
            raise RequestRefused("invalid_request", message)
        length = len(request.prompt) + sampling.max_tokens
        wanted = f"request {request.request_id!r} needs {len(request.prompt)} prompt + {sampling.max_tokens} new tokens"
        if length > self._max_model_len:
            raise RequestRefused("context_length", f"{wanted}; the model takes {self._max_model_len}")
        if not self.cache.could_fit(length - 1):  # the last token is never run
            raise RequestRefused("context_length", f"{wanted}; the KV cache is too small for it, even when empty")

    def schedule(self) -> Step | None:
        """The next step, with its blocks allocated; None if there is nothing to do."""
        decodes: list[Chunk] = []
        prefills: list[Chunk] = []
        num_decodes = sum(1 for seq in self._running.values() if len(seq.tokens) - seq.computed == 1)
        budget = self._max_batch_tokens - num_decodes
        assert budget >= 0, "a sequence came to decode without a token of budget"
        for seq in list(self._running.values()):
            if seq.id not in self._running:
                continue  # preempted by an older one
            missing = len(seq.tokens) - seq.computed
            length = 1 if missing == 1 else min(missing, budget)
            if length == 0 or not self._make_room(seq, length):
                continue
            if missing == 1:
                decodes.append(_chunk(seq, 1))
            else:
                budget -= length
                prefills.append(_chunk(seq, length))
        self._admit(budget, prefills)
        if not decodes and not prefills:
            if self._sequences:
                raise EngineError(f"{len(self._sequences)} sequences are open but none can run: this is a bug")
            return None
        self.cache.record_step()
        return Step(chunks=(*decodes, *prefills))

    def _make_room(self, seq: Sequence, length: int) -> bool:
        """Room for the next `length` tokens, taken from younger sequences if need be; False: wait, holding what it has.

        The youngest sequence does not preempt itself: the older ones will, as soon as they need what it holds.
        """
        end = seq.computed + length
        while not self.cache.extend(seq.blocks, seq.computed, end):
            youngest = next(reversed(self._running.values()))
            if youngest is seq:
                return False
            self._preempt(youngest)
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue, keeping its tokens. Its registered blocks stay cached, so it mostly finds them again."""
        self._leave_batch(seq)
        seq.preempt()
        self._output_ratio = min(1.0, self._output_ratio + _RATIO_BACKOFF)
        heapq.heappush(self._waiting, seq.id)

    def _leave_batch(self, seq: Sequence) -> None:
        del self._running[seq.id]
        self.cache.release(seq.blocks)
        self._released.append(seq.id)

    def _admit(self, budget: int, prefills: list[Chunk]) -> None:
        """Start waiting sequences, oldest first, while budget, places and blocks last. Looks at few, whatever waits."""
        self._unhold()
        while budget > 0 and len(self._running) < self._max_sequences and self._waiting:
            seq = self._sequences.get(self._waiting[0])
            if seq is None:
                heapq.heappop(self._waiting)  # cancelled while it waited
                continue
            hit = self.cache.find(seq.tokens)
            if hit.computing is not None:
                if len(self._held) >= self._max_sequences:
                    return
                heapq.heappop(self._waiting)
                self._held[seq.id] = hit.computing
                continue
            length = min(len(seq.tokens) - hit.length, budget)
            if not self._may_start(seq, hit) or not self.cache.admit(seq.blocks, seq.tokens, hit, hit.length + length):
                return
            heapq.heappop(self._waiting)
            seq.start_at(hit.length)
            self._running[seq.id] = seq
            budget -= length
            prefills.append(_chunk(seq, length))

    def _unhold(self) -> None:
        """Back to the queue with those whose prefix is there now, or whose representative has gone."""
        if not self._held:
            return
        ready = [sequence_id for sequence_id, node in self._held.items() if node.owner is None]
        for sequence_id in ready:
            del self._held[sequence_id]
            heapq.heappush(self._waiting, sequence_id)

    def _may_start(self, seq: Sequence, hit: Hit) -> bool:
        """Whether its prompt and expected output fit beside what the running sequences are still expected to take."""
        expected = max(1, round(seq.request.sampling.max_tokens * self._output_ratio))
        seq.expected_tokens = max(len(seq.tokens), seq.prompt_len + expected - 1)
        if not self._running:
            return True
        needs = self.cache.blocks_needed(hit, seq.expected_tokens, len(seq.tokens) - hit.length)
        for index, (manager, need) in enumerate(zip(self.cache.managers, needs, strict=True)):
            room = manager.pool.num_free - need
            for other in self._running.values():
                peak = manager.peak_blocks(other.expected_tokens, len(other.tokens) - other.computed)
                room -= max(0, peak - other.blocks.tables[index].num_held)
            if room < 0:
                return False
        return True

    def update(self, step: Step, sampled: list[Sampled], seconds: float) -> list[Finished]:
        """Enter what the step has computed: register blocks, append tokens, end what has ended."""
        per_token = seconds / step.num_tokens
        results = iter(sampled)
        finished: list[Finished] = []
        self.tally.num_steps += 1
        self.tally.sequence_steps += len(step.chunks)
        self.tally.step_tokens += step.num_tokens
        for chunk in step.chunks:
            seq = self._sequences[chunk.sequence_id]
            seq.engine_seconds += per_token * chunk.length
            seq.advance(chunk.length)
            result = next(results) if chunk.sample_indices else None
            if result is None or result.error is None:  # what gave logits that are not finite is no use to anyone
                self.cache.commit(seq.blocks, seq.tokens, seq.computed)
            if result is not None:
                assert result.sequence_id == seq.id, "the runner mixed up the sequences"
                end = seq.accept(result)
                if end is not None:
                    finished.append(self._finish(seq, end))
        assert next(results, None) is None, "the runner sampled more chunks than it was asked to"
        return finished

    def _finish(self, seq: Sequence, end: End) -> Finished:
        if seq.id in self._running:
            self._leave_batch(seq)
        self._held.pop(seq.id, None)
        del self._sequences[seq.id]
        if end.reason in ("stop", "length"):
            ratio = seq.num_generated / seq.request.sampling.max_tokens
            self._output_ratio = _RATIO_MEMORY * self._output_ratio + (1 - _RATIO_MEMORY) * ratio
        completion = seq.completion(end)
        self.tally.add(completion.counters)
        return Finished(seq.id, completion)

    def abort(self, sequence_id: int) -> Finished | None:
        """End a sequence as it is; None if it has ended already. Between two steps only."""
        seq = self._sequences.get(sequence_id)
        return None if seq is None else self._finish(seq, End("abort"))

    def take_released(self) -> list[int]:
        """The sequences that left the batch since the last call: the runner may forget them."""
        released, self._released = self._released, []
        return released

    def check_integrity(self) -> None:
        self.cache.check_integrity()
        waiting = [sequence_id for sequence_id in self._waiting if sequence_id in self._sequences]
        places = [*waiting, *self._held, *self._running]
        assert sorted(places) == sorted(self._sequences), "a sequence is lost or in two places"
        assert len(self._running) <= self._max_sequences, "too many sequences run"
        for sequence_id, seq in self._sequences.items():
            if sequence_id in self._running:
                assert seq.computed < len(seq.tokens), "a running sequence has nothing to run"
            else:
                assert seq.blocks.room == 0, "a waiting sequence holds blocks"
                assert not any(seq.blocks.views), "a waiting sequence holds blocks"


def _chunk(seq: Sequence, length: int) -> Chunk:
    return Chunk(
        sequence_id=seq.id,
        token_ids=seq.tokens,
        start=seq.computed,
        length=length,
        tables=seq.blocks.views,
        sample_indices=(seq.sample_index,) if seq.computed + length == len(seq.tokens) else (),
        sampling=seq.request.sampling,
        prompt_len=seq.prompt_len,
    )
