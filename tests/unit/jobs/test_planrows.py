from __future__ import annotations

import pyarrow as pa
import pytest

from jobs.planrows import plan_rows
from jobs.sampling import Sampling
from storage.parquet.schema import plan_schema


def table(*lengths: int) -> pa.Table:
    rows = [
        {"row_index": i, "custom_id": str(i), "prompt_token_ids": [1] * length, "sampling": None, "seed": i}
        for i, length in enumerate(lengths)
    ]
    return pa.Table.from_pylist(rows, schema=plan_schema(pa.schema([])))


@pytest.mark.parametrize(("context", "wanted"), [(None, [40, 40, 40]), (64, [40, 34, 1]), (1000, [40, 40, 40])])
def test_a_row_may_generate_what_the_context_leaves_after_its_prompt(context: int | None, wanted: list[int]) -> None:
    defaults = Sampling().overridden({"max_tokens": 40})

    rows = list(plan_rows(table(8, 30, 63), defaults, context))

    assert [row.sampling.max_tokens for row in rows] == wanted
