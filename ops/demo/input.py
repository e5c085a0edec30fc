"""Write the example input: HumanEval problems behind one few-shot prefix, as Parquet.

python -m ops.demo.input PROMPTS.parquet [--rows 64] [--no-examples]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ops.demo.humaneval import Problem, few_shot_problems, problems

SCHEMA = pa.schema(
    [
        pa.field("custom_id", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("entry_point", pa.string(), nullable=False),  # not ours: passes through to the output
    ]
)


def write_input(path: Path, rows: list[Problem]) -> None:
    """Columns custom_id and prompt, and entry_point as an example of a column that passes through."""
    table = pa.table(
        {
            "custom_id": [row.task_id for row in rows],
            "prompt": [row.prompt for row in rows],
            "entry_point": [row.entry_point for row in rows],
        },
        schema=SCHEMA,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def main() -> None:
    parser = argparse.ArgumentParser(description="Write HumanEval problems as an input of submit_job.py.")
    parser.add_argument("path", type=Path)
    parser.add_argument("--rows", type=int, help="only the first ROWS problems")
    parser.add_argument("--no-examples", action="store_true", help="without the few-shot prefix")
    options = parser.parse_args()
    rows = problems() if options.no_examples else few_shot_problems()
    write_input(options.path, rows[: options.rows])


if __name__ == "__main__":
    main()
