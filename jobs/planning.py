"""Make the plan of a job: one pass over the input, an external sort, one pass that cuts shards and writes the plan.

    input -> encode rows -> spill, sorted -> common prefixes, cuts -> plan.parquet, one row group per shard
                        \\-> ids, sorted -> no id twice

Memory is that of some batches and of one shard, whatever the number of rows.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.columns import Columns
from jobs.inputrows import encoded_rows
from jobs.intake import TOKENS_KEY, RowEncoder
from jobs.options import Order
from jobs.ordering import OrderedRows
from jobs.planner import CutLimits, Int64s, RowCost, cached_lengths, cut_shards
from jobs.tokens import TOKEN_BYTES, binary_to_tokens
from jobs.unique import UniqueIds
from storage.parquet.plan import PlanWriter
from storage.parquet.reader import InputFiles
from storage.parquet.schema import TOKENS
from storage.records import NewShard, PlanRecord

Progress = Callable[[str, int, int], None]
"""Called with (stage, rows done, rows in all) after each batch: `compare`, `read`, `write`. May raise to stop."""


def silent(stage: str, done: int, total: int) -> None:
    """The progress of nobody watching."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTask:
    """What to plan, and where: the plan goes to `path`, spill files below `scratch`."""

    inputs: InputFiles
    columns: Columns
    rows: RowEncoder
    path: Path
    key: str  # what SQL calls the plan: its path relative to OUT
    scratch: Path
    limit: int | None
    order: Order
    cut: CutLimits
    most_shards: int | None  # where the user has left the size of shards to us
    chosen: Int64s | None = None  # places in the input of the job's rows, ascending; None: all up to the limit
    only: Int64s | None = None  # row_index of the rows to plan, ascending; None: all


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A written plan: what SQL keeps of it, its shards, and what the user wants to know before the night."""

    record: PlanRecord
    shards: tuple[NewShard, ...]
    columns: str
    row_errors: dict[str, int]  # by error_code
    num_outputs: int
    longest_prompt: int
    left_out: int = 0  # rows of the input that are not new


@dataclass(slots=True)
class _Totals:
    rows: int = 0
    outputs: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    longest: int = 0
    cost_tokens: int = 0  # prompts and outputs, before anything is shared
    errors: Counter[str] = field(default_factory=Counter)


def make_plan(task: PlanTask, progress: Progress = silent) -> Plan:
    """Raises InputInvalid when the input as a whole cannot be used; then there is no plan file."""
    total = task.inputs.num_rows if task.limit is None else min(task.limit, task.inputs.num_rows)
    total = total if task.chosen is None else len(task.chosen)
    total = total if task.only is None else len(task.only)
    totals, shards = _Totals(), []
    with ExitStack() as stack:
        rows = stack.enter_context(OrderedRows(task.rows.schema, task.order, task.scratch))
        ids = stack.enter_context(UniqueIds(task.columns, task.rows.schema, task.scratch))
        for batch in _encoded(task):
            rows.add(batch)
            ids.add(batch)
            totals.rows += batch.num_rows
            totals.cost_tokens += _cost(batch)
            progress("read", totals.rows, total)
        ids.check()
        writer = stack.enter_context(PlanWriter(task.path, task.columns.passed))
        held = _Held()
        costs = _costs(rows, held, totals, task)
        for idx, cut in enumerate(cut_shards(costs, _limits(task, totals))):
            batches = held.take(cut.num_rows)
            shards.append(_shard(idx, writer.num_rows, cut.cost_tokens, batches))
            writer.write_shard(_plan_batch(batch, writer.schema) for batch in batches)
            progress("write", writer.num_rows, total)
        assert writer.num_rows == totals.rows, "the shards do not partition the rows"
        sha256 = writer.close()
    record = PlanRecord(
        path=task.key,
        sha256=sha256,
        num_rows=totals.rows,
        prompt_tokens=totals.prompt_tokens,
        predicted_cached_tokens=totals.cached_tokens,
        lower_bound_tokens=totals.prompt_tokens - totals.cached_tokens,
        num_errors=totals.errors.total(),
    )
    return Plan(
        record=record,
        shards=tuple(shards),
        columns=task.columns.describe(),
        row_errors=dict(totals.errors),
        num_outputs=totals.outputs,
        longest_prompt=totals.longest,
        left_out=0 if task.chosen is None else task.inputs.num_rows - len(task.chosen),
    )


def _cost(batch: pa.RecordBatch) -> int:
    token_bytes = pc.sum(pc.binary_length(batch[TOKENS_KEY])).as_py() or 0
    return int(token_bytes // TOKEN_BYTES + (pc.sum(batch["decode_tokens"]).as_py() or 0))


def _limits(task: PlanTask, totals: _Totals) -> CutLimits:
    if task.most_shards is None:
        return task.cut
    return task.cut.widened(totals.rows, totals.cost_tokens, task.most_shards)


def _encoded(task: PlanTask) -> Iterator[pa.RecordBatch]:
    """The rows to plan, as `RowEncoder` makes them."""
    rows = encoded_rows(task.inputs, task.columns, task.rows, limit=task.limit, chosen=task.chosen)
    if task.only is None:
        yield from rows
        return
    for batch in rows:
        mask = np.isin(batch["row_index"].to_numpy(), task.only)
        if mask.any():
            yield batch.filter(pa.array(mask))


class _Held:
    """Ordered batches that have not gone to a shard yet."""

    def __init__(self) -> None:
        self._batches: deque[pa.RecordBatch] = deque()

    def add(self, batch: pa.RecordBatch) -> None:
        self._batches.append(batch)

    def take(self, num_rows: int) -> list[pa.RecordBatch]:
        """Remove the first `num_rows` rows; they are there."""
        taken = []
        while num_rows:
            batch = self._batches.popleft()
            if batch.num_rows > num_rows:
                self._batches.appendleft(batch.slice(num_rows))
                batch = batch.slice(0, num_rows)
            taken.append(batch)
            num_rows -= batch.num_rows
        return taken


def _costs(rows: OrderedRows, held: _Held, totals: _Totals, task: PlanTask) -> Iterator[RowCost]:
    """What each row costs, in plan order; holds the rows for the shard that they will go to."""
    is_by_tokens = rows.is_by_tokens
    if not is_by_tokens:
        for _, lengths, shared in rows.by_tokens():
            _count_tokens(totals, lengths, shared)
    for batch, lengths, shared in rows.sorted():
        held.add(batch)
        if is_by_tokens:
            _count_tokens(totals, lengths, shared)
        codes = pc.value_counts(batch["error_code"].drop_null()).to_pylist()
        totals.errors.update({each["values"]: each["counts"] for each in codes})
        totals.outputs += pc.sum(batch["num_outputs"]).as_py()
        computed = lengths - cached_lengths(lengths, shared) + batch["decode_tokens"].to_numpy()
        yield from map(RowCost, computed.tolist(), shared.tolist())


def _count_tokens(totals: _Totals, lengths: Int64s, shared: Int64s) -> None:
    """`lengths` and `shared` of rows by their tokens. What is not shared are the edges of the prefix tree; the last
    token of a prompt that comes again is on none and is computed all the same."""
    totals.prompt_tokens += int(lengths.sum())
    totals.cached_tokens += int(cached_lengths(lengths, shared).sum())
    totals.longest = max(totals.longest, int(lengths.max(initial=0)))


def _shard(idx: int, row_lo: int, cost_tokens: int, batches: list[pa.RecordBatch]) -> NewShard:
    return NewShard(
        idx=idx,
        row_lo=row_lo,
        row_hi=row_lo + sum(batch.num_rows for batch in batches),
        cost_tokens=cost_tokens,
        num_outputs=sum(pc.sum(batch["num_outputs"]).as_py() for batch in batches),
    )


def _plan_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The columns of the plan, with token ids as a list; null for a row with an error."""
    values, offsets = binary_to_tokens(batch[TOKENS_KEY])
    failed = pc.is_valid(batch["error_code"])
    token_ids = pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values), type=TOKENS)
    token_ids = pc.if_else(failed, pa.scalar(None, TOKENS), token_ids)
    columns = [token_ids if name == "prompt_token_ids" else batch[name] for name in schema.names]
    return pa.RecordBatch.from_arrays(columns, schema=schema)
