"""How many sequences may run at once: by prompts that are known and output lengths that are learnt."""

from __future__ import annotations

from collections.abc import Collection

from engine.cache.manager import KVCache
from engine.cache.tables import Hit, Rank
from engine.forks import Forks
from engine.sequence import Sequence

_MEMORY = 0.95  # how slowly the expected share of max_tokens follows what finished sequences used
_BACKOFF = 0.1  # and how much it rises when a preemption shows that it was too low


class Admission:
    """The owner of what is expected of output lengths."""

    def __init__(self, cache: KVCache, forks: Forks) -> None:
        self._cache = cache
        self._forks = forks
        self._output_ratio = 1.0  # expected output length / max_tokens

    def learn(self, seq: Sequence) -> None:
        """A sequence has come to its own end."""
        ratio = seq.num_generated / seq.request.sampling.max_tokens
        self._output_ratio = _MEMORY * self._output_ratio + (1 - _MEMORY) * ratio

    def back_off(self) -> None:
        """A sequence was preempted: too much was let in."""
        self._output_ratio = min(1.0, self._output_ratio + _BACKOFF)

    def may_start(self, seq: Sequence, hit: Hit, running: Collection[Sequence]) -> bool:
        """Whether its prompt and expected output fit beside what the running sequences are still expected to take, and
        beside what all of them are to keep for later ones."""
        expected = max(1, round(seq.request.sampling.max_tokens * self._output_ratio))
        seq.expected_tokens = max(len(seq.tokens), seq.prompt_len + expected - 1)
        if not running:
            return True
        if len(running) >= self._cache.most_sequences():
            return False
        needs = self._cache.blocks_needed(hit, seq.expected_tokens, len(seq.tokens) - hit.length)
        to_keep = self._lengths_to_keep(seq, running)
        for index, (manager, need) in enumerate(zip(self._cache.managers, needs, strict=True)):
            room = manager.pool.num_free - need - sum(manager.own_at(length) is not None for length in to_keep)
            for other in running:
                peak = manager.peak_blocks(other.expected_tokens, len(other.tokens) - other.computed)
                room -= max(0, peak - other.blocks.tables[index].num_held)
            if room < 0:
                return False
        return True

    def _lengths_to_keep(self, seq: Sequence, running: Collection[Sequence]) -> list[int]:
        """Where planned checkpoints and starts of forks are still to be made: each will take a partial block, or a
        slot, of its own."""
        own = [] if seq.blocks.has_started else [junction.length for junction in seq.blocks.junctions]
        planned = [stop.length for other in running for stop in other.blocks.stops if stop.rank is Rank.PLANNED]
        return own + planned + [other.prompt_len for other in (seq, *running) if self._forks.of(other)]
