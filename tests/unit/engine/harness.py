"""A scheduler with a fake runner, driven step by step, with every owner checked after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from engine.cache.groups import LayerGroup
from engine.cache.manager import KVCache
from engine.cache.tables import Rank
from engine.grid import ANYWHERE, Grid
from engine.request import Completion, Counters, Request, SamplingParams, StopCheck
from engine.scheduler import Scheduler
from tests.unit.engine.fake_runner import FakeRunner


def group(index: int, window: int | None = None, block_size: int = 4) -> LayerGroup:
    return LayerGroup(
        index=index,
        kind="full" if window is None else "sliding",
        layers=(index,),
        block_size=block_size,
        window=window,
        num_kv_heads=1,
        key_dim=1,
        value_dim=1,
    )


FULL = (group(0),)
HYBRID = (group(0), group(1, window=10))
STATES = LayerGroup.of_states(0, (0,))
LINEAR = (group(0), LayerGroup.of_states(1, (1, 2)))


def request(
    name: str,
    prompt: Iterable[int],
    max_tokens: int = 8,
    *,
    job: str = "job",
    num_samples: int = 1,
    stop_token_ids: tuple[int, ...] = (),
    ignore_eos: bool = False,
    make_stop: Callable[[], StopCheck] | None = None,
) -> Request:
    sampling = SamplingParams(
        max_tokens=max_tokens, num_samples=num_samples, stop_token_ids=stop_token_ids, ignore_eos=ignore_eos
    )
    return Request(request_id=name, job=job, prompt=list(prompt), sampling=sampling, make_stop=make_stop)


class Harness:
    def __init__(
        self,
        groups: tuple[LayerGroup, ...] = HYBRID,
        *,
        num_blocks: int | Sequence[int] = 200,  # and state slots
        max_batch_tokens: int = 32,
        max_sequences: int = 8,
        max_model_len: int = 10_000,
        eos: frozenset[int] = frozenset(),
        allow_block_sharing: bool = True,
        use_prefix_sharing: bool = True,
        grid: Grid = ANYWHERE,
    ) -> None:
        self.cache = KVCache(
            groups,
            [num_blocks] * len(groups) if isinstance(num_blocks, int) else num_blocks,
            max_chunk=max_batch_tokens,
            allow_block_sharing=allow_block_sharing,
            use_prefix_sharing=use_prefix_sharing,
            grid=grid,
        )
        self.scheduler = Scheduler(
            self.cache,
            max_batch_tokens=max_batch_tokens,
            max_sequences=max_sequences,
            max_model_len=max_model_len,
            eos_token_ids=eos,
        )
        self.runner = FakeRunner(groups, [manager.pool for manager in self.cache.managers])
        self.max_batch_tokens = max_batch_tokens
        self.completions: list[Completion] = []

    def step(self) -> list[Completion]:
        step = self.scheduler.schedule()
        self.scheduler.check_integrity()
        if step is None:
            return []
        assert 0 < step.num_tokens <= self.max_batch_tokens
        for chunk in step.chunks:
            list(self.cache.grid.cells(chunk.start, chunk.start + chunk.length, chunk.prompt_len))  # none is cut
        finished = self.scheduler.update(step, self.runner.run(step), 1.0)
        self.scheduler.check_integrity()
        completions = [item.completion for item in finished]
        self.completions += completions
        return completions

    def run(self, *requests: Request) -> dict[tuple[str, int], Completion]:
        """Submit, run to the end, and check that every block has come back."""
        for item in requests:
            self.scheduler.submit(item)
        before = len(self.completions)
        for _ in range(10_000):
            if not self.scheduler.num_running + self.scheduler.num_waiting:
                break
            self.step()
        else:
            raise AssertionError("the scheduler does not come to an end")
        self.check_all_returned()
        return {(item.request_id, item.sample_index): item for item in self.completions[before:]}

    def check_all_returned(self) -> None:
        while self.cache.reclaim(Rank.LOOSE):
            pass
        for manager in self.cache.managers:
            assert manager.pool.num_free == manager.pool.capacity, "a block was not given back"
            assert not any(manager.pool.ref if manager.group.has_blocks else manager.pool.taken)


def total(harness: Harness) -> Counters:
    """The counters of everything that has finished so far."""
    return sum((item.counters for item in harness.completions), Counters())


def prefix_rows(count: int, prefix_len: int = 40) -> list[tuple[str, list[int]]]:
    """Names and prompts that share a prefix and differ in their last three tokens."""
    return [(str(number), [*range(prefix_len), 100 + number, 1, 2]) for number in range(count)]
