"""The Arrow schemas, known before the first row: plan, output data, run-dependent metrics.

A segment and a shard file hold data and metrics columns together; the publisher separates them.
"""

from __future__ import annotations

import pyarrow as pa

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

METRIC_FIELDS = [
    pa.field("cached_tokens", pa.int32()),
    pa.field("computed_tokens", pa.int32()),
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


def plan_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of the plan for an input with these pass-through columns."""
    return pa.schema([*PLAN_FIELDS, *(field.with_name(PASS + field.name) for field in passed)])


def result_schema(passed: pa.Schema) -> pa.Schema:
    """Schema of segments and shard files: pass-through, data and metrics columns."""
    return pa.schema([*(field.with_name(PASS + field.name) for field in passed), *DATA_FIELDS, *METRIC_FIELDS])
