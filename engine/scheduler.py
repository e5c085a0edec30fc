r"""Which tokens run next: pure decisions over sequences and blocks. No tensors, no clock, no threads.

    waiting  --admit-->  running  --finish-->  completion
     ^  ^  \                 |
     |  |   held (its prefix is being computed by a running sequence)
     |  +------preempt-------+
     +--fork-- followers (samples whose prompt their leader runs)

Laws: every request that is accepted could run alone in the empty cache, the oldest running sequence can always go on
at the cost of the younger ones, and every chunk has at least one token. So something moves in every step.
"""

from __future__ import annotations

import heapq
from collections.abc import Hashable, Iterator

from engine.admission import Admission
from engine.cache.manager import KVCache
from engine.cache.prefix import PrefixNode
from engine.cache.tables import Checkpoint, Rank
from engine.errors import EngineError, RequestRefused
from engine.forks import Forks
from engine.limits import TOO_LONG, RequestLimits
from engine.request import Request
from engine.sequence import End, Finished, Sequence
from engine.stats import Tally
from engine.step import Chunk, Sampled, Step

_ABORT = End("abort")


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
        self._eos_token_ids = eos_token_ids
        self._limits = RequestLimits(cache=cache, max_model_len=max_model_len, vocab_size=vocab_size)
        self._forks = Forks()
        self._admission = Admission(cache, self._forks)
        self._next_id = 0
        self._sequences: dict[int, Sequence] = {}  # waiting, held, running and followers
        self._waiting: list[int] = []  # a heap: ids grow in order of submission; may name sequences that have ended
        self._held: dict[int, PrefixNode | Checkpoint] = {}
        self._running: dict[int, Sequence] = {}  # in order of admission
        self._released: list[int] = []  # left the batch since the last take_released()

    @property
    def num_running(self) -> int:
        return len(self._running)

    @property
    def running_ids(self) -> tuple[int, ...]:
        return tuple(self._running)

    @property
    def num_waiting(self) -> int:
        return len(self._sequences) - len(self._running)

    def submit(self, request: Request, plan: Hashable = None) -> tuple[int, ...]:
        """Queue the request's sequences and return their ids; raise RequestRefused if it can never run.

        `plan` names the requests that its junctions speak of; the cache's `end_plan` must follow its last one.
        """
        self.tally.num_requests += 1
        try:
            self._limits.check(request)
        except RequestRefused as refusal:
            if refusal.code == TOO_LONG:
                self.cache.skip(request, plan)
            raise
        stop_ids = frozenset(request.sampling.stop_token_ids)
        if not request.sampling.ignore_eos:
            stop_ids |= self._eos_token_ids
        new: list[Sequence] = []
        for sample_index in range(request.sampling.num_samples):
            stop = request.make_stop() if request.make_stop is not None else None
            blocks = self.cache.new_sequence(request.job, len(request.prompt))
            new.append(Sequence(self._next_id + sample_index, request, sample_index, blocks, stop, stop_ids))
        self._next_id += len(new)
        self._sequences.update((seq.id, seq) for seq in new)
        new[0].blocks.follow(plan, request.planned_tokens, request.junctions, self.cache.grid)
        leaders = new
        if self.cache.shares_blocks:
            leaders, followers = new[:1], new[1:]
            self._forks.add(new[0], followers)
        for seq in leaders:
            heapq.heappush(self._waiting, seq.id)
        return tuple(seq.id for seq in new)

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
            length = 1 if missing == 1 else self._up_to_stop(seq, min(missing, budget))
            if length == 0 or not self._make_room(seq, length):
                continue
            if missing == 1:
                decodes.append(self._chunk(seq, 1))
            else:
                budget -= length
                prefills.append(self._chunk(seq, length))
        self._admit(budget, prefills)
        if not decodes and not prefills:
            if self._sequences:
                raise EngineError(f"{len(self._sequences)} sequences are open but none can run: this is a bug")
            return None
        self.cache.record_step()
        return Step(chunks=(*decodes, *prefills), copies=self.cache.take_copies())

    def _up_to_stop(self, seq: Sequence, length: int) -> int:
        stop = self.cache.next_stop(seq.blocks)
        length = length if stop is None else min(length, stop - seq.computed)
        return self.cache.grid.fit(seq.computed, length, seq.prompt_len)

    def _make_room(self, seq: Sequence, length: int) -> bool:
        """Room for the next `length` tokens, taken from what is kept for later, then from younger sequences.

        False: it waits, holding what it has. The youngest does not preempt itself: the older ones will, if need be.
        """
        end = seq.computed + length
        while not self.cache.extend(seq.blocks, seq.computed, end):
            if self.cache.reclaim(Rank.PLANNED if len(self._running) > 1 else Rank.OWN):
                continue
            youngest = next(reversed(self._running.values()))
            if youngest is seq:
                return False
            self._preempt(youngest)
        return True

    def _preempt(self, seq: Sequence) -> None:
        """Back to the queue, with its tokens and its state. Its registered blocks stay cached for a while."""
        self.cache.suspend(seq.blocks, seq.computed)
        self._requeue(seq)
        self._admission.back_off()

    def _requeue(self, seq: Sequence) -> None:
        del self._running[seq.id]
        self._released.append(seq.id)
        seq.preempt()
        heapq.heappush(self._waiting, seq.id)

    def rewind(self, max_sequences: int, max_batch_tokens: int) -> None:
        """The last step did not run: all start again, within these limits, from what earlier steps have registered."""
        self.limit(max_sequences, max_batch_tokens)
        for seq in list(self._running.values()):
            self.cache.release(seq.blocks)
            self._requeue(seq)
        self.cache.take_copies()  # perhaps none of the last ones was made: whatever holds one is given up
        while self.cache.reclaim(Rank.OWN):
            pass

    def limit(self, max_sequences: int, max_batch_tokens: int) -> None:
        self._max_sequences, self._max_batch_tokens = max_sequences, max_batch_tokens

    def _admit(self, budget: int, prefills: list[Chunk]) -> None:
        """Start waiting sequences, oldest first, while budget, places and blocks last. Looks at few, whatever waits."""
        self._unhold()
        while budget > 0 and self._has_place() and self._waiting:
            seq = self._sequences.get(self._waiting[0])
            if seq is None:
                heapq.heappop(self._waiting)  # cancelled while it waited
                continue
            hit = self.cache.find(seq.tokens, seq.blocks)
            if hit.computing is not None:
                if len(self._held) >= self._max_sequences:
                    return
                heapq.heappop(self._waiting)
                self._held[seq.id] = hit.computing
                continue
            length = self.cache.grid.fit(hit.length, min(len(seq.tokens) - hit.length, budget), seq.prompt_len)
            if length == 0:
                return
            if not self._admission.may_start(seq, hit, self._running.values()) or not self.cache.admit(
                seq.blocks, seq.tokens, hit, hit.length + length
            ):
                if self.cache.make_way(hit, [other.blocks for other in self._running.values()]):
                    continue
                return
            heapq.heappop(self._waiting)
            seq.start_at(hit.length)
            self._running[seq.id] = seq
            length = self._up_to_stop(seq, length)
            budget -= length
            prefills.append(self._chunk(seq, length))

    def _has_place(self) -> bool:
        """Places are kept for the followers of running leaders: what a fork keeps for them is soon used up then."""
        return len(self._running) + self._forks.num_behind(self._running) < self._max_sequences

    def _unhold(self) -> None:
        """Back to the queue with those whose prefix is there now, or whose representative has gone."""
        ready = [sequence_id for sequence_id, node in self._held.items() if node.owner is None]
        for sequence_id in ready:
            del self._held[sequence_id]
            heapq.heappush(self._waiting, sequence_id)

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
            drawn = [next(results) for _ in chunk.sample_indices]
            assert all(each.sequence_id == seq.id for each in drawn), "the runner mixed up the sequences"
            # Logits that are not finite come of a bad prefix; where one sample found a token, they are sound.
            is_usable = not drawn or any(each.error is None for each in drawn)
            if is_usable:
                self.cache.commit(seq.blocks, seq.tokens, seq.computed)
            if drawn:
                finished += self._accept(seq, drawn, is_usable)
        assert next(results, None) is None, "the runner drew more than it was asked to"
        return finished

    def _accept(self, leader: Sequence, drawn: list[Sampled], is_usable: bool) -> Iterator[Finished]:
        """The next token of a sequence; at the end of its prompt also the first tokens of those that fork off here."""
        followers = self._forks.of(leader)
        self._forks.release(leader)
        going_on: list[Sequence] = []
        for follower, sampled in zip(followers, drawn[1:], strict=True):
            end = follower.accept(sampled)
            if end is not None:
                yield self._finish(follower, end)
            else:
                going_on.append(follower)
        if going_on and is_usable:  # otherwise, or without room, each runs the prompt itself
            start = self.cache.fork(leader.blocks, leader.computed, len(going_on))
            for follower in going_on:
                follower.blocks.kept = start
        for follower in going_on:
            follower.blocks.has_started = True
            heapq.heappush(self._waiting, follower.id)
        end = leader.accept(drawn[0])
        if end is not None:
            yield self._finish(leader, end)

    def _finish(self, seq: Sequence, end: End) -> Finished:
        if self._running.pop(seq.id, None) is not None:
            self.cache.release(seq.blocks)
            self._released.append(seq.id)
        self._held.pop(seq.id, None)
        next_leader = self._forks.remove(seq)
        if next_leader is not None:
            heapq.heappush(self._waiting, next_leader.id)
        self.cache.leave(seq.blocks, seq.tokens)
        del self._sequences[seq.id]
        if end.reason in ("stop", "length"):
            self._admission.learn(seq)
        completion = seq.completion(end)
        self.tally.add(completion.counters)
        return Finished(seq.id, completion)

    def abort(self, sequence_id: int, end: End = _ABORT) -> Finished | None:
        """End a sequence as it is; None if it has ended already. Between two steps only."""
        seq = self._sequences.get(sequence_id)
        return None if seq is None else self._finish(seq, end)

    def take_released(self) -> list[int]:
        """The sequences that left the batch since the last call: the runner may forget them."""
        released, self._released = self._released, []
        return released

    def check_integrity(self) -> None:
        self.cache.check_integrity()
        self.cache.check_references([seq.blocks for seq in self._running.values()])
        waiting = [sequence_id for sequence_id in self._waiting if sequence_id in self._sequences]
        places = [*waiting, *self._held, *self._running, *self._forks.ids()]
        assert sorted(places) == sorted(self._sequences), "a sequence is lost or in two places"
        assert len(self._running) <= self._max_sequences, "too many sequences run"
        for sequence_id, seq in self._sequences.items():
            seq.check_integrity(is_running=sequence_id in self._running)

    def _chunk(self, seq: Sequence, length: int) -> Chunk:
        return seq.chunk(length, tuple(follower.sample_index for follower in self._forks.of(seq)))
