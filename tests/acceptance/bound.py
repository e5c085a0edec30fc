"""Jobs of real size on engines of real size without weights: what is computed and held does not depend on them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np

from engine.cache.groups import GroupKind, LayerGroup
from engine.config import EngineConfig
from engine.loop import Engine
from engine.request import Counters, Request, SamplingParams
from engine.step import Sampled, Step
from jobs.junctions import row_plans
from jobs.planner import Int64s, cached_lengths, shared_lengths
from jobs.prompts import PromptEncoder
from ops.demo.humaneval import few_shot_problems, problems

Prompt = tuple[int, ...]
END = 1
LONGEST_ANSWER, MAX_TOKENS = 200, 400
DEFAULT_SLOTS = 64 + 16 + 1  # for each sequence that may run, and for checkpoints


def _group(index: int, kind: GroupKind, num_layers: int, window: int | None = None) -> LayerGroup:
    layers = tuple(range(num_layers))
    if kind == "linear":
        return LayerGroup.of_states(index, layers)
    return LayerGroup(
        index=index,
        kind=kind,
        layers=layers,
        block_size=16,
        window=window,
        num_kv_heads=1,
        key_dim=256,
        value_dim=256,
    )


LAYOUTS = {
    "full": (_group(0, "full", 30),),  # SmolLM2 135M
    "sliding": (_group(0, "sliding", 15, 512), _group(1, "full", 3)),  # Gemma 3 270M
    "linear": (_group(0, "full", 12), _group(1, "linear", 36)),  # Qwen3-Next
    "all kinds": (_group(0, "full", 3), _group(1, "sliding", 3, 512), _group(2, "linear", 10)),  # LFM3
}


def humaneval(model: Path) -> list[Prompt]:
    """All 164 problems: the first six alone, the others behind these six with their solutions."""
    texts = [problem.prompt for problem in [*problems()[:6], *few_shot_problems()]]
    rows = PromptEncoder.open(model).encode_batch(texts, add_special_tokens=True)
    return [tuple(row) for row in rows.to_pylist()]


def tree() -> list[Prompt]:
    """192 leaves on 24 branches of 4 trunks, in random order."""
    draw = random.Random(3)
    trunks = [_some(draw, 200, 400) for _ in range(4)]
    branches = [trunk + _some(draw, 100, 300) for trunk in trunks for _ in range(6)]
    return _shuffled(draw, [branch + _some(draw, 30, 100) for branch in branches for _ in range(8)])


def pairs() -> list[Prompt]:
    """96 beginnings with two ends each, in random order."""
    draw = random.Random(4)
    beginnings = [_some(draw, 200, 800) for _ in range(96)]
    return _shuffled(draw, [beginning + _some(draw, 10, 60) for beginning in beginnings for _ in range(2)])


def _some(draw: random.Random, least: int, most: int) -> Prompt:
    return tuple(draw.randrange(100, 49_000) for _ in range(draw.randint(least, most)))


def _shuffled(draw: random.Random, rows: list[Prompt]) -> list[Prompt]:
    return draw.sample(rows, len(rows))


def lower_bound(rows: Sequence[Prompt]) -> int:
    """As submit counts it: the edges of the prefix tree, and the last token of each further copy."""
    values, starts, lengths = _flat(sorted(rows))
    shared = shared_lengths(values, np.append(starts, len(values)))
    return int((lengths - cached_lengths(lengths, shared)).sum())


def planned_on_grid(rows: Sequence[Prompt], grid: int) -> int:
    """Tokens that run if each row starts where the plan says, moved down to the grid."""
    return sum(
        len(row) - plan.planned_tokens + plan.planned_tokens % grid
        for row, plan in zip(rows, row_plans(*_flat(rows)), strict=True)
    )


def _flat(rows: Sequence[Prompt]) -> tuple[Int64s, Int64s, Int64s]:
    lengths = np.array([len(row) for row in rows])
    return np.concatenate([np.array(row) for row in rows]), np.cumsum(lengths) - lengths, lengths


def shard_requests(name: str, rows: Sequence[Prompt]) -> Iterator[Request]:
    """The rows of one shard, in the order in which they run, with what a worker tells the engine of them."""
    for number, (row, plan) in enumerate(zip(rows, row_plans(*_flat(rows)), strict=True)):
        yield Request(
            request_id=f"{name}.{number}",
            job="job",
            prompt=row,
            sampling=SamplingParams(max_tokens=MAX_TOKENS),
            junctions=plan.junctions,
            planned_tokens=plan.planned_tokens,
        )


class Answers:
    """A runner that draws answers of 0 to 200 tokens by the prompt."""

    def run(self, step: Step) -> list[Sampled]:
        return [
            Sampled(chunk.sequence_id, self._token(chunk.token_ids, chunk.prompt_len), -0.5)
            for chunk in step.chunks
            if chunk.sample_indices
        ]

    def _token(self, tokens: Sequence[int], prompt_len: int) -> int:
        ends_at = prompt_len + sum(tokens[prompt_len - 5 : prompt_len]) * 7919 % LONGEST_ANSWER
        return END if len(tokens) >= ends_at else 2 + len(tokens) * 31 % 89

    def forget(self, sequence_id: int) -> None:
        pass


@dataclass(frozen=True, slots=True)
class Ran:
    """What a job cost."""

    counters: Counters
    peak: tuple[int, ...]  # blocks or slots in use at most, per group
    num_steps: int

    def over(self, bound: int) -> float:
        """Everything that ran beside answers, also what ran again after a preemption."""
        return (self.counters.computed_tokens + self.counters.recomputed_tokens) / bound


def run(groups: tuple[LayerGroup, ...], shards: Sequence[Sequence[Prompt]], config: EngineConfig) -> Ran:
    """All shards at once in one engine, their rows by turns."""
    engine = Engine(Answers(), groups, config, frozenset([END]), 8192)
    feeds = [engine.feed(shard_requests(str(number), shard)) for number, shard in enumerate(shards)]
    engine.start()
    completions = [each for turn in zip_longest(*feeds) for each in turn if each is not None]
    engine.stop()
    engine.check_integrity()
    assert {each.finish_reason for each in completions} == {"stop"}
    assert len(completions) == sum(map(len, shards))
    return Ran(
        counters=sum((each.counters for each in completions), Counters()),
        peak=tuple(round(use.peak) for use in engine.block_use("job")),
        num_steps=engine.totals().num_steps,
    )


def ample() -> EngineConfig:
    return EngineConfig(num_blocks=20_000, num_state_slots=DEFAULT_SLOTS)


def quarter(groups: tuple[LayerGroup, ...], peak: Sequence[int]) -> EngineConfig:
    """Memory for a quarter of the blocks and of the slots that were in use at most; every group has as many blocks."""
    blocks = max(count for group, count in zip(groups, peak, strict=True) if group.has_blocks)
    slots = max((count for group, count in zip(groups, peak, strict=True) if not group.has_blocks), default=0)
    return EngineConfig(num_blocks=blocks // 4 + 1, num_state_slots=slots // 4 + 1 if slots else None)
