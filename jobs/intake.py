"""Input rows to plan rows: validate, render, tokenise, resolve sampling and seed. A bad row becomes an error row.

A batch is worked on as flat token ids with one length per row; a row with an error has length 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.columns import SAMPLING, Columns
from jobs.options import OnTooLong, derive_seed
from jobs.planner import Int64s
from jobs.prompts import PromptEncoder
from jobs.sampling import Sampling, SamplingInvalid, check_overrides, dump_overrides
from jobs.template import TemplateRefused
from storage.errors import InputInvalid
from storage.parquet.schema import PASS

Int32s = npt.NDArray[np.int32]

TOKENS_KEY = "tokens"
"""Token ids as big-endian bytes, which sort as the ids do; turned into list<int32> when the plan is written."""

ROW_FIELDS = [
    pa.field("row_index", pa.int64(), nullable=False),
    pa.field("custom_id", pa.string(), nullable=False),
    pa.field(TOKENS_KEY, pa.binary(), nullable=False),
    pa.field("sampling", pa.string()),
    pa.field("seed", pa.int64(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("error_message", pa.string()),
    pa.field("decode_tokens", pa.int64(), nullable=False),  # the most that may be generated, over all samples
    pa.field("num_outputs", pa.int64(), nullable=False),  # rows that come out, also for an error
]
PIECE_BYTES = 4 << 20  # text that is tokenised at once

INVALID, TOO_LONG = "invalid_request", "context_length"


class RowInvalid(ValueError):
    """This row cannot become a request; the message says why."""


@dataclass(slots=True)
class _Tokens:
    """Prompts of one batch: all ids in a row, a length for each row, and what is wrong with the others."""

    values: Int32s
    lengths: Int64s
    errors: dict[int, tuple[str, str]]

    def keep(self, first: Int64s, count: Int64s) -> None:
        """Cut row i to `count[i]` ids from its `first[i]`-th on."""
        starts = np.concatenate(([0], np.cumsum(self.lengths)[:-1]))
        within = np.arange(len(self.values)) - np.repeat(starts, self.lengths)
        first_of, end_of = np.repeat(first, self.lengths), np.repeat(first + count, self.lengths)
        self.values = self.values[(within >= first_of) & (within < end_of)]
        self.lengths = count

    def refuse(self, rows: Mapping[int, tuple[str, str]]) -> None:
        """Record errors and drop the ids of these rows."""
        if rows:
            count = self.lengths.copy()
            count[list(rows)] = 0
            self.keep(np.zeros_like(count), count)
            self.errors.update(rows)


class RowEncoder:
    """Encodes the rows of one input. Pure but for its memory of sampling overrides that it has seen."""

    def __init__(
        self,
        encoder: PromptEncoder,
        columns: Columns,
        *,
        sampling: Sampling,
        job_seed: int,
        system_prompt: str | None = None,
        raw_prompt: bool = False,
        on_too_long: OnTooLong = "error",
    ) -> None:
        """Raises InputInvalid (`model`) when the model has no chat template and one is needed."""
        self._encoder = encoder
        self._columns = columns
        self._sampling = sampling
        self._job_seed = job_seed
        self._system = [{"role": "system", "content": system_prompt}] if system_prompt else []
        self._templated = columns.kind == "messages" or (
            columns.kind == "prompt" and encoder.template is not None and not raw_prompt
        )
        self._on_too_long = on_too_long
        self._resolve = lru_cache(maxsize=4096)(self._resolve_uncached)
        self.schema = pa.schema([*ROW_FIELDS, *(field.with_name(PASS + field.name) for field in columns.passed)])
        needs_template = columns.kind == "messages" or system_prompt
        if needs_template and encoder.template is None:
            asked = "a messages column" if columns.kind == "messages" else "--system-prompt"
            raise InputInvalid("model", f"{asked} needs a chat template, and this model has none; use plain prompts")
        if system_prompt and columns.kind == "prompt_token_ids":
            raise InputInvalid(
                "wrong_type", "--system-prompt cannot be added to prompt_token_ids; use prompts or messages"
            )

    def encode(self, batch: pa.RecordBatch, first_row: int, default_ids: pa.Array) -> Iterator[pa.RecordBatch]:
        """Plan rows of schema `self.schema`, in pieces of bounded size. `first_row` is the batch's place in the input;
        `default_ids` name the rows that have no id."""
        step = max(1, batch.num_rows * PIECE_BYTES // max(PIECE_BYTES, batch.nbytes))
        for start in range(0, batch.num_rows, step):
            piece = batch.slice(start, step)
            yield self._encode_piece(piece, first_row + start, default_ids.slice(start, step))

    def _encode_piece(self, batch: pa.RecordBatch, first_row: int, default_ids: pa.Array) -> pa.RecordBatch:
        num_rows = batch.num_rows
        ids = self._custom_ids(batch, default_ids)
        tokens = self._tokens(batch)
        overrides, row_seeds, max_tokens, samples = self._overrides(batch, tokens)
        self._fit(tokens, max_tokens)
        if self._encoder.max_model_len is not None:
            max_tokens = np.minimum(max_tokens, np.maximum(self._encoder.max_model_len - tokens.lengths, 0))
        failed = np.zeros(num_rows, dtype=bool)
        failed[list(tokens.errors)] = True
        codes, messages = ([tokens.errors.get(i, (None, None))[k] for i in range(num_rows)] for k in (0, 1))
        seeds = [
            derive_seed(self._job_seed, custom_id) if seed is None else seed
            for seed, custom_id in zip(row_seeds, ids.to_pylist(), strict=True)
        ]
        arrays = [
            pa.array(np.arange(first_row, first_row + num_rows)),
            ids,
            tokens_to_binary(tokens.values, tokens.lengths),
            pa.array(overrides, pa.string()),
            pa.array(seeds, pa.int64()),
            pa.array(codes, pa.string()),
            pa.array(messages, pa.string()),
            pa.array(np.where(failed, 0, max_tokens * samples)),
            pa.array(samples),
            *(batch[name] for name in self._columns.passed.names),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _custom_ids(self, batch: pa.RecordBatch, default_ids: pa.Array) -> pa.Array:
        if self._columns.id is None:
            return default_ids
        return pc.coalesce(batch[self._columns.id].cast(pa.string()), default_ids)

    def _tokens(self, batch: pa.RecordBatch) -> _Tokens:
        column = batch[self._columns.source]
        if self._columns.kind == "prompt_token_ids":
            return _given_tokens(column, self._encoder.vocab_size)
        texts: list[str] = []
        errors: dict[int, tuple[str, str]] = {}
        for i, value in enumerate(column.to_pylist()):
            try:
                texts.append(self._render(value))
            except (RowInvalid, TemplateRefused) as error:
                errors[i] = (INVALID, f"column {self._columns.source}: {error}")
        encoded = self._encoder.encode_batch(texts, add_special_tokens=not self._templated)
        lengths = np.zeros(batch.num_rows, dtype=np.int64)
        valid = np.ones(batch.num_rows, dtype=bool)
        valid[list(errors)] = False
        lengths[valid] = np.diff(encoded.offsets.to_numpy())
        tokens = _Tokens(encoded.values.to_numpy(), lengths, errors)
        nothing = {
            int(i): (INVALID, f"column {self._columns.source}: the prompt has no tokens")
            for i in np.flatnonzero(valid & (lengths == 0))
        }
        tokens.refuse(nothing)
        return tokens

    def _render(self, value: Any) -> str:
        if value is None:
            raise RowInvalid("the prompt is null")
        if self._columns.kind == "messages":
            messages = parse_messages(value)
            if self._system and messages[0].get("role") != "system":
                messages = [*self._system, *messages]
            return self._encoder.render(messages)
        if not value:
            raise RowInvalid("the prompt is empty")
        if self._templated:
            return self._encoder.render([*self._system, {"role": "user", "content": value}])
        return str(value)

    def _overrides(
        self, batch: pa.RecordBatch, tokens: _Tokens
    ) -> tuple[list[str | None], list[int | None], Int64s, Int64s]:
        """Per row: overrides as JSON, its own seed, max_tokens, samples. Refuses rows with invalid ones."""
        num_rows = batch.num_rows
        texts: list[str | None] = [None] * num_rows
        seeds: list[int | None] = [None] * num_rows
        max_tokens = np.full(num_rows, self._sampling.params.max_tokens, dtype=np.int64)
        samples = np.full(num_rows, self._sampling.params.num_samples, dtype=np.int64)
        refused: dict[int, tuple[str, str]] = {}
        names = self._columns.overrides
        columns = [batch[name].to_pylist() for name in names]
        for i, values in enumerate(zip(*columns, strict=True)):
            if all(value is None for value in values):
                continue
            try:
                given = _gather(names, values)
                seed = check_overrides({"seed": given.pop("seed", None)}).get("seed")
                texts[i], max_tokens[i], samples[i] = self._resolve(_freeze(given))
                seeds[i] = seed
            except SamplingInvalid as error:
                if i not in tokens.errors:
                    refused[i] = (INVALID, str(error))
        tokens.refuse(refused)
        return texts, seeds, max_tokens, samples

    def _resolve_uncached(self, given: tuple[tuple[str, Any], ...]) -> tuple[str | None, int, int]:
        checked = check_overrides(_thaw(given), self._encoder.vocab_size)
        params = self._sampling.overridden(checked).params
        return dump_overrides(checked), params.max_tokens, params.num_samples

    def _fit(self, tokens: _Tokens, max_tokens: Int64s) -> None:
        """Refuse or cut the prompts that leave no room for a single token."""
        limit = self._encoder.max_model_len
        if limit is None or not (tokens.lengths + 1 > limit).any():
            return
        too_long = tokens.lengths + 1 > limit
        if self._on_too_long == "error":
            tokens.refuse(
                {
                    int(i): (
                        TOO_LONG,
                        f"the prompt has {tokens.lengths[i]} tokens and needs room for one more; "
                        f"the model's context is {limit}",
                    )
                    for i in np.flatnonzero(too_long)
                }
            )
            return
        # Room for the answer that was asked for, but never less than half of the context for the prompt.
        room = np.maximum(limit - max_tokens, limit // 2)
        count = np.where(too_long, np.minimum(tokens.lengths, room), tokens.lengths)
        first = tokens.lengths - count if self._on_too_long == "truncate-left" else np.zeros_like(count)
        tokens.keep(first, count)


def parse_messages(value: Any) -> list[dict[str, Any]]:
    """A conversation as a list of {role, content, ...}; null fields of a struct are left out. Raises RowInvalid."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise RowInvalid(f"the messages are not JSON: {error}") from error
    if not isinstance(value, list) or not value:
        raise RowInvalid("the messages are not a list with at least one message")
    messages = []
    for at, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise RowInvalid(f"message {at} has no role")
        if message.get("content") is None:
            raise RowInvalid(f"message {at} has no content")
        messages.append({key: field for key, field in message.items() if field is not None})
    return messages


