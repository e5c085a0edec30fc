from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from engine.request import SamplingParams
from jobs.columns import choose_columns
from jobs.intake import TOKENS_KEY, RowEncoder
from jobs.options import SubmitOptions
from jobs.prompts import PromptEncoder
from jobs.sampling import Sampling
from jobs.tokens import binary_to_tokens
from storage.errors import InputInvalid
from tests.unit.jobs.tiny_model import make_model

CONTEXT = 64


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> PromptEncoder:
    return PromptEncoder.open(make_model(tmp_path_factory.mktemp("model"), context=CONTEXT))


def encode(
    encoder: PromptEncoder, columns: dict[str, Any], forced: dict[str, Any] | None = None, **options: Any
) -> list[dict[str, Any]]:
    """The plan rows of one batch; `tokens` as text without special tokens, `ids` as numbers."""
    batch = pa.RecordBatch.from_pydict(columns)
    chosen = SubmitOptions(inputs=("in",), output=Path("out"), model="m", **options)
    rows = RowEncoder(
        encoder,
        choose_columns(batch.schema, chosen),
        sampling=chosen.sampling,
        job_seed=5,
        system_prompt=chosen.system_prompt,
        raw_prompt=chosen.raw_prompt,
        on_too_long=chosen.on_too_long,
        forced=forced or {},
    )
    names = pa.array([f"row{i}" for i in range(batch.num_rows)])
    table = pa.Table.from_batches(rows.encode(batch, np.arange(100, 100 + batch.num_rows), names), schema=rows.schema)
    found: list[dict[str, Any]] = table.to_pylist()
    for row in found:
        values, _ = binary_to_tokens(pa.array([row[TOKENS_KEY]], pa.binary()))
        row["ids"], row["tokens"] = values.tolist(), encoder.decode(values.tolist())
    return found


def errors(rows: list[dict[str, Any]]) -> list[str | None]:
    return [row["error_code"] for row in rows]


def test_a_prompt_becomes_one_message_of_the_user(encoder: PromptEncoder) -> None:
    (row,) = encode(encoder, {"prompt": ["hé"]}, system_prompt="be")

    assert row["tokens"] == "system\nbe\nuser\nhé\nassistant\n"
    assert (row["row_index"], row["custom_id"], row["error_code"]) == (100, "row0", None)


def test_a_raw_prompt_is_taken_as_it_is(encoder: PromptEncoder) -> None:
    (row,) = encode(encoder, {"prompt": ["hé"]}, raw_prompt=True)

    assert row["tokens"] == "hé"


@pytest.mark.parametrize("as_json", [True, False])
def test_messages_are_a_list_or_json(encoder: PromptEncoder, as_json: bool) -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]

    (row,) = encode(encoder, {"messages": [json.dumps(chat) if as_json else chat]})

    assert row["tokens"] == "user\na\nassistant\nb\nassistant\n"


def test_a_conversation_keeps_its_own_system_message(encoder: PromptEncoder) -> None:
    chats = [[{"role": "system", "content": "own"}], [{"role": "user", "content": "a"}]]

    rows = encode(encoder, {"messages": chats}, system_prompt="job")

    assert [row["tokens"].split("\n")[1] for row in rows] == ["own", "job"]


def test_token_ids_are_taken_as_they_are(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"prompt_token_ids": [[3, 1, 2], None, [], [3, None], [10**6], [-1], [4]]})

    assert [row["ids"] for row in rows] == [[3, 1, 2], [], [], [], [], [], [4]]
    assert errors(rows) == [None, *["invalid_request"] * 5, None]


def test_bad_rows_become_errors_and_leave_their_neighbours_alone(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"messages": ["[]", None, "{", '[{"role": "tool", "content": "x"}]', '[{"role": "user"}]']})
    fine = encode(encoder, {"prompt": ["a", None, "b", "", "c"]}, raw_prompt=True)

    assert errors(rows) == ["invalid_request"] * 5
    assert "no tools here" in rows[3]["error_message"]
    assert errors(fine) == [None, "invalid_request", None, "invalid_request", None]
    assert [row["tokens"] for row in fine] == ["a", "", "b", "", "c"]


def test_a_prompt_must_leave_room_for_one_token(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"prompt_token_ids": [[1] * (CONTEXT - 1), [1] * CONTEXT, [1]]})

    assert errors(rows) == [None, "context_length", None]
    assert f"{CONTEXT} tokens" in rows[1]["error_message"]
    assert [row["decode_tokens"] for row in rows] == [1, 0, CONTEXT - 1]


