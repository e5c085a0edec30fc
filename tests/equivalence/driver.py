"""Runs a ModelRunner without a scheduler: hand-made block tables, every sequence in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from engine.cache.groups import LayerGroup
from engine.model.runner import ModelRunner
from engine.request import SamplingParams
from engine.step import NULL_BLOCK, Chunk, Step

GREEDY = SamplingParams(temperature=0.0)


@dataclass(slots=True)
class Driven:
    """One sequence of the driver."""

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
        sequences = [self._sequence(i, len(prompts), prompt, new_tokens) for i, prompt in enumerate(prompts)]
        while waiting := [s for s in sequences if len(s.output) < new_tokens]:
            chunks = [self._chunk(sequences.index(s), s, chunk) for s in waiting]
            sampled = iter(self._runner.run(Step(tuple(chunks))))
            for sequence, part in zip(waiting, chunks, strict=True):
                sequence.computed += part.length
                if part.sample_indices:
                    result = next(sampled)
                    assert result.error is None
                    sequence.token_ids.append(result.token_id)
        return [sequence.output for sequence in sequences]

    def _sequence(self, index: int, count: int, prompt: Sequence[int], new_tokens: int) -> Driven:
        tables = []
        for group in self._groups:
            if not group.has_blocks:
                tables.append([1 + index])
                continue
            blocks = (len(prompt) + new_tokens) // group.block_size + 1
            tables.append([1 + index + count * position for position in range(blocks)])
        return Driven(list(prompt), len(prompt), tuple(tables))

    def _chunk(self, sequence_id: int, sequence: Driven, limit: int) -> Chunk:
        length = min(limit, len(sequence.token_ids) - sequence.computed)
        return Chunk(
            sequence_id=sequence_id,
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
