from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from engine.request import SamplingParams
from jobs.options import SubmitOptions
from jobs.planning import Plan
from jobs.planrows import PlanRow, plan_rows
from jobs.sampling import Sampling
from jobs.settings import Settings
from jobs.submit import dry_run, submit
from storage import layout, migrate
from storage.errors import InputInvalid
from storage.parquet.plan import read_shard
from storage.repository import Repository
from tests.unit.jobs.tiny_model import make_model

IDS = pa.list_(pa.int32())


class Planner:
    """Plans inputs of a test below one folder, through `submit` on a database of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = make_model(folder / "model")
        url = f"sqlite:///{folder}/db.sqlite"
        migrate.upgrade(url)
        self.repository = Repository(url)
        self.settings = Settings(home=folder, max_sequences=4, block_size=2)
        self.num_jobs = 0

    def options(self, *files: dict[str, Any], **changes: Any) -> SubmitOptions:
        self.num_jobs += 1
        source = self.folder / f"in{self.num_jobs}"
        source.mkdir()
        for i, columns in enumerate(files):
            pq.write_table(pa.table(columns), source / f"{i}.parquet")
        out = self.folder / f"out{self.num_jobs}"
        return SubmitOptions(inputs=(str(source),), output=out, model=str(self.model), **changes)

    def plan(self, *files: dict[str, Any], **changes: Any) -> tuple[Plan, list[list[PlanRow]]]:
        """The plan, and the rows of each shard as a worker reads them."""
        options = self.options(*files, **changes)
        submitted = submit(options, self.repository, self.settings)
        assert submitted.plan is not None
        assert submitted.job.plan == submitted.plan.record
        path = options.output / layout.PLAN
        defaults = Sampling.from_spec(submitted.job.spec["sampling"])
        shards = [[*plan_rows(read_shard(path, shard.idx), defaults)] for shard in submitted.plan.shards]
        return submitted.plan, shards


@pytest.fixture
def planner(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


def ids(*prompts: list[int]) -> pa.Array:
    return pa.array(prompts, IDS)


def row_numbers(shards: list[list[PlanRow]]) -> list[int]:
    return [row.row_index for shard in shards for row in shard]


def test_rows_come_in_the_order_of_their_tokens_and_ties_in_that_of_the_input(planner: Planner) -> None:
    prompts = ids([2, 1], [1], [2], [1, 256], [1], [1, 3])

    plan, shards = planner.plan({"prompt_token_ids": prompts}, order="prefix")

    assert row_numbers(shards) == [1, 4, 5, 3, 2, 0]
    assert [row.token_ids for row in shards[0]] == [(1,), (1,), (1, 3), (1, 256), (2,), (2, 1)]
    assert (plan.record.num_rows, plan.record.prompt_tokens, plan.record.lower_bound_tokens) == (6, 9, 6)


@pytest.mark.parametrize(
    ("order", "expected"), [("input", [0, 1, 2]), ("longest", [1, 2, 0]), ("longest-branch", [1, 2, 0])]
)
def test_other_orders_promise_the_same_cache_hits(planner: Planner, order: Any, expected: list[int]) -> None:
    columns = {"prompt_token_ids": ids([1, 2, 3], [7], [1, 2, 3]), "max_tokens": [1, 9, 5]}

    plan, shards = planner.plan(columns, order=order)
    by_prefix, _ = planner.plan(columns, order="prefix")

    assert row_numbers(shards) == expected
    assert plan.record.predicted_cached_tokens == by_prefix.record.predicted_cached_tokens == 2
    assert plan.record.lower_bound_tokens == by_prefix.record.lower_bound_tokens == 5


def test_the_branch_with_the_longest_row_comes_first_and_its_rows_stay_together(planner: Planner) -> None:
    shared = [7] * 20
    prompts = ids([*shared, 1], [2, 1], [*shared, 2], [3, 1], [2, 1], [])
    columns = {"prompt_token_ids": prompts, "max_tokens": [5, 7, 9, 8, 1, 9]}

    plan, shards = planner.plan(columns)
    by_prefix, _ = planner.plan(columns, order="prefix")

    assert row_numbers(shards) == [2, 0, 3, 1, 4, 5]  # the last one is refused: it has no prompt
    assert plan.record.predicted_cached_tokens == by_prefix.record.predicted_cached_tokens == 20 + 1


def test_rows_that_may_all_generate_as_much_come_in_the_order_of_their_tokens(planner: Planner) -> None:
    columns = {"prompt_token_ids": ids([3, 1], [], [1, 2], [1, 1]), "max_tokens": [4, 9, 4, 4]}

    _, shards = planner.plan(columns)

    assert row_numbers(shards) == [1, 3, 2, 0]


def test_hits_are_promised_to_the_token_and_over_the_borders_of_shards(planner: Planner) -> None:
    prompts = ids(*([7, 8, 9, i] for i in range(100)))

    plan, shards = planner.plan({"prompt_token_ids": prompts}, shard_rows=10)

    assert len(shards) == 10
    assert plan.record.predicted_cached_tokens == 3 * 99
    assert plan.record.lower_bound_tokens == 3 + 100


def test_shards_are_row_groups_that_partition_the_rows(planner: Planner) -> None:
    prompts = ids(*([i // 10, i % 10] for i in range(100)))
    ten = Sampling(params=SamplingParams(max_tokens=8))

    plan, shards = planner.plan({"prompt_token_ids": prompts}, shard_tokens=100, sampling=ten)

    assert [len(shard) for shard in shards] == [10] * 10  # one subtree each
    assert [(shard.row_lo, shard.row_hi) for shard in plan.shards] == [(i * 10, i * 10 + 10) for i in range(10)]
    assert all(shard.cost_tokens == 100 - 9 for shard in plan.shards)  # nine rows share the first token


def test_shards_have_the_size_that_was_asked_for_however_small(planner: Planner) -> None:
    prompts = {"prompt_token_ids": ids(*([i, i] for i in range(12)))}

    _, by_rows = planner.plan(prompts, shard_rows=1)
    _, by_tokens = planner.plan(prompts, shard_tokens=1)
    _, by_default = planner.plan(prompts)

    assert [len(shard) for shard in by_rows] == [1] * 12
    assert [len(shard) for shard in by_tokens] == [1] * 12
    assert [len(shard) for shard in by_default] == [12]


def test_the_sums_hold_over_the_borders_of_batches(planner: Planner) -> None:
    prompts = [[i % 3, i % 31, i % 7, 5] for i in range(9000)]

    plan, shards = planner.plan({"prompt_token_ids": ids(*prompts)})

    assert sorted(row_numbers(shards)) == [*range(9000)]
    assert [row.token_ids for shard in shards for row in shard] == sorted(map(tuple, prompts))
    edges = {tuple(prompt[:end]) for prompt in prompts for end in range(1, 5)}
    copies = 9000 - len(set(map(tuple, prompts)))  # each computes its last token again
    assert plan.record.lower_bound_tokens == len(edges) + copies
    assert plan.record.predicted_cached_tokens == 4 * 9000 - len(edges) - copies


def test_a_plan_row_has_all_that_a_request_needs(planner: Planner) -> None:
    columns = {"prompt_token_ids": ids([5, 6]), "n": [3], "stop": ["x"], "seed": [11], "label": [{"a": [1]}]}

    plan, [[row]] = planner.plan(columns, sampling=Sampling(params=SamplingParams(max_tokens=4), stop=("y",)))

    assert row.token_ids == (5, 6)
    assert row.sampling == SamplingParams(max_tokens=4, num_samples=3, seed=11)
    assert (row.stops, row.seed, row.custom_id) == (("x",), 11, "00000:0")
    passed = {name: value.as_py() for name, value in row.passed.items()}
    assert passed == {"prompt_token_ids": [5, 6], "n": 3, "stop": "x", "label": {"a": [1]}}
    assert plan.shards[0].num_outputs == plan.num_outputs == 3


def test_rows_are_named_by_file_and_row_and_the_limit_counts_over_files(planner: Planner) -> None:
    one, two = {"prompt": ["a", "b"]}, {"prompt": ["c", "d"]}

    _, shards = planner.plan(one, two, limit=3, order="input")

    assert [row.custom_id for row in shards[0]] == ["00000:0", "00000:1", "00001:0"]


def test_rows_with_errors_are_planned_and_counted(planner: Planner) -> None:
    plan, shards = planner.plan({"prompt": ["a", None, "x" * 500]}, order="input")

    assert [row.error_code for row in shards[0]] == [None, "invalid_request", "context_length"]
    assert [len(row.token_ids) > 0 for row in shards[0]] == [True, False, False]
    assert plan.row_errors == {"invalid_request": 1, "context_length": 1}


def test_ids_that_come_twice_are_refused_with_their_rows(planner: Planner) -> None:
    names = [f"r{i}" for i in range(3000)]
    names[2999] = "r7"
    columns = {"prompt_token_ids": ids(*([1] for _ in names)), "custom_id": names}

    with pytest.raises(InputInvalid, match=r"'custom_id'.*'r7' in rows 7, 2999") as caught:
        dry_run(planner.options(columns), planner.settings)

    assert caught.value.code == "duplicate_id"


def test_ids_that_do_not_fit_into_memory_are_compared_as_well(planner: Planner) -> None:
    names = [f"{i:04d}" + "x" * 10_000 for i in range(4000)]  # 40 MB
    names[3999] = names[1]
    columns = {"prompt_token_ids": ids(*([1] for _ in names)), "custom_id": names}

    with pytest.raises(InputInvalid, match=r"'0001x+' in rows 1, 3999"):
        dry_run(planner.options(columns), planner.settings)


def test_a_dry_run_plans_the_same_and_leaves_nothing(planner: Planner) -> None:
    options = planner.options({"prompt": ["a", "b"]})
    before = sorted(planner.folder.rglob("*"))

    plan = dry_run(options, planner.settings)

    assert sorted(planner.folder.rglob("*")) == before
    assert planner.repository.list_jobs() == []
    submitted = submit(options, planner.repository, planner.settings)
    assert submitted.plan == plan
