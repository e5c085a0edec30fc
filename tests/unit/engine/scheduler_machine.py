"""A scheduler at the hands of Hypothesis: any layout, tiny pools, plans that overlap, and moves in any order."""

from __future__ import annotations

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
STATES = {
    "layouts": st.sampled_from(LAYOUTS),
    "chunk": st.sampled_from([8, 24, 5, 2, 1]),
    "spare": st.sampled_from([0, 12, 1, 2, 40]),
    "num_slots": st.sampled_from([1, 4, 2, 10, 3]),
    "max_sequences": st.sampled_from([4, 2, 6, 3, 1]),
    "switches": st.sampled_from([*[(True, True)] * 6, (True, False), (False, False)]),
}

any_index = st.integers(0, 50)  # modulo the number of what there is
rows = st.lists(
    st.tuples(
        any_index,  # whose beginning it takes
        st.sampled_from([27, 0, 12, 7, 19, 4, 9]),  # and how much of that
        st.lists(st.integers(0, 2), max_size=9).map(tuple),
        st.sampled_from([LONGEST, 3, 1, 9]),  # tokens, if there is room
        st.sampled_from([1, 1, 2, 4, 3]),
    ),
    min_size=1,
    max_size=6,
)


class SchedulerMachine(RuleBasedStateMachine):
    """`count` is told how many steps each example took."""

    def __init__(self, count: Callable[[int], None]) -> None:
        super().__init__()
        self.count = count
        self.prompts: list[Prompt] = [()]  # what later rows may begin with
        self.is_surprised = False

    @initialize(**STATES)
    def begin(
        self,
        layouts: tuple[LayerGroup, ...],
        chunk: int,
        spare: int,
        num_slots: int,
        max_sequences: int,
        switches: tuple[bool, bool],
    ) -> None:
        harness = Harness(
            layouts,
            num_blocks=pool_sizes(layouts, LONGEST - 1, chunk, spare, num_slots),
            max_batch_tokens=chunk,
            max_sequences=max_sequences,
            allow_block_sharing=switches[0],
            use_prefix_sharing=switches[1],
        )
        self.world = World(harness)

    @rule(rows=rows, is_sorted=st.booleans(), is_known=st.sampled_from([True, True, False]), count=st.integers(0, 6))
    def add_plan(
        self, rows: list[tuple[int, int, Prompt, int, int]], is_sorted: bool, is_known: bool, count: int
    ) -> None:
        prompts = []
        for donor, length, tail, _, _ in rows:
            prompt = self.prompts[donor % len(self.prompts)][:length] + tail
            prompts.append(prompt or (0,))
            self.prompts = [prompts[-1], *self.prompts[:11]]
        shapes = [
            (min(max_tokens, LONGEST - len(prompt)), num_samples)
            for prompt, (*_, max_tokens, num_samples) in zip(prompts, rows, strict=True)
        ]
        order = sorted(range(len(prompts)), key=prompts.__getitem__) if is_sorted else range(len(prompts))
        plan = self.world.add_plan([prompts[i] for i in order], [shapes[i] for i in order], is_known=is_known)
        self.world.submit(plan, count)

    @precondition(lambda self: self.world.plans)
    @rule(index=any_index, count=st.integers(1, 5))
    def submit(self, index: int, count: int) -> None:
        self.world.submit(self.world.plans[index % len(self.world.plans)], count)

    @rule(count=st.integers(1, 12), ends_plans=st.booleans())
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

    @precondition(lambda self: self.world.plans)
    @rule(index=any_index)
    def cancel(self, index: int) -> None:
        self.world.cancel(self.world.plans[index % len(self.world.plans)])

    def teardown(self) -> None:
        self.world.finish()
        self.count(self.world.num_steps)
