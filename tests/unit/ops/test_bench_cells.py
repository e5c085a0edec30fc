"""Which cells a run measures, and which are left."""

from __future__ import annotations

from dataclasses import fields

from engine.config import EngineConfig
from ops.bench.cells import Cell, Conditions, Scope, full_and_few, hybrid, missing, switches
from tests.unit.ops.bench_lines import line

HERE = Conditions(
    cpu="a CPU",
    versions={name: {"python": "3.11", "torch": "2"} for name in ("nightmill", "vllm")},
    engine_tree="abc",
)


def scope(*engines: str, workloads: tuple[str, ...] = ("no-share",), rounds: int = 3) -> Scope:
    return Scope(engines=engines, models=("tiny",), workloads=workloads, rounds=rounds, new_tokens=64, threads=2)


def cells_of(number: int, engine: str = "nightmill") -> Cell:
    return Cell(number, "tiny", "few-shot", engine, 2, 8, 1)


def test_ours_and_vllm_alternate_on_all_rows():
    cells = full_and_few(scope("nightmill", "vllm"))

    assert [(cell.engine, cell.rows) for cell in cells] == [("nightmill", 164), ("vllm", 164)] * 3


def test_slow_peers_run_once_on_few_rows_with_ours_on_the_same():
    cells = full_and_few(scope("nightmill", "vllm", "transformers-cb", "llama.cpp"))

    few = [(cell.round, cell.engine) for cell in cells if cell.rows == 32]

    assert few == [(0, "nightmill"), (0, "transformers-cb"), (0, "llama.cpp")]


def test_few_rows_that_are_all_rows_are_not_measured_twice():
    cells = full_and_few(scope("nightmill", "transformers-cb", workloads=("fan-out",), rounds=1))

    assert [(cell.engine, cell.rows) for cell in cells] == [("nightmill", 20), ("transformers-cb", 20)]


def test_llama_cpp_is_timed_on_no_share_alone():
    cells = full_and_few(scope("llama.cpp", workloads=("no-share", "few-shot", "fan-out")))

    assert [cell.workload for cell in cells] == ["no-share"]


def test_a_cell_with_a_line_is_not_run_again_and_another_round_of_it_is():
    cells = [cells_of(0), cells_of(1)]

    assert missing(cells, [line("nightmill", 1.0, number=0)], HERE) == [cells[1]]


def test_a_line_of_another_processor_version_or_engine_tree_is_not_of_the_cell():
    lines = [
        line("nightmill", 1.0, cpu="another CPU"),
        line("nightmill", 1.0, versions={"python": "3.12"}),
        line("nightmill", 1.0, engine_tree="older"),
    ]

    assert missing([cells_of(0)], lines, HERE) == [cells_of(0)]


def test_a_peer_is_not_run_again_because_our_engine_changed():
    assert missing([cells_of(0, "vllm")], [line("vllm", 1.0, engine_tree="older")], HERE) == []


def test_a_cell_with_other_switches_is_another_cell():
    switched = Cell(0, "tiny", "few-shot", "nightmill", 2, 8, 1, {"use_prefix_sharing": False})

    assert missing([switched], [line("nightmill", 1.0)], HERE) == [switched]


def test_each_attention_is_measured_with_sharing_on_and_off():
    cells = switches(scope("nightmill"))

    assert [tuple(cell.options.values()) for cell in cells] == [
        (True, True), (True, False), (False, True), (False, False)
    ]  # fmt: skip
    assert all(set(cell.options) <= {field.name for field in fields(EngineConfig)} for cell in cells)


def test_the_hybrid_model_meets_static_generate_in_each_round():
    cells = hybrid(scope("nightmill", rounds=2))

    assert [cell.engine for cell in cells] == ["nightmill", "transformers-generate"] * 2
