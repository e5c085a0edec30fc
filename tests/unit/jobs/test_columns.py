from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from jobs.columns import Columns, choose_columns
from jobs.options import SubmitOptions
from storage.errors import InputInvalid
from storage.parquet.schema import errors_schema

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def choose(schema: dict[str, pa.DataType], **options: Any) -> Columns:
    return choose_columns(pa.schema(schema), SubmitOptions(inputs=("in",), output=Path("out"), model="m", **options))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("prompt", pa.string()),
        ("prompt", pa.large_string()),
        ("messages", MESSAGES),
        ("messages", pa.string()),
        ("prompt_token_ids", pa.list_(pa.int32())),
    ],
)
def test_the_prompt_is_found_by_its_name(name: str, kind: pa.DataType) -> None:
    columns = choose({"label": pa.int8(), name: kind})

    assert (columns.kind, columns.source) == (name, name)
    assert columns.describe().startswith(f"{name} from column {name!r}")


def test_a_flag_names_another_column_and_settles_an_ambiguity() -> None:
    both = {"prompt": pa.string(), "messages": MESSAGES, "text": pa.string()}

    assert choose(both, prompt_column="text").source == "text"
    assert choose(both, messages_column="messages").kind == "messages"


def test_every_input_column_passes_but_those_that_come_out_under_the_same_name() -> None:
    schema = {"custom_id": pa.string(), "prompt": pa.string(), "seed": pa.int64(), "top_p": pa.float64()}

    columns = choose(schema | {"label": pa.int8()})

    assert columns.id == "custom_id"
    assert columns.overrides == ("seed", "top_p")
    assert columns.passed.names == ["prompt", "top_p", "label"]


def test_keep_columns_selects_what_passes() -> None:
    columns = choose({"prompt": pa.string(), "a": pa.int8(), "status": pa.string()}, keep_columns=("a",))

    assert columns.passed.names == ["a"]


@pytest.mark.parametrize("id_column", [None, "key"])
def test_the_failed_rows_of_a_job_can_be_submitted_again(id_column: str | None) -> None:
    passed = pa.schema({"key": pa.string(), "prompt": pa.string()})

    columns = choose(dict(zip((s := errors_schema(passed)).names, s.types, strict=True)), id_column=id_column)

    assert columns.passed.names == ["key", "prompt"]
    assert columns.id == (id_column or "custom_id")
    assert columns.overrides == ("seed",)


@pytest.mark.parametrize(
    ("code", "named", "schema", "options"),
    [
        ("missing_column", "question", {"question": pa.string()}, {}),
        ("missing_column", "absent", {"prompt": pa.string()}, {"prompt_column": "absent"}),
        ("missing_column", "absent", {"prompt": pa.string()}, {"id_column": "absent"}),
        ("missing_column", "absent", {"prompt": pa.string()}, {"keep_columns": ("absent",)}),
        ("wrong_type", "prompt", {"prompt": pa.int64()}, {}),
        ("wrong_type", "messages", {"messages": pa.list_(pa.string())}, {}),
        ("wrong_type", "prompt_token_ids", {"prompt_token_ids": pa.list_(pa.float32())}, {}),
        ("wrong_type", "custom_id", {"prompt": pa.string(), "custom_id": pa.float64()}, {}),
        ("wrong_type", "max_tokens", {"prompt": pa.string(), "max_tokens": pa.string()}, {}),
        ("ambiguous_columns", "messages and prompt", {"prompt": pa.string(), "messages": pa.string()}, {}),
        ("name_clash", "status", {"prompt": pa.string(), "status": pa.string()}, {}),
        ("name_clash", "Status", {"prompt": pa.string(), "Status": pa.string()}, {}),
        ("name_clash", "error_code", {"prompt": pa.string(), "error_code": pa.string()}, {}),
        ("unsupported_column", "response_format", {"prompt": pa.string(), "response_format": pa.string()}, {}),
    ],
)
def test_what_is_wrong_with_the_columns_is_refused_by_name(
    code: str, named: str, schema: dict[str, pa.DataType], options: dict[str, Any]
) -> None:
    with pytest.raises(InputInvalid, match=named) as caught:
        choose(schema, **options)

    assert caught.value.code == code
