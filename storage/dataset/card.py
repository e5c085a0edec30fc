"""The data-set card: README.md with the Hub's front matter, how to read the data, and a table of runs. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType

from storage.dataset.current import Current, CurrentRun
from storage.dataset.verdicts import DamagedVerdict, Verdict

MARK = "`current.json` names the run that counts for each label"
"""In every card, so that no other README is taken for one."""

SHOWN_RUNS = 100
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))

_FILES = 'files = json.loads(pathlib.Path("current.json").read_text())["files"]\n'
_TABLE = (
    'ds.dataset(files, pa.unify_schemas([*map(pq.read_schema, files), pa.schema({"dt": "string"})]),'
    ' partitioning=["dt"], partition_base_dir="_runs").to_table()'
)
"""With the columns of all files: one may be missing in some nights, or hold nothing."""

SNIPPETS: Mapping[str, str] = MappingProxyType(
    {
        "pyarrow": (
            "import json, pathlib, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq\n"
            f"{_FILES}table = {_TABLE}\n"
        ),
        "DuckDB": (
            f"import duckdb, json, pathlib\n{_FILES}"
            "table = duckdb.sql(\"SELECT * REPLACE (split_part(dt, '/', -4) AS dt)"
            ' FROM read_parquet($files, filename=\'dt\', union_by_name=true)", params={"files": files})\n'
        ),
        "datasets": (
            "import datasets, json, pathlib, pyarrow as pa, pyarrow.dataset as ds, pyarrow.parquet as pq\n"
            f"{_FILES}table = datasets.Dataset({_TABLE}.replace_schema_metadata())\n"
        ),
    }
)
"""Three lines each, run in the data set's folder: `table` is all that is current."""


def card_bytes(name: str, current: Current, verdicts: Sequence[Verdict | DamagedVerdict]) -> bytes:
    """`verdicts`: the newest on each run there is."""
    rows = sum(run.rows for run in current.runs)
    name = " ".join(name.encode(errors="replace").decode().split())  # one line, whatever the folder is called
    lines = [
        *_front_matter(name, current.runs, rows),
        f"# {name}",
        "",
        f"{rows} rows of {len(current.runs)} runs. {MARK};"
        " a folder below `_runs` that it does not name is not part of the data set.",
        "",
        "Each of these, run in this folder, reads all of it as one table, the label of each row in the column `dt`:",
        "",
        *(line for snippet in SNIPPETS.values() for line in ("```python", *snippet.splitlines(), "```", "")),
        "| label | run | job | state | rows | succeeded | judged | why |",
        "|---|---|---|---|---|---|---|---|",
        *_table(current, verdicts),
    ]
    return ("\n".join(lines) + "\n").encode()


def _front_matter(name: str, runs: Sequence[CurrentRun], rows: int) -> Iterator[str]:
    """What the Hub, and `load_dataset` of this folder, read. JSON texts are YAML texts too."""
    size = next((text for most, text in SIZES if rows < most), "n>10M")
    yield from ("---", f"pretty_name: {json.dumps(name, ensure_ascii=False)}", "tags:", "- synthetic", "- nightmill")
    yield from ("size_categories:", f"- {size}")
    files = [file for run in runs if run.rows for file in run.files]
    if files:
        yield from ("configs:", "- config_name: default", "  data_files:", "  - split: train", "    path:")
        yield from (f"    - {json.dumps(file)}" for file in files)
    yield from ("---", "")


def _table(current: Current, verdicts: Sequence[Verdict | DamagedVerdict]) -> Iterator[str]:
    named = {(run.label, run.run) for run in current.runs}
    newest = sorted(verdicts, key=_place, reverse=True)
    for verdict in newest[:SHOWN_RUNS]:
        is_current = (verdict.label, verdict.run) in named
        if isinstance(verdict, DamagedVerdict):
            state = "current" if is_current else "unknown"
            place = (_cell(verdict.label), _cell(verdict.run))  # as somebody has called the folders
            cells: tuple[object, ...] = (*place, "", state, "", "", "", _cell(verdict.why))
        else:
            state = "current" if is_current else _state(verdict, current)
            why = "" if verdict.accepted else _cell(verdict.reason)
            numbers = (verdict.rows, verdict.succeeded, f"{verdict.at:%Y-%m-%d %H:%M} UTC")
            cells = (verdict.label, verdict.run, verdict.job, state, *numbers, why)
        yield f"| {' | '.join(str(cell) for cell in cells)} |"
    if len(newest) > SHOWN_RUNS:
        yield ""
        yield f"and {len(newest) - SHOWN_RUNS} older runs."


def _state(verdict: Verdict, current: Current) -> str:
    """Of a run that is not current."""
    if not verdict.accepted:
        return "refused"
    return "replaced" if current.is_past(verdict.label, verdict.order, verdict.generation) else "accepted"


def _place(verdict: Verdict | DamagedVerdict) -> tuple[str, int, str]:
    return verdict.label, verdict.order if isinstance(verdict, Verdict) else 0, verdict.run


def _cell(text: str) -> str:
    """One cell of a table, whatever a check has said."""
    line = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return line if len(line) <= 200 else line[:199] + "…"
