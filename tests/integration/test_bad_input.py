"""Bad input gets a clear message, the documented exit code, and leaves nothing half-written."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.integration.program import Program
from tests.integration.refusals import GOOD, assert_refused, job_states, write

pytestmark = pytest.mark.integration


def missing_file(folder: Path) -> Path:
    return folder / "absent.parquet"


def not_parquet(folder: Path) -> Path:
    (folder / "notes.parquet").write_text("row,prompt\n" * 10)
    return folder / "notes.parquet"


def truncated(folder: Path) -> Path:
    path = write(folder / "cut.parquet", GOOD)
    path.write_bytes(path.read_bytes()[:-20])
    return path


def missing_column(folder: Path) -> Path:
    return write(folder / "other.parquet", {"question": ["w1"]})


def wrong_type(folder: Path) -> Path:
    return write(folder / "numbers.parquet", {"prompt": [1, 2]})


def duplicate_ids(folder: Path) -> Path:
    return write(folder / "twice.parquet", {**GOOD, "custom_id": ["a", "b", "a"]})


def two_prompts(folder: Path) -> Path:
    return write(folder / "both.parquet", {**GOOD, "prompt_token_ids": [[1], [2], [3]]})


def no_rows(folder: Path) -> Path:
    return write(folder / "empty.parquet", {"prompt": pa.array([], pa.string())})


def embedded_jobs(program: Program) -> list[str]:
    return job_states(program.folder / "home" / "nightmill.db")


def output(program: Program) -> list[dict[str, Any]]:
    return pq.read_table(program.folder / "OUT" / "data").to_pylist()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (missing_file, ["absent.parquet"]),
        (not_parquet, ["notes.parquet", "not a Parquet file"]),
        (truncated, ["cut.parquet", "damaged"]),
        (missing_column, ["question", "--prompt-column"]),
        (wrong_type, ["prompt", "int64", "string"]),
        (duplicate_ids, ["'a'", "0, 2"]),
        (two_prompts, ["prompt", "prompt_token_ids", "--prompt-column"]),
        (no_rows, ["empty.parquet", "no rows"]),
    ],
)
def test_an_input_that_cannot_be_used_ends_with_3_and_writes_nothing(
    program: Program, tiny_model: Path, make: Callable[[Path], Path], words: list[str]
) -> None:
    done = program.submit(make(program.folder), "-o", "OUT", "--model", tiny_model)

    assert_refused(done, 3, words)
    assert not (program.folder / "OUT").exists()
    assert set(embedded_jobs(program)) <= {"failed"}  # what was found while planning stays in the history


def test_a_named_column_that_is_absent_ends_with_3(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)

    done = program.submit(good, "-o", "OUT", "--model", tiny_model, "--id-column", "key")

    assert_refused(done, 3, ["--id-column", "key"])
    assert not (program.folder / "OUT").exists()


def test_a_remote_path_is_refused_by_name(program: Program, tiny_model: Path) -> None:
    assert_refused(program.submit("s3://bucket/in.parquet", "-o", "OUT", "--model", tiny_model), 3, ["s3://"])


def test_a_remote_output_is_refused_by_name(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)

    assert_refused(program.submit(good, "-o", "s3://bucket/out", "--model", tiny_model), 2, ["s3://"])


@pytest.mark.parametrize("model", ["no-such-org/no-such-model", "./no-such-folder"])
def test_an_unknown_model_ends_with_3_and_writes_nothing(program: Program, model: str) -> None:
    good = write(program.folder / "in.parquet", GOOD)

    assert_refused(program.submit(good, "-o", "OUT", "--model", model), 3, [model.removeprefix("./")])
    assert not (program.folder / "OUT").exists()


def test_an_unknown_option_is_refused_by_name(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)

    assert_refused(program.submit(good, "-o", "OUT", "--model", tiny_model, "--best-of", "3"), 2, ["--best-of"])


@pytest.mark.parametrize(
    ("flag", "value"), [("--temperature", "-1"), ("--top-p", "2"), ("--max-tokens", "0"), ("--limit", "0")]
)
def test_an_option_out_of_range_is_named_with_its_value(
    program: Program, tiny_model: Path, flag: str, value: str
) -> None:
    good = write(program.folder / "in.parquet", GOOD)

    done = program.submit(good, "-o", "OUT", "--model", tiny_model, flag, value)

    assert_refused(done, 2, [flag.removeprefix("--").replace("-", "_") if flag != "--limit" else flag, value])
    assert not (program.folder / "OUT").exists()


def test_an_output_below_a_file_cannot_be_written(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    (program.folder / "file").write_text("")

    assert_refused(program.submit(good, "-o", "file/OUT", "--model", tiny_model), 9, ["file/OUT"])
    assert embedded_jobs(program) == []


def test_an_output_folder_with_other_files_is_left_alone(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    (program.folder / "OUT").mkdir()
    (program.folder / "OUT" / "thesis.txt").write_text("mine")

    assert_refused(program.submit(good, "-o", "OUT", "--model", tiny_model), 9, ["OUT"])
    assert [path.name for path in (program.folder / "OUT").iterdir()] == ["thesis.txt"]


def test_an_output_folder_of_another_job_is_left_alone(program: Program, tiny_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    first = program.submit(good, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")
    assert first.returncode == 0, first.stderr
    before = output(program)

    done = program.submit(good, "-o", "OUT", "--model", tiny_model, "--max-tokens", "5")

    assert_refused(done, 9, ["OUT", "max_tokens"])
    assert output(program) == before
    assert embedded_jobs(program) == ["completed"]


def test_a_row_that_cannot_be_used_is_an_error_of_that_row_alone(program: Program, tiny_model: Path) -> None:
    rows = write(program.folder / "in.parquet", {"prompt": ["w1", None, "", " ".join(["w2"] * 40), "w3"]})

    done = program.submit(rows, "-o", "OUT", "--model", tiny_model, "--max-tokens", "4")

    assert done.returncode == 4, done.stderr
    told = output(program)
    assert [row["status"] for row in told] == ["succeeded", "errored", "errored", "errored", "succeeded"]
    assert [row["error_code"] for row in told[1:4]] == ["invalid_request", "invalid_request", "context_length"]
    assert "null" in told[1]["error_message"]
    assert "empty" in told[2]["error_message"]
    assert "32" in told[3]["error_message"]


def test_a_job_of_which_every_row_fails_has_failed(program: Program, tiny_model: Path) -> None:
    rows = write(program.folder / "in.parquet", {"prompt": [None, ""]})

    done = program.submit(rows, "-o", "OUT", "--model", tiny_model)

    assert done.returncode == 5, done.stderr
    assert embedded_jobs(program) == ["failed"]


@pytest.fixture
def foreign_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A real model with random weights whose first layer keeps its state on itself, where no cache can own it."""
    import torch
    from transformers import RecurrentGemmaConfig, RecurrentGemmaForCausalLM

    torch.manual_seed(0)
    config = RecurrentGemmaConfig(
        vocab_size=257,
        hidden_size=32,
        intermediate_size=32,
        lru_width=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=32,
        attention_window_size=16,
        block_types=("recurrent", "attention"),
    )
    folder = tmp_path / "foreign"
    RecurrentGemmaForCausalLM(config).save_pretrained(folder)
    shutil.copy(tiny_model / "tokenizer.json", folder)
    return folder


def test_a_model_that_cannot_be_served_fails_the_job_and_names_the_layer(program: Program, foreign_model: Path) -> None:
    good = write(program.folder / "in.parquet", GOOD)
    real = replace(program, settings={"NIGHTMILL_ENGINE_FACTORY": "jobs.engines:real_engine"})

    done = real.submit(good, "-o", "OUT", "--model", foreign_model, "--max-tokens", "4")

    assert done.returncode == 5, done.stderr
    assert "layer 0 keeps a state in a way that is not known" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (program.folder / "OUT").exists()
