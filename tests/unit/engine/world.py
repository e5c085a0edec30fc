"""A scheduler in a world of plans: rows that know where they part, rows that do not, cancellations, preemptions.

Whoever drives it chooses what happens; after each step it checks the owners, the tokens, what checkpoints hold, and
that what is found in the cache is the longest prefix from which every group can go on.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field, replace

import numpy as np

from engine.cache.groups import LayerGroup
from engine.cache.tables import Checkpoint, Rank
from engine.request import Completion, Request
from engine.sequence import Sequence
from jobs.junctions import row_plans
from tests.unit.engine.fake_runner import digest, reference
from tests.unit.engine.harness import Harness, request
from tests.unit.engine.oracle import longest_hit

Prompt = tuple[int, ...]


@dataclass(slots=True)
class Plan:
    """The rows of one feed: those that were not submitted yet, and the sequences of the others."""

    name: str
    rows: list[Request]
    open_ids: set[int] = field(default_factory=set)

    @property
    def has_ended(self) -> bool:
        return not self.rows and not self.open_ids


def planned(prompts: Seq[Prompt]) -> list[tuple[Prompt, dict[str, object]]]:
    """Each prompt with what it must know of the others, for `replace` on its request."""
    lengths = np.array([len(prompt) for prompt in prompts])
    plans = row_plans(np.concatenate([np.array(prompt) for prompt in prompts]), np.cumsum(lengths) - lengths, lengths)
    return [
        (prompt, {"junctions": plan.junctions, "planned_tokens": plan.planned_tokens})
        for prompt, plan in zip(prompts, plans, strict=True)
    ]


def pool_sizes(groups: Seq[LayerGroup], longest: int, max_chunk: int, spare: int, num_slots: int) -> list[int]:
    """Room for one sequence of this length and so many blocks more."""
    return [1 + spare + item.peak_blocks(longest, max_chunk) if item.has_blocks else 1 + num_slots for item in groups]


class World:
    """Takes in rows and steps; remembers what must come out."""

    def __init__(self, harness: Harness) -> None:
        self.harness = harness
        self.scheduler = harness.scheduler
        self.cache = harness.cache
        self.plans: list[Plan] = []
        self.plan_of: dict[int, Plan] = {}  # by sequence id
        self.requests: dict[str, Request] = {}  # with samples that have not ended
        self.num_open: dict[str, int] = {}
        self.num_steps = 0
        self.num_names = 0

    # -- what may happen

    def add_plan(self, prompts: Seq[Prompt], shapes: Seq[tuple[int, int]], *, is_known: bool = True) -> Plan:
        """Rows with their (max_tokens, num_samples); without `is_known`, nobody tells the engine where they part."""
        rows = []
        self.num_names += 1
        for number, ((prompt, known), (max_tokens, num_samples)) in enumerate(
            zip(planned(prompts), shapes, strict=True)
        ):
            name = f"{self.num_names}.{number}"
            row = request(name, prompt, max_tokens, job=str(self.num_names % 3), num_samples=num_samples)
            rows.append(replace(row, **known) if is_known else row)  # type: ignore[arg-type]
        plan = Plan(str(self.num_names), rows)
        self.plans.append(plan)
        return plan

    def submit(self, plan: Plan, count: int) -> None:
        for row in plan.rows[:count]:
            ids = self.scheduler.submit(row, plan=plan.name)
            plan.open_ids.update(ids)
            self.plan_of.update(dict.fromkeys(ids, plan))
            self.requests[row.request_id] = row
            self.num_open[row.request_id] = len(ids)
        del plan.rows[:count]

    def step(self) -> None:
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if step is None:
            return
        self.num_steps += 1
        for finished in self.scheduler.update(step, self.harness.runner.run(step), 1.0):
            self._enter(finished.sequence_id, finished.completion)
        self.check()
        for sequence_id in self.scheduler.take_released():
            self.harness.runner.forget(sequence_id)

    def abort(self, sequence_id: int) -> None:
        finished = self.scheduler.abort(sequence_id)
        assert finished is not None
        self._enter(sequence_id, finished.completion)
        self.check()

    def cancel(self, plan: Plan) -> None:
        plan.rows.clear()
        for sequence_id in sorted(plan.open_ids):
            self.abort(sequence_id)

    def end_plans(self) -> None:
        """What the engine does with feeds that are closed."""
        for plan in [plan for plan in self.plans if plan.has_ended]:
            self.cache.end_plan(plan.name)
            self.plans.remove(plan)
        self.check()

    def finish(self) -> None:
        """Run everything to its end, and look for what is left over."""
        for _ in range(20_000):
            for plan in self.plans:
                self.submit(plan, 3)
            if not self.is_busy and not any(plan.rows for plan in self.plans):
                break
            self.step()
        else:
            raise AssertionError("the scheduler does not come to an end")
        self.end_plans()
        self.check_nothing_is_left()

    @property
    def is_busy(self) -> bool:
        return self.scheduler.num_running + self.scheduler.num_waiting > 0

    def waiting(self) -> list[Sequence]:
        scheduler = self.scheduler
        return [seq for key, seq in scheduler._sequences.items() if key not in scheduler._running]

    def makers(self) -> list[int]:
        """Who is on the way to a place where others start."""
        return [key for key, seq in self.scheduler._running.items() if seq.blocks.stops]

    # -- what must hold

    def _enter(self, sequence_id: int, completion: Completion) -> None:
        row = self.requests[completion.request_id]
        expected = reference(row.prompt, row.sampling.max_tokens, frozenset(), completion.sample_index)
        assert completion.finish_reason in ("length", "abort")
        if completion.finish_reason == "length":
            assert completion.token_ids == expected
        assert completion.token_ids == expected[: len(completion.token_ids)]
        self._check_counters(row, completion)
        self.num_open[row.request_id] -= 1
        if not self.num_open[row.request_id]:
            del self.num_open[row.request_id], self.requests[row.request_id]
        self.plan_of.pop(sequence_id).open_ids.remove(sequence_id)
        self.harness.runner._states.pop(sequence_id, None)

    def _check_counters(self, row: Request, completion: Completion) -> None:
        counters = completion.counters
        assert counters.prompt_tokens == counters.cached_tokens + counters.computed_tokens
        if completion.sample_index:
            assert (counters.prompt_tokens, counters.planned_tokens, counters.limited_by) == (0, 0, ())
        elif completion.finish_reason == "length":
            assert counters.prompt_tokens == len(row.prompt)
            assert counters.planned_tokens == row.planned_tokens
        missed = max(0, counters.planned_tokens - counters.cached_tokens)
        if row.planned_tokens:
            assert sum(tokens for _, tokens in counters.limited_by) == missed, counters
        assert counters.preemptions or not counters.recomputed_tokens

    def check(self) -> None:
        self.scheduler.check_integrity()
        for checkpoint in self.cache._checkpoints._ready:
            if checkpoint.node is not None:
                self._check_content(checkpoint)
        for seq in self.waiting()[:4]:
            assert self.cache.find(seq.tokens, seq.blocks).length == longest_hit(self.cache, seq.tokens, seq.blocks)

    def _check_content(self, checkpoint: Checkpoint) -> None:
        """Every position that a later token can see holds what belongs there, once the copies are made."""
        tokens = list(checkpoint.tail)
        node = checkpoint.node
        while node is not None:
            tokens[:0] = node.unit_tokens
            node = node.parent
        states = [0]
        for token in tokens:
            states.append(digest(states[-1], token))
        assert len(tokens) == checkpoint.length
        runner = self.harness.runner
        for group, table in zip(runner.groups, checkpoint.tables, strict=True):
            if not group.has_blocks:
                source = self._origin(group.index, table.blocks[0])
                assert runner.slots[group.index].get(source) == states[-1], "a checkpoint holds another state"
                continue
            first = 0 if group.window is None else max(0, checkpoint.length - group.window + 1)
            for position in range(first, checkpoint.length):
                index, offset = divmod(position, group.block_size)
                block = self._origin(group.index, table.blocks[index])
                assert runner.kv[group.index].get((block, offset)) == states[position + 1], "a checkpoint is wrong"

    def _origin(self, group: int, block: int) -> int:
        for copy in reversed(self.cache._checkpoints._copies):
            if (copy.group, copy.target) == (group, block):
                block = copy.source
        return block

    def check_nothing_is_left(self) -> None:
        checkpoints, forks = self.cache._checkpoints, self.scheduler._forks
        assert not self.plans
        assert not checkpoints._plans
        assert all(checkpoint.rank is Rank.LOOSE for checkpoint in checkpoints._ready)
        self.harness.check_all_returned()
        self.scheduler.check_integrity()
        left = [forks._followers, forks._leader_of, self.scheduler._held, self.scheduler._sequences]
        assert left == [{}, {}, {}, {}]
        for node in self.cache._tree.nodes():
            assert (node.pins, node.checkpoints or {}, node.owner) == (0, {}, None), "something is left in the tree"
            assert node.children or any(node.blocks)
