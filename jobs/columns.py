"""Which column of the input means what. Decided once from the schema, before the first row is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import pyarrow as pa
from pyarrow import types

from jobs.options import SubmitOptions
from jobs.sampling import RULES
from storage.errors import InputInvalid
from storage.parquet.schema import DATA_FIELDS, RETRIED, check_names

PromptKind = Literal["prompt", "messages", "prompt_token_ids"]

MESSAGES, PROMPT, TOKEN_IDS, CUSTOM_ID, SAMPLING = (
    "messages",
    "prompt",
    "prompt_token_ids",
    "custom_id",
    "sampling_params",
)
UNSUPPORTED = ("response_format", "body")


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """`overrides` are the columns that set sampling options of their row; `passed` goes to the output unchanged."""

    kind: PromptKind
    source: str
    id: str | None
    overrides: tuple[str, ...]
    passed: pa.Schema

    def describe(self) -> str:
        """The choice in words, for the user to check."""
        ids = f"ids from {self.id!r}" if self.id else "ids made from file and row number"
        overrides = f"; row overrides from {', '.join(self.overrides)}" if self.overrides else ""
        return f"{self.kind} from column {self.source!r}, {ids}{overrides}; {len(self.passed)} columns pass through"


def choose_columns(schema: pa.Schema, options: SubmitOptions) -> Columns:
    """The input's schema has unique names and no dictionaries.

    Raises InputInvalid: missing_column, wrong_type, ambiguous_columns, name_clash, unsupported_column.
    """
    kind, source = _prompt_column(schema, options)
    _check_type(schema, source, *_PROMPT_TYPES[kind])
    id_column = options.id_column or (CUSTOM_ID if CUSTOM_ID in schema.names else None)
    if id_column is not None:
        _require(schema, id_column, "--id-column")
        _check_type(schema, id_column, lambda t: _is_text(t) or types.is_integer(t), "string or integer")
    roles = {source, id_column}
    overrides = tuple(name for name in schema.names if name in (*RULES, SAMPLING) and name not in roles)
    for name in overrides:
        _check_type(schema, name, *_OVERRIDE_TYPES[name])
    consumed = {source, id_column, *overrides}
    return Columns(
        kind=kind, source=source, id=id_column, overrides=overrides, passed=_passed(schema, options, consumed)
    )


def _prompt_column(schema: pa.Schema, options: SubmitOptions) -> tuple[PromptKind, str]:
    if options.prompt_column:
        _require(schema, options.prompt_column, "--prompt-column")
        return "prompt", options.prompt_column
    if options.messages_column:
        _require(schema, options.messages_column, "--messages-column")
        return "messages", options.messages_column
    present = [name for name in (MESSAGES, PROMPT, TOKEN_IDS) if name in schema.names]
    if len(present) > 1:
        raise InputInvalid(
            "ambiguous_columns",
            f"the input has the columns {' and '.join(present)}; "
            "say which one is the prompt with --prompt-column or --messages-column, or drop the others",
        )
    if not present:
        raise InputInvalid(
            "missing_column",
            f"the input has no column {MESSAGES}, {PROMPT} or {TOKEN_IDS}; its columns are "
            f"{', '.join(schema.names) or 'none'}; name one with --prompt-column or --messages-column",
        )
    kinds: dict[str, PromptKind] = {MESSAGES: "messages", PROMPT: "prompt", TOKEN_IDS: "prompt_token_ids"}
    return kinds[present[0]], present[0]


def _passed(schema: pa.Schema, options: SubmitOptions, consumed: set[str | None]) -> pa.Schema:
    for name in UNSUPPORTED:
        if name in schema.names and name not in consumed:
            raise InputInvalid(
                "unsupported_column", f"the column {name} asks for something that is not supported; drop or rename it"
            )
    for name in options.keep_columns or ():
        _require(schema, name, "--keep-columns")
    kept = [name for name in schema.names if options.keep_columns is None or name in options.keep_columns]
    # What we read ourselves and write again under the same name (custom_id, seed) is no clash.
    again = {name for name in consumed if name in {field.name for field in DATA_FIELDS}}
    if set(schema.names) >= RETRIED:  # failed rows of an earlier job: their ids and errors are not the input's
        again |= {*RETRIED, CUSTOM_ID}
    passed = pa.schema([schema.field(name) for name in kept if name not in again])
    check_names(passed)
    return passed


def _require(schema: pa.Schema, name: str, flag: str) -> None:
    if name not in schema.names:
        raise InputInvalid(
            "missing_column", f"{flag} names {name!r}, but the input's columns are {', '.join(schema.names)}"
        )


def _check_type(schema: pa.Schema, name: str, accepts: Callable[[pa.DataType], bool], wanted: str) -> None:
    found = schema.field(name).type
    if not types.is_null(found) and not accepts(found):
        raise InputInvalid("wrong_type", f"the column {name} has the type {found}; it must be {wanted}")


def _is_text(t: pa.DataType) -> bool:
    return bool(types.is_string(t) or types.is_large_string(t) or types.is_string_view(t))


def _is_number(t: pa.DataType) -> bool:
    return bool(types.is_integer(t) or types.is_floating(t))


def _is_list(t: pa.DataType, accepts: Callable[[pa.DataType], bool]) -> bool:
    return bool(types.is_list(t) or types.is_large_list(t) or types.is_fixed_size_list(t)) and accepts(t.value_type)


def _is_message(t: pa.DataType) -> bool:
    return bool(types.is_struct(t)) and {"role", "content"} <= {t.field(i).name for i in range(t.num_fields)}


Accepted = tuple[Callable[[pa.DataType], bool], str]

_PROMPT_TYPES: dict[PromptKind, Accepted] = {
    "prompt": (_is_text, "string"),
    "messages": (
        lambda t: _is_text(t) or _is_list(t, _is_message),
        "list<struct<role, content>> or a string with that as JSON",
    ),
    "prompt_token_ids": (lambda t: _is_list(t, types.is_integer), "list<int32>"),
}
_NUMBER: Accepted = (_is_number, "a number")
_OVERRIDE_TYPES: dict[str, Accepted] = dict.fromkeys(RULES, _NUMBER) | {
    "stop": (lambda t: _is_text(t) or _is_list(t, _is_text), "string or list<string>"),
    "stop_token_ids": (lambda t: _is_list(t, types.is_integer), "list<int32>"),
    "ignore_eos": (types.is_boolean, "bool"),
    SAMPLING: (lambda t: _is_text(t) or bool(types.is_struct(t)), "a struct or a string with JSON"),
}
