"""Every command and every snippet of the guide to data sets runs, and what it says of terms and settings is so."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from jobs.datasets.terms import DatasetTerms
from jobs.datasets.webhook import sign
from jobs.settings import Settings
from storage.dataset.card import SNIPPETS
from storage.dataset.current import Current
from tests.integration.program import Program
from tests.unit.storage.dataset.samples import take_night

pytestmark = pytest.mark.integration
GUIDE = (Path(__file__).parents[2] / "docs/datasets.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE, re.DOTALL)
SCRIPTS = [code for language, code in BLOCKS if language == "python"]
COMMANDS = [line for language, code in BLOCKS if language == "sh" for line in code.splitlines()]


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """Two nights; the second has rows that `prompts.parquet` holds as well."""
    take_night(tmp_path / "stories", "2026-11-26", rows=3)
    take_night(tmp_path / "stories", "2026-11-27", rows=4)
    return tmp_path / "stories"


def run_script(code: str) -> dict[str, Any]:
    names: dict[str, Any] = {}
    exec(code, names)
    return names


def only(text: str) -> str:
    (found,) = (code for code in SCRIPTS if text in code)
    return found


def test_the_guide_has_no_block_that_these_tests_do_not_know() -> None:
    assert {language for language, _ in BLOCKS} == {"text", "json", "sh", "python"}
    assert len(SCRIPTS) == 6
    assert len(COMMANDS) == 4


def test_the_commands_run_in_their_order(
    program: Program, call: Callable[..., Any], stories: Path, tiny_model: Path
) -> None:
    shutil.copytree(tiny_model, program.folder / "model")
    prompts = pa.table({"custom_id": ["2026-11-27-0", "new"], "prompt": ["say 0", "say something"]})
    pq.write_table(prompts, program.folder / "prompts.parquet")

    lines = [line for line in COMMANDS if line.startswith("nightmill")]
    done = [(program.nightmill if "submit" in line else call)(*shlex.split(line)[1:]) for line in lines]

    assert [(each.returncode, each.stderr) for each in done if each.returncode] == []
    first, _, submitted = done
    assert [json.loads(line)["dt"] for line in first.stdout.splitlines()] == ["2026-11-26"] * 3
    assert pq.read_table(program.folder / "stories.parquet")["dt"].to_pylist().count("2026-11-27") == 4
    assert "only new rows: 1 rows of the input are left out" in submitted.stderr
    assert pq.read_table(program.folder / "OUT/data")["custom_id"].to_pylist() == ["new"]


@pytest.mark.parametrize("reader", SNIPPETS)
def test_the_readers_of_the_guide_are_those_of_the_card(reader: str) -> None:
    assert SNIPPETS[reader] in SCRIPTS


def test_the_python_reader_reads_and_checks(stories: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(stories)

    table = run_script(only("open_dataset"))["table"]

    assert sorted(set(table["dt"].to_pylist())) == ["2026-11-26", "2026-11-27"]


def test_current_json_is_as_it_is_shown() -> None:
    (shown,) = (code for language, code in BLOCKS if language == "json")

    current = Current.from_bytes(shown.encode())

    assert json.loads(current.as_bytes()) == json.loads(shown)


def test_the_check_passes_good_texts_and_names_refusals(tmp_path: Path) -> None:
    check = run_script(only("no_refusals"))["no_refusals"]

    def said(texts: list[str | None]) -> Any:
        pq.write_table(pa.table({"output_text": texts}), tmp_path / "run.parquet")
        return check(ds.dataset(tmp_path / "run.parquet"))

    assert said(["fine", None]) is None
    assert said(["fine", "I'm sorry, no"]) == "1 of 2 texts are refusals"


def test_the_receivers_check_believes_our_signature_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    is_genuine = run_script(only("is_genuine"))["is_genuine"]
    monkeypatch.setattr("time.time", lambda: 1_795_777_300.0)
    header = sign("secret", 1_795_777_200, b"{}")

    assert is_genuine("secret", header, b"{}")
    assert not is_genuine("other", header, b"{}")
    assert not is_genuine("secret", header, b"{ }")
    assert not is_genuine("secret", sign("secret", 1_795_770_000, b"{}"), b"{}"), "an old one was replayed"


def test_every_term_is_named_with_its_default() -> None:
    table = GUIDE.split("| Term (default)")[1].split("\n\n")[0]
    rows = re.findall(r"^\| (`.*?) \((.*?)\) \|", table, re.MULTILINE)
    named: Mapping[str, str] = {name: default for names, default in rows for name in re.findall(r"`(\w+)`", names)}
    terms = DatasetTerms()

    for field in fields(DatasetTerms):
        value = getattr(terms, field.name)
        assert named[field.name] == ("none" if value in (None, ()) else f"{value:g}")
    assert len(named) == len(fields(DatasetTerms))


def test_every_variable_that_is_named_is_a_setting_with_this_default() -> None:
    named = re.findall(r"`NIGHTMILL_([A-Z_]+)`(?: \((\d+)\))?", GUIDE)

    assert {name.lower() for name, _ in named} <= set(Settings.model_fields)
    for name, default in named:
        if default:
            assert getattr(Settings(), name.lower()) == float(default)
