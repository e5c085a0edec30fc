"""Which cells a run measures, and which of them a results file already has. Pure."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ops.bench.engines import OURS
from ops.bench.models import HYBRID
from ops.bench.workloads import WORKLOADS

FEW_ROWS = 32
SLOW_PEERS = ("transformers-cb", "transformers-generate", "llama.cpp")


@dataclass(frozen=True, slots=True)
class Cell:
    """What one process measures. The fields are keys of its result line."""

    round: int
    model: str
    workload: str
    engine: str
    rows: int
    new_tokens_per_row: int
    threads: int
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Where a cell would be measured now. A line made under others is not of this cell."""

    cpu: str
    versions: dict[str, dict[str, str]]  # by engine
    engine_tree: str

    def made(self, line: dict[str, Any]) -> bool:
        if line["engine"] not in self.versions:
            return False
        same = line["cpu"] == self.cpu and line["versions"] == self.versions[line["engine"]]
        return same and (line["engine"] != OURS or line["engine_tree"] == self.engine_tree)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What `make bench` was asked for."""

    engines: tuple[str, ...]
    models: tuple[str, ...]
    workloads: tuple[str, ...]
    rounds: int
    new_tokens: int
    threads: int
    most_rows: int | None = None  # None: all that a workload has


def full_and_few(scope: Scope) -> list[Cell]:
    """All rows in each round for ours and vLLM, which alternate; the slow peers once on FEW_ROWS, with ours on them."""
    cells: dict[tuple[Any, ...], Cell] = {}

    def add(number: int, model: str, workload: str, engine: str, rows: int) -> None:
        rows = min(rows, WORKLOADS[workload].rows, scope.most_rows or rows)
        cell = Cell(number, model, workload, engine, rows, scope.new_tokens, scope.threads)
        cells.setdefault((number, model, workload, engine, rows), cell)

    for number in range(scope.rounds):
        for model in scope.models:
            for workload in scope.workloads:
                for engine in (OURS, "vllm"):
                    if engine in scope.engines:
                        add(number, model, workload, engine, WORKLOADS[workload].rows)
    for model in scope.models:
        for workload in scope.workloads:
            peers = [engine for engine in SLOW_PEERS if engine in scope.engines and can_run(engine, workload)]
            for engine in ([OURS] if OURS in scope.engines and peers else []) + peers:
                add(0, model, workload, engine, FEW_ROWS)
    return list(cells.values())


SWITCHES = tuple(
    {"native_attention": native, "allow_block_sharing": sharing}
    for native in (True, False)
    for sharing in (True, False)
)


def switches(scope: Scope) -> list[Cell]:
    """Ours behind the shared examples, with either attention, sharing on and off."""
    return [
        Cell(
            0,
            model,
            "few-shot",
            OURS,
            min(FEW_ROWS, scope.most_rows or FEW_ROWS),
            scope.new_tokens,
            scope.threads,
            each,
        )
        for model in scope.models
        for each in SWITCHES
    ]


def hybrid(scope: Scope) -> list[Cell]:
    """A model of layers with a state, against the only peer that runs it here."""
    rows = min(FEW_ROWS, scope.most_rows or FEW_ROWS)
    return [
        Cell(number, HYBRID, "few-shot", engine, rows, scope.new_tokens, scope.threads)
        for number in range(scope.rounds)
        for engine in (OURS, "transformers-generate")
    ]


def can_run(engine: str, workload: str) -> bool:
    """llama.cpp is timed on short greedy prompts: it shares no prefix and has another sampler."""
    return engine != "llama.cpp" or workload == "no-share"


def missing(cells: list[Cell], lines: list[dict[str, Any]], conditions: Conditions) -> list[Cell]:
    """The cells without a line of the same conditions, in their order."""
    valid = [line for line in lines if line["kind"] == "cell" and conditions.made(line)]
    return [cell for cell in cells if not any(asdict(cell).items() <= line.items() for line in valid)]
