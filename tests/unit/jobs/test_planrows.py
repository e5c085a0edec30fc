from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pytest

from engine.request import Junction
from jobs.junctions import RowPlan
from jobs.planrows import PlanRow, plan_rows, unsealed_rows
from jobs.sampling import Sampling
from storage.parquet.schema import plan_schema


def table_of(*prompts: list[int] | None, **columns: list[Any]) -> pa.Table:
    """A plan of these rows; null prompts are those of rows with an error."""
    rows = [
        {
            "row_index": i,
            "custom_id": str(i),
            "prompt_token_ids": prompt,
            "seed": i,
            "error_code": "invalid_request" if prompt is None else None,
            **{name: values[i] for name, values in columns.items()},
        }
        for i, prompt in enumerate(prompts)
    ]
    return pa.Table.from_pylist(rows, schema=plan_schema(pa.schema([])))


def table(*lengths: int) -> pa.Table:
    return table_of(*([1] * length for length in lengths))


def by_index(rows: Iterator[tuple[PlanRow, RowPlan]]) -> dict[int, RowPlan]:
    return {row.row_index: plan for row, plan in rows}


@pytest.mark.parametrize(("context", "wanted"), [(None, [40, 40, 40]), (64, [40, 34, 1]), (1000, [40, 40, 40])])
def test_a_row_may_generate_what_the_context_leaves_after_its_prompt(context: int | None, wanted: list[int]) -> None:
    defaults = Sampling().overridden({"max_tokens": 40})

    rows = list(plan_rows(table(8, 30, 63), defaults, context))

    assert [row.sampling.max_tokens for row in rows] == wanted


def test_rows_with_an_error_come_along_and_take_no_part_in_the_plan() -> None:
    codes = [None, "invalid_request", "context_length", None]
    table = table_of([1, 2, 3], None, [1, 2, 4], [1, 2, 4, 5], error_code=codes)

    made = by_index(unsealed_rows(table, Sampling(), frozenset()))

    assert made == {0: RowPlan(0, (Junction(2, 1),)), 1: RowPlan(), 2: RowPlan(), 3: RowPlan(2)}


def test_plans_are_made_for_what_earlier_attempts_have_left() -> None:
    table = table_of([1, 2, 3], [1, 2, 4], [1, 2, 4, 5], [1, 6], None)

    made = by_index(unsealed_rows(table, Sampling(), {(0, 0), (2, 0), (4, 0)}))

    assert made == {1: RowPlan(0, (Junction(1, 1),)), 3: RowPlan(1)}


def test_a_row_is_left_out_only_when_all_of_its_samples_are_sealed() -> None:
    table = table_of([1, 2], [1, 3], [1, 4], sampling=[None, '{"n": 3}', '{"n": 1}'])
    sealed = {(row, sample) for row in range(3) for sample in range(2)}

    made = by_index(unsealed_rows(table, Sampling().overridden({"n": 2}), sealed))

    assert made == {1: RowPlan()}


def test_a_plan_that_is_read_in_pieces_is_the_same() -> None:
    whole = table_of([1, 2, 3], [1, 2, 4], None, [1, 2, 4, 5], [3, 1])
    pieces = pa.concat_tables([whole.slice(0, 2), whole.slice(2)])

    made = by_index(unsealed_rows(pieces.slice(1), Sampling(), frozenset()))

    assert pieces["prompt_token_ids"].num_chunks == 2
    assert made == by_index(unsealed_rows(whole.slice(1), Sampling(), frozenset()))
    assert made[1] == RowPlan(0, (Junction(3, 1),))
