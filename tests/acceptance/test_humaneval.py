"""HumanEval through submit_job.py with real models: every row, in order, with the text that `generate` gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from ops.demo.humaneval import Problem, few_shot_problems, problems
from ops.demo.input import write_input
from tests.acceptance.conftest import Shell
from tests.acceptance.reference import Reference

pytestmark = [pytest.mark.models, pytest.mark.integration]

MODES = {
    "all-sharing": (),
    "no-prefix-sharing": ("--no-prefix-sharing",),
    "no-block-sharing": ("--no-block-sharing",),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One model with its way of prompting, and the rows whose text is compared."""

    model: str
    raw: bool  # as it is, or in the model's chat template
    rows: list[Problem]
    compared: list[int]
    max_tokens: int

    def expected(self, reference: Reference, row: int):
        generate = reference.raw if self.raw else reference.chat
        return generate(self.rows[row].prompt, self.max_tokens)


def small(model: str, *, raw: bool) -> Trial:
    """Short prompts, and prompts that share more than a sliding window."""
    rows = [*problems()[:6], *few_shot_problems()[:3]]
    return Trial(model=model, raw=raw, rows=rows, compared=list(range(9)), max_tokens=24)


def whole(model: str, *, raw: bool) -> Trial:
    rows = problems()
    return Trial(model=model, raw=raw, rows=rows, compared=list(range(0, 164, 5))[:30], max_tokens=64)


@pytest.fixture(scope="module")
def reference(demo_model: Callable[[str], Path]) -> Callable[[str], Reference]:
    """Loads a model once for the tests of this file."""
    loaded: dict[str, Reference] = {}

    def of(name: str) -> Reference:
        if name not in loaded:
            loaded.clear()
            loaded[name] = Reference(demo_model(name))
        return loaded[name]

    return of


def check(trial: Trial, mode: str, shell: Shell, model: Path, reference: Reference, tmp_path: Path) -> None:
    write_input(tmp_path / "prompts.parquet", trial.rows)
    out = tmp_path / "out"
    flags = [*MODES[mode], *(["--raw-prompt"] if trial.raw else []), "--max-tokens", str(trial.max_tokens)]

    shell.submit_job(tmp_path / "prompts.parquet", "-o", out, "--model", model, *flags, timeout=1800)

    table = pq.read_table(out / "data")
    assert table["custom_id"].to_pylist() == [row.task_id for row in trial.rows]
    assert table["row_index"].to_pylist() == list(range(len(trial.rows)))
    assert set(table["status"].to_pylist()) == {"succeeded"}
    for row in trial.compared:
        expected = trial.expected(reference, row)
        got = table["output_text"][row].as_py()
        num_tokens, reason = (table[name][row].as_py() for name in ("completion_tokens", "finish_reason"))
        assert reason in ("stop", "length")
        assert expected.agrees_with(got, num_tokens, reason == "stop"), (
            f"row {row} ({mode}), {num_tokens} tokens, {reason}:\n{got!r}\n{expected}"
        )


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("mode", MODES)
def test_sampled_rows_of_the_hybrid_model_equal_generate(mode, shell, demo_model, reference, tmp_path):
    trial = small("gemma3-270m", raw=True)
    check(trial, mode, shell, demo_model(trial.model), reference(trial.model), tmp_path)


@pytest.mark.timeout(1200)
def test_sampled_rows_in_a_chat_template_equal_generate(shell, demo_model, reference, tmp_path):
    trial = small("smollm2-135m", raw=False)
    check(trial, "all-sharing", shell, demo_model(trial.model), reference(trial.model), tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("model", "raw"), [("gemma3-270m", True), ("smollm2-135m", False)])
def test_all_164_rows_come_out_in_order_and_30_equal_generate(model, raw, mode, shell, demo_model, reference, tmp_path):
    check(whole(model, raw=raw), mode, shell, demo_model(model), reference(model), tmp_path)
