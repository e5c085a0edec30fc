"""A scheduler at the hands of Hypothesis: any layout, tiny pools, plans that overlap, and moves in any order.

Hypothesis chooses the moves; what rows look like comes of a seed, for most of its own choices are equal or empty.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from engine.cache.groups import LayerGroup
from tests.unit.engine.harness import Harness, group
from tests.unit.engine.world import Prompt, World, pool_sizes

LONGEST = 40  # tokens of a prompt and its output
LAYOUTS = (
    (group(0),),
    (group(0, window=6),),
    (group(0), group(1, window=10)),
    (group(0), group(1, window=1)),
    (group(0, block_size=6), group(1, window=5, block_size=4)),
    (group(0, block_size=8), group(1, window=3), group(2, window=9, block_size=2)),
    (group(0), LayerGroup.of_states(1, (1,))),
    (group(0, window=5, block_size=2), LayerGroup.of_states(1, (1,))),
    (group(0, block_size=8), group(1, window=9, block_size=2), LayerGroup.of_states(2, (2, 3))),
    (LayerGroup.of_states(0, (0,)),),
)
seeds = st.integers(0, 2**32 - 1)
any_index = st.integers(0, 50)  # modulo the number of what there is


def small_harness(rng: random.Random) -> Harness:
    """Room for one sequence and little more."""
    layout, chunk = rng.choice(LAYOUTS), rng.choice([1, 2, 5, 8, 24])
    spare, num_slots = rng.choice([0, 0, 1, 2, 5, 12, 40]), rng.choice([1, 2, 3, 4, 6, 10])
    shares_blocks = rng.random() < 0.9
    return Harness(
        layout,
        num_blocks=pool_sizes(layout, LONGEST - 1, chunk, spare, num_slots),
        max_batch_tokens=chunk,
        max_sequences=rng.choice([1, 2, 3, 4, 6]),
        allow_block_sharing=shares_blocks,
        use_prefix_sharing=shares_blocks and rng.random() < 0.9,
    )


class SchedulerMachine(RuleBasedStateMachine):
    """`count` is told how many steps each example took."""

    def __init__(self, count: Callable[[int], None]) -> None:
        super().__init__()
        self.count = count
        self.prompts: list[Prompt] = [()]  # what later rows may begin with
        self.is_surprised = True

    @initialize(seed=seeds)
    def begin(self, seed: int) -> None:
        self.world = World(small_harness(random.Random(seed)))
        self.add_plan(seed, 3)

    @rule(seed=seeds, count=st.integers(0, 6))
    def add_plan(self, seed: int, count: int) -> None:
        rng = random.Random(seed)
        num_ids = rng.choice([2, 3, 10])
        prompts = [self._prompt(rng, num_ids) for _ in range(rng.randint(1, 6))]
        if rng.random() < 0.6:
            prompts.sort()
        most = [LONGEST - len(prompt) for prompt in prompts]
        shapes = [(rng.choice([rng.randint(1, left), min(3, left)]), rng.choice([1, 1, 1, 2, 3, 4])) for left in most]
        self.world.submit(self.world.add_plan(prompts, shapes, is_known=rng.random() < 0.75), count)

    def _prompt(self, rng: random.Random, num_ids: int) -> Prompt:
        """Some beginning of an earlier one, most often with a tail of its own."""
        start = rng.choice(self.prompts)[: rng.randrange(28)]
        length = 0 if start and rng.random() < 0.1 else rng.randint(1, 29 - len(start))
        prompt = start + tuple(rng.randrange(num_ids) for _ in range(length))
        self.prompts = [(), prompt, *self.prompts[1:11]]
        return prompt

    @precondition(lambda self: self.world.plans)
    @rule(index=any_index, count=st.integers(1, 5))
    def submit(self, index: int, count: int) -> None:
        self.world.submit(self.world.plans[index % len(self.world.plans)], count)

    @rule(count=st.sampled_from([1, 2, 12, 4, 1]), ends_plans=st.booleans())
    def step(self, count: int, ends_plans: bool) -> None:
        for _ in range(count):
            if self.is_surprised:  # by outputs that are longer than any before: this is what leads to preemptions
                self.world.scheduler._admission._output_ratio = 0.0
            self.world.step()
        if ends_plans:
            self.world.end_plans()

    @rule(is_surprised=st.booleans())
    def expect_short_outputs(self, is_surprised: bool) -> None:
        self.is_surprised = is_surprised

    @precondition(lambda self: self.world.plan_of)
    @rule(index=any_index)
    def abort(self, index: int) -> None:
        open_ids = sorted(self.world.plan_of)
        self.world.abort(open_ids[index % len(open_ids)])

    @precondition(lambda self: self.world.makers())
    @rule(index=any_index)
    def abort_who_others_wait_for(self, index: int) -> None:
        makers = self.world.makers()
        self.world.abort(makers[index % len(makers)])

    @precondition(lambda self: self.world.plans)
    @rule(index=any_index)
    def cancel(self, index: int) -> None:
        self.world.cancel(self.world.plans[index % len(self.world.plans)])

    def teardown(self) -> None:
        self.world.finish()
        self.count(self.world.num_steps)


def walk(seed: int, num_moves: int = 40) -> int:
    """The same moves at random: each seed is another example, where Hypothesis varies a few. Returns the steps."""
    rng = random.Random(seed)
    num_steps: list[int] = []
    machine = SchedulerMachine(num_steps.append)
    machine.begin(seed=rng.randrange(2**32))
    world = machine.world
    aborts, expects_short = rng.choice([0.0, 0.1, 0.3]), rng.random() < 0.7
    machine.expect_short_outputs(is_surprised=expects_short)
    for _ in range(num_moves):
        if rng.random() < 0.2:
            machine.add_plan(seed=rng.randrange(2**32), count=rng.randint(0, 6))
        if world.plans and rng.random() < 0.4:
            machine.submit(index=rng.randrange(50), count=rng.randint(1, 5))
        machine.step(count=rng.choice([1, 1, 2, 5, 12]), ends_plans=rng.random() < 0.5)
        if rng.random() < aborts:
            if world.makers() and rng.random() < 0.5:
                machine.abort_who_others_wait_for(index=rng.randrange(50))
            elif world.plan_of:
                machine.abort(index=rng.randrange(50))
    machine.teardown()
    return sum(num_steps)
