"""The Arrow schemas, known before the first row: plan, output data, run-dependent metrics.

A segment and a shard file hold data and metrics columns together; the publisher separates them.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from storage.errors import InputInvalid
from storage.states import RowStatus

SCHEMA_VERSION = 1
"""Of the published data set; raised when a reader of an older one would misread it."""

TOKENS = pa.list_(pa.int32())

PLAN_FIELDS = [
    pa.field("row_index", pa.int64(), nullable=False),  # position in the input, from 0
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field("prompt_token_ids", TOKENS),  # null when the row has an error
    pa.field("sampling", pa.string()),  # JSON of the row's own overrides, null when it has none
    pa.field("seed", pa.int64(), nullable=False),  # the row's effective seed
    pa.field("error_code", pa.string()),  # row errors that submit found: null prompt, too long
    pa.field("error_message", pa.string()),
]
"""Pass-through columns follow, under their own names with the prefix PASS."""

PASS = "in."
"""Prefix of pass-through columns inside plan, segments and shard files, so that they can never clash with ours."""

DATA_FIELDS = [
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field("row_index", pa.int64(), nullable=False),
    pa.field("sample_index", pa.int32(), nullable=False),
    pa.field("status", pa.dictionary(pa.int8(), pa.string()), nullable=False),
    pa.field("output_text", pa.large_string()),
    pa.field("output_json", pa.large_string()),
    pa.field("reasoning_text", pa.large_string()),
    pa.field("tool_calls", pa.large_string()),
    pa.field("finish_reason", pa.string()),
    pa.field("stop_reason", pa.string()),
    pa.field("prompt_tokens", pa.int32()),
    pa.field("completion_tokens", pa.int32()),
    pa.field("reasoning_tokens", pa.int32()),
    pa.field("cumulative_logprob", pa.float64()),
    pa.field("logprobs", pa.list_(pa.struct([("token_id", pa.int32()), ("logprob", pa.float32())]))),
    pa.field("seed", pa.int64()),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
]

GROUP_COUNTERS = pa.list_(
    pa.struct([(name, pa.int32()) for name in ("allocated", "shared", "copied", "evicted", "evicted_unused")])
)

LIMITS = pa.list_(pa.struct([("name", pa.string()), ("tokens", pa.int32())]))
"""What kept prompt tokens from being cached (a layer kind or a rule) and how many; the largest first."""

METRIC_FIELDS = [
    pa.field("planned_tokens", pa.int32()),  # prompt tokens that the plan expected to be cached
    pa.field("cached_tokens", pa.int32()),
    pa.field("computed_tokens", pa.int32()),
    pa.field("limited_by", LIMITS),
    pa.field("forked_tokens", pa.int32()),
    pa.field("recomputed_tokens", pa.int32()),
    pa.field("preemptions", pa.int32()),
    pa.field("engine_seconds", pa.float64()),
    pa.field("groups", GROUP_COUNTERS),
    pa.field("attempts", pa.int16()),
    pa.field("shard_id", pa.int32()),
    pa.field("reused_from", pa.string()),
    pa.field("started_at", pa.timestamp("us", tz="UTC")),
    pa.field("finished_at", pa.timestamp("us", tz="UTC")),
]

KEY = ("row_index", "sample_index")

UNMEASURED = frozenset({"limited_by", "reused_from"})
"""Metrics whose length differs between runs; they do not count where the size of the output decides where it is cut."""


def plan_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of the plan for an input with these pass-through columns."""
    return pa.schema([*PLAN_FIELDS, *(field.with_name(PASS + field.name) for field in passed)])


def result_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of segments and shard files: pass-through, data and metrics columns."""
    return pa.schema([*(field.with_name(PASS + field.name) for field in passed), *DATA_FIELDS, *METRIC_FIELDS])


ERROR_FIELDS = [
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field("seed", pa.int64()),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
]
"""What `_meta/errors` adds to the input columns: the id in front; behind, the seed and the error."""

RETRIED = frozenset({"error_code", "error_message"})
"""Columns of `_meta/errors` that submit drops, so that these files can be submitted again."""

STATUS_VALUES = pa.array([status.value for status in RowStatus], pa.string())


def data_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of data parts: the input's columns, then ours."""
    return pa.schema([*passed, *DATA_FIELDS])


def metrics_schema() -> pa.Schema:
    """Schema of metrics parts: the key, then what may differ between two runs of the same job."""
    return pa.schema([*(field for field in DATA_FIELDS if field.name in KEY), *METRIC_FIELDS])


def errors_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of errors parts: what can be submitted again."""
    return pa.schema([ERROR_FIELDS[0], *passed, *ERROR_FIELDS[1:]])


def check_names(passed: pa.Schema) -> None:
    """Raise InputInvalid('name_clash') when a pass-through column has the name of a data column, in any case."""
    ours = {field.name for field in DATA_FIELDS}
    clashes = [name for name in passed.names if name.lower() in ours]
    if clashes:
        raise InputInvalid(
            "name_clash",
            f"the input columns {', '.join(clashes)} have the names of output columns; "
            "rename them or leave them out with --keep-columns",
        )


def decode(field: pa.Field) -> pa.Field:
    """The field without dictionary encoding: what is sorted, merged and compared."""
    return field.with_type(field.type.value_type) if pa.types.is_dictionary(field.type) else field


def complete(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Rows of a segment or shard file in `schema`; metrics that the program which wrote them did not know are null."""
    for field in METRIC_FIELDS:
        if field.name not in batch.schema.names:
            batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
    return batch.select(schema.names).cast(schema)


def encode_status(table: pa.Table) -> pa.Table:
    """The table with its plain `status` as a dictionary of all statuses, always the same one."""
    position = table.schema.get_field_index("status")
    indices = pc.index_in(table["status"].combine_chunks(), STATUS_VALUES).cast(pa.int8())
    field = next(field for field in DATA_FIELDS if field.name == "status")
    return table.set_column(position, field, pa.DictionaryArray.from_arrays(indices, STATUS_VALUES))
