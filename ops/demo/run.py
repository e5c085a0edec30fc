"""`make demo`: run submit_job.py on real prompts with a real hybrid model, then show what came out.

    python -m ops.demo.run [--model gemma3-270m] [--rows 64] [--max-tokens 64]

Everything is real: Parquet in, the queue, a worker with the engine, Parquet out, statistics in SQL. The state lives
in a folder of its own, so that a demo never meets other jobs of this user.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.dataset as ds

from ops.demo.humaneval import few_shot_problems
from ops.demo.input import write_input
from ops.demo.models import DEMO_MODELS, MODELS, ROOT

HOME = ROOT / ".cache" / "demo"
SHOWN_ROWS = 3


def nightmill_env() -> dict[str, str]:
    """This process's variables without any that name another broker, database or state folder."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("NIGHTMILL_")}
    return {**env, "NIGHTMILL_HOME": str(HOME)}


def run(command: list[str], env: dict[str, str]) -> tuple[int, str]:
    """Exit code and stdout; stderr goes to the terminal. Ctrl-C reaches the child too, which ends in its own time."""
    child = subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, text=True)
    while True:
        try:
            out, _ = child.communicate()
            return child.returncode, out
        except KeyboardInterrupt:
            continue


def show_rows(out: Path) -> None:
    """The first outputs, read from the published data alone."""
    rows = ds.dataset(out / "data").head(SHOWN_ROWS, columns=["custom_id", "output_text"]).to_pylist()
    for row in rows:
        print(f"\n--- {row['custom_id']} " + "-" * 60)
        print((row["output_text"] or "").rstrip())


def show_reading(out: Path) -> None:
    print(
        f"""
Read the data set:
  pandas    pd.read_parquet("{out}/data")
  DuckDB    SELECT custom_id, output_text FROM '{out}/data/*.parquet'
  polars    pl.read_parquet("{out}/data/*.parquet")
  datasets  load_dataset("parquet", data_files="{out}/data/*.parquet")
What each row cost is in {out}/_meta/metrics, what was published in {out}/manifest.json.
"""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Run submit_job.py on real prompts and show what came out.")
    parser.add_argument("--model", choices=sorted(DEMO_MODELS), default="gemma3-270m")
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--max-tokens", type=int, default=64)
    options = parser.parse_args()

    prompts = HOME / "prompts.parquet"
    write_input(prompts, few_shot_problems()[: options.rows])
    out = Path(f"demo-out-{time.strftime('%Y%m%d-%H%M%S')}")
    submit = ["submit_job.py", str(prompts.relative_to(ROOT)), "-o", str(out)]
    submit += ["--model", str((MODELS / options.model).relative_to(ROOT)), "--raw-prompt"]
    submit += ["--max-tokens", str(options.max_tokens)]
    print(f"$ NIGHTMILL_HOME={HOME.relative_to(ROOT)} python {' '.join(submit)}", flush=True)
    env = nightmill_env()
    code, stdout = run([sys.executable, *submit], env)
    if code:
        raise SystemExit(code)
    job = stdout.split()[-1]
    print(f"\nJob {job} is done. The first outputs:")
    show_rows(ROOT / out)
    print(f"\n$ NIGHTMILL_HOME={HOME.relative_to(ROOT)} nightmill stats {job}", flush=True)
    subprocess.run([sys.executable, "-m", "nightmill", "stats", job], cwd=ROOT, env=env, check=True)
    show_reading(out)


if __name__ == "__main__":
    main()