def tokens_to_binary(values: Int32s, lengths: Int64s) -> pa.Array:
    """Rows of token ids as big-endian bytes."""
    offsets = np.zeros(len(lengths) + 1, dtype=np.int32)
    np.cumsum(lengths * 4, out=offsets[1:])
    return pa.Array.from_buffers(
        pa.binary(), len(lengths), [None, pa.py_buffer(offsets), pa.py_buffer(values.astype(">u4").tobytes())]
    )


def binary_to_tokens(column: pa.Array) -> tuple[Int32s, Int64s]:
    """The inverse: token ids of all rows, and offsets [rows + 1] into them."""
    _, offset_buffer, data = column.buffers()
    offsets = np.frombuffer(offset_buffer, dtype=np.int32)[column.offset : column.offset + len(column) + 1]
    raw = np.frombuffer(data or b"", dtype=">u4")[offsets[0] // 4 : offsets[-1] // 4]
    return raw.astype(np.int32), (offsets.astype(np.int64) - int(offsets[0])) // 4


def _given_tokens(column: pa.Array, vocab_size: int) -> _Tokens:
    """Token ids from the input, taken as they are; rows with unknown ids are refused."""
    column = column.cast(pa.large_list(pa.int64()))
    lengths = pc.list_value_length(column).fill_null(0).to_numpy().astype(np.int64)
    flat = pc.fill_null(column.flatten(), -1).to_numpy()
    row_of = np.repeat(np.arange(len(column)), lengths)
    outside = np.unique(row_of[(flat < 0) | (flat >= vocab_size)])
    refused: dict[int, tuple[str, str]] = {
        int(i): (INVALID, f"the prompt has a token id that is null or outside the vocabulary 0 to {vocab_size - 1}")
        for i in outside
    }
    for i in np.flatnonzero(lengths == 0):
        refused[int(i)] = (INVALID, "the prompt is null" if not column[int(i)].is_valid else "the prompt is empty")
    in_range = np.where((flat < 0) | (flat >= vocab_size), 0, flat).astype(np.int32)
    tokens = _Tokens(in_range, lengths, {})
    tokens.refuse(refused)
    return tokens


def _gather(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    """One row's overrides; a column of its own wins over the same name in `sampling_params`."""
    given = dict(zip(names, values, strict=True))
    nested = given.pop(SAMPLING, None)
    if isinstance(nested, str):
        try:
            nested = json.loads(nested)
        except ValueError as error:
            raise SamplingInvalid(f"{SAMPLING} is not JSON: {error}") from error
    if nested is not None and not isinstance(nested, dict):
        raise SamplingInvalid(f"{SAMPLING} is {nested!r}; it must be an object with sampling options")
    own = {name: value for name, value in given.items() if value is not None}
    return {name: value for name, value in (nested or {}).items() if value is not None} | own


def _freeze(given: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
    """Hashable. True and 1 are equal as keys, so the type is part of it."""
    return tuple((name, (type(value).__name__, _hashable(value))) for name, value in sorted(given.items()))


def _thaw(given: tuple[tuple[str, Any], ...]) -> dict[str, Any]:
    return {name: json.loads(value) if kind in ("list", "dict") else value for name, (kind, value) in given}


def _hashable(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, (list, dict)) else value
