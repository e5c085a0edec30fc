"""Runs a ModelRunner without a scheduler: hand-made block tables, every sequence in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from engine.cache.groups import LayerGroup
from engine.model.runner import ModelRunner
from engine.request import SamplingParams
from engine.step import NULL_BLOCK, BlockCopy, Chunk, Step

GREEDY = SamplingParams(temperature=0.0)


@dataclass(slots=True)
class Driven:
    """One sequence of the driver."""

    sequence_id: int
    token_ids: list[int]
    prompt_len: int
    tables: tuple[list[int], ...]
    computed: int = 0
    sampling: SamplingParams = field(default=GREEDY)

    @property
    def output(self) -> list[int]:
        return self.token_ids[self.prompt_len :]


class Driver:
    """Prompts in, greedy tokens out. Blocks are handed out in an order that leaves no two of a sequence adjacent."""

    def __init__(self, runner: ModelRunner, groups: tuple[LayerGroup, ...]) -> None:
        self._runner = runner
        self._groups = groups

    def run(self, prompts: Sequence[Sequence[int]], new_tokens: int, chunk: int) -> list[list[int]]:
        return self._finish(self._sequences(prompts, new_tokens), new_tokens, chunk)

    def run_forked(self, prompts: Sequence[Sequence[int]], shared: int, new_tokens: int, chunk: int) -> list[list[int]]:
        """The first prompt alone up to token `shared`; there the others part from it, each from the one before it,
        so that all but one copy what the same step copies first."""
        sequences = self._sequences(prompts, new_tokens)
        while sequences[0].computed < shared:
            self._step(sequences[:1], min(chunk, shared - sequences[0].computed))
        copies = [copy for parent, child in pairwise(sequences) for copy in self._fork(parent, child)]
        return self._finish(sequences, new_tokens, chunk, copies)

    def _finish(
        self, sequences: Sequence[Driven], new_tokens: int, chunk: int, copies: Sequence[BlockCopy] = ()
    ) -> list[list[int]]:
        while waiting := [s for s in sequences if len(s.output) < new_tokens]:
            self._step(waiting, chunk, copies)
            copies = ()
        return [sequence.output for sequence in sequences]

    def _step(self, sequences: Sequence[Driven], limit: int, copies: Sequence[BlockCopy] = ()) -> None:
        chunks = [self._chunk(s, limit) for s in sequences]
        sampled = iter(self._runner.run(Step(tuple(chunks), tuple(copies))))
        for sequence, part in zip(sequences, chunks, strict=True):
            sequence.computed += part.length
            if part.sample_indices:
                result = next(sampled)
                assert result.error is None
                sequence.token_ids.append(result.token_id)

    def _fork(self, parent: Driven, child: Driven) -> list[BlockCopy]:
        """Whole blocks are shared; the block that is begun, and the state, are copied."""
        child.computed = parent.computed
        copies = []
        for group, theirs, own in zip(self._groups, parent.tables, child.tables, strict=True):
            if not group.has_blocks:
                copies.append(BlockCopy(group.index, theirs[0], own[0]))
                continue
            whole, begun = divmod(parent.computed, group.block_size)
            own[:whole] = theirs[:whole]
            if begun:
                copies.append(BlockCopy(group.index, theirs[whole], own[whole]))
        return copies

    def _sequences(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Driven]:
        return [self._sequence(i, len(prompts), prompt, new_tokens) for i, prompt in enumerate(prompts)]

    def _sequence(self, index: int, count: int, prompt: Sequence[int], new_tokens: int) -> Driven:
        tables = []
        for group in self._groups:
            if not group.has_blocks:
                tables.append([1 + index])
                continue
            blocks = (len(prompt) + new_tokens) // group.block_size + 1
            tables.append([1 + index + count * position for position in range(blocks)])
        return Driven(index, list(prompt), len(prompt), tuple(tables))

    def _chunk(self, sequence: Driven, limit: int) -> Chunk:
        length = min(limit, len(sequence.token_ids) - sequence.computed)
        return Chunk(
            sequence_id=sequence.sequence_id,
            token_ids=sequence.token_ids,
            start=sequence.computed,
            length=length,
            tables=tuple(
                _with_holes(table, group, sequence.computed)
                for table, group in zip(sequence.tables, self._groups, strict=True)
            ),
            sample_indices=(0,) if sequence.computed + length == len(sequence.token_ids) else (),
            sampling=replace(sequence.sampling),
            prompt_len=sequence.prompt_len,
        )


def _with_holes(table: list[int], group: LayerGroup, start: int) -> list[int]:
    """The table as the scheduler gives it: nothing behind the window."""
    if group.window is None:
        return table
    hole = max(0, start - group.window + 1) // group.block_size
    return [NULL_BLOCK] * hole + table[hole:]