@pytest.mark.parametrize(("how", "kept"), [("truncate-left", range(44, 104)), ("truncate-right", range(4, 64))])
def test_truncation_leaves_room_for_the_answer(encoder: PromptEncoder, how: Any, kept: range) -> None:
    four = Sampling(params=SamplingParams(max_tokens=4))
    prompts = [[1], [*range(4, 104)], [2]]

    rows = encode(encoder, {"prompt_token_ids": prompts}, on_too_long=how, sampling=four)

    assert [row["ids"] for row in rows] == [[1], [*kept], [2]]
    assert errors(rows) == [None] * 3


def test_columns_and_sampling_params_override_the_job(encoder: PromptEncoder) -> None:
    rows = encode(
        encoder,
        {
            "prompt": ["a"] * 6,
            "max_tokens": [7, None, None, 0, None, None],
            "n": [None, 2, None, None, None, None],
            "sampling_params": [None, '{"top_p": 0.5, "n": 9}', '{"best_of": 2}', None, "[", '{"stop": ["x"]}'],
        },
    )

    said = [row["sampling"] and json.loads(row["sampling"]) for row in rows]
    assert said == [{"max_tokens": 7}, {"n": 2, "top_p": 0.5}, None, None, None, {"stop": ["x"]}]
    assert errors(rows) == [None, None, "invalid_request", "invalid_request", "invalid_request", None]
    assert [row["num_outputs"] for row in rows] == [1, 2, 1, 1, 1, 1]
    assert "best_of" in rows[2]["error_message"]
    assert rows[0]["decode_tokens"] == 7


def test_sampling_params_may_be_a_struct(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"prompt": ["a"] * 2, "sampling_params": [{"top_k": 3, "stop": None}, None]})

    assert [row["sampling"] for row in rows] == ['{"top_k": 3}', None]


def test_true_is_not_one(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"prompt": ["a"] * 2, "sampling_params": ['{"top_k": 1}', '{"top_k": true}']})

    assert errors(rows) == [None, "invalid_request"]


def test_a_seed_is_the_rows_own_or_follows_from_job_and_id_alone(encoder: PromptEncoder) -> None:
    together = encode(encoder, {"prompt": ["a", "b", "c"], "custom_id": ["x", "y", "z"], "seed": [None, 9, None]})
    alone = encode(encoder, {"prompt": ["other"], "custom_id": ["z"]})

    assert together[1]["seed"] == 9
    assert together[2]["seed"] == alone[0]["seed"] != together[0]["seed"]


def test_ids_may_be_numbers_and_a_null_gets_a_name(encoder: PromptEncoder) -> None:
    rows = encode(encoder, {"prompt": ["a", "b"], "key": [12, None]}, id_column="key")

    assert [row["custom_id"] for row in rows] == ["12", "row1"]


def test_a_heavy_batch_is_encoded_in_pieces_with_the_same_rows(encoder: PromptEncoder) -> None:
    notes = ["x" * (1 << 20), ""] * 6

    rows = encode(encoder, {"prompt": [*"abcdefghijkl"], "note": notes}, raw_prompt=True)

    assert [row["row_index"] for row in rows] == [*range(100, 112)]
    assert [row["custom_id"] for row in rows] == [f"row{i}" for i in range(12)]
    assert "".join(row["tokens"] for row in rows) == "abcdefghijkl"
    assert [row["in.note"] for row in rows] == notes


def test_messages_need_a_chat_template(tmp_path: Path) -> None:
    plain = PromptEncoder.open(make_model(tmp_path, template=None))

    with pytest.raises(InputInvalid, match="chat template"):
        encode(plain, {"messages": ["[]"]})
    assert encode(plain, {"prompt": ["hé"]})[0]["tokens"] == "hé"


def test_forced_options_count_more_than_those_of_a_row_and_mend_them(encoder: PromptEncoder) -> None:
    columns = {"prompt": ["a", "b", "c"], "max_tokens": [5, None, -1], "top_k": [3, None, None], "seed": [9, 9, None]}

    longer = encode(encoder, columns, forced={"max_tokens": 7})
    reseeded = encode(encoder, columns, forced={"max_tokens": 7, "seed": 1})

    assert [row["sampling"] for row in longer] == [
        '{"max_tokens": 7, "top_k": 3}',
        '{"max_tokens": 7}',
        '{"max_tokens": 7}',
    ]
    assert errors(longer) == [None, None, None]
    assert {row["decode_tokens"] for row in longer} == {7}
    assert [row["seed"] == 9 for row in longer] == [True, True, False]
    assert len({row["seed"] for row in reseeded} - {9}) == 3
