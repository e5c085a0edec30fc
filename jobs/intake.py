"""Input rows to plan rows: validate, render, tokenise, resolve sampling and seed. A bad row becomes an error row.

A batch is worked on as flat token ids with one length per row; a row with an error has length 0.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.columns import Columns
from jobs.options import OnTooLong, derive_seed
from jobs.overrides import Frozen, freeze, gather_overrides, thaw
from jobs.planner import Int64s
from jobs.prompts import PromptEncoder
from jobs.sampling import Sampling, SamplingInvalid, check_overrides, dump_overrides
from jobs.template import TemplateRefused
from jobs.tokens import INVALID, TOO_LONG, TokenRows, given_tokens, tokens_to_binary
from storage.errors import InputInvalid
from storage.parquet.schema import PASS

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
    pa.field("num_outputs", pa.int64(), nullable=False),  # rows that come out: the samples, or one error
]
PIECE_BYTES = 4 << 20  # text that is tokenised at once


class RowInvalid(ValueError):
    """This row cannot become a request; the message says why."""


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
        forced: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        """`forced`: sampling options that count more than those of a row. Raises InputInvalid (`model`) when the model
        has no chat template and one is needed."""
        self._encoder = encoder
        self._columns = columns
        self._sampling = sampling
        self._job_seed = forced.get("seed", job_seed)
        self._forced = {name: value for name, value in forced.items() if name != "seed"}
        self._keeps_seeds = "seed" not in forced
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

    def encode(self, batch: pa.RecordBatch, places: Int64s, default_ids: pa.Array) -> Iterator[pa.RecordBatch]:
        """Plan rows of schema `self.schema`, in pieces of bounded size. `places` [rows] are theirs in the
        input; `default_ids` name the rows that have no id."""
        step = max(1, batch.num_rows * PIECE_BYTES // max(PIECE_BYTES, batch.nbytes))
        for start in range(0, batch.num_rows, step):
            piece = batch.slice(start, step)
            yield self._encode_piece(piece, places[start : start + step], default_ids.slice(start, step))

    def _encode_piece(self, batch: pa.RecordBatch, places: Int64s, default_ids: pa.Array) -> pa.RecordBatch:
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
            pa.array(places),
            ids,
            tokens_to_binary(tokens.values, tokens.lengths),
            pa.array(overrides, pa.string()),
            pa.array(seeds, pa.int64()),
            pa.array(codes, pa.string()),
            pa.array(messages, pa.string()),
            pa.array(np.where(failed, 0, max_tokens * samples)),
            pa.array(np.where(failed, 1, samples)),
            *(batch[name] for name in self._columns.passed.names),
        ]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def _custom_ids(self, batch: pa.RecordBatch, default_ids: pa.Array) -> pa.Array:
        if self._columns.id is None:
            return default_ids
        return pc.coalesce(batch[self._columns.id].cast(pa.string()), default_ids)

    def _tokens(self, batch: pa.RecordBatch) -> TokenRows:
        column = batch[self._columns.source]
        if self._columns.kind == "prompt_token_ids":
            return given_tokens(column, self._encoder.vocab_size)
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
        tokens = TokenRows(encoded.values.to_numpy(), lengths, errors)
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
        self, batch: pa.RecordBatch, tokens: TokenRows
    ) -> tuple[list[str | None], list[int | None], Int64s, Int64s]:
        """Per row: overrides as JSON, its own seed, max_tokens, samples. Refuses rows with invalid ones."""
        num_rows = batch.num_rows
        text, most, count = self._resolve(())
        texts: list[str | None] = [text] * num_rows
        seeds: list[int | None] = [None] * num_rows
        max_tokens = np.full(num_rows, most, dtype=np.int64)
        samples = np.full(num_rows, count, dtype=np.int64)
        refused: dict[int, tuple[str, str]] = {}
        names = self._columns.overrides
        columns = [batch[name].to_pylist() for name in names]
        for i, values in enumerate(zip(*columns, strict=True)):
            if all(value is None for value in values):
                continue
            try:
                given = gather_overrides(names, values)
                seed = check_overrides({"seed": given.pop("seed", None)}).get("seed")
                texts[i], max_tokens[i], samples[i] = self._resolve(freeze(given))
                seeds[i] = seed if self._keeps_seeds else None
            except SamplingInvalid as error:
                if i not in tokens.errors:
                    refused[i] = (INVALID, str(error))
        tokens.refuse(refused)
        return texts, seeds, max_tokens, samples

    def _resolve_uncached(self, given: Frozen) -> tuple[str | None, int, int]:
        checked = check_overrides(thaw(given) | self._forced, self._encoder.vocab_size)
        params = self._sampling.overridden(checked).params
        return dump_overrides(checked), params.max_tokens, params.num_samples

    def _fit(self, tokens: TokenRows, max_tokens: Int64s) -> None:
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
