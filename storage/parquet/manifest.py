"""The manifest: what of an output directory counts. It is written last; readers trust nothing else."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from storage import layout
from storage.durable import create_exclusive, inside, sha256_bytes, sha256_file, write_atomic
from storage.errors import Fenced
from storage.parquet.parts import Part
from storage.parquet.schema import SCHEMA_VERSION

README = """\
# {name}

{rows} rows: {counts}. One row for each input row and sample, in input order; `status` says how it ended.

```python
import pandas as pd

frame = pd.read_parquet("data")
```

```python
import pyarrow.dataset as ds

table = ds.dataset("data", format="parquet").to_table()
```

```sql
-- DuckDB
SELECT status, count(*) FROM read_parquet('data/*.parquet') GROUP BY status;
```

```python
import polars as pl

frame = pl.scan_parquet("data/*.parquet").collect()
```

```python
from datasets import load_dataset

rows = load_dataset("parquet", data_files="data/*.parquet", split="train")
```

| Where | What |
|---|---|
| `data/` | the input's columns, then the output's |
| `manifest.json` | the files that count, with rows and sha256 |
| `_meta/metrics/` | what each row cost, by the same key (`row_index`, `sample_index`) |
| `_meta/errors/` | input rows that failed, if any, with the reason; can be submitted again |
| `_meta/manifest-*.json`, `_meta/superseded/` | older generations of the data, if rows were run again |
| `_meta/job.json`, `_meta/stats.json` | what was asked for, and what it took |
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCount:
    """How many rows ended with an error code, and what one of them was told."""

    code: str
    rows: int
    example: str


def manifest_bytes(
    *,
    job: str,
    generation: int,
    reopenings: int = 0,
    plan_sha256: str,
    counts: Mapping[str, int],
    errors: Sequence[ErrorCount],
    parts: Mapping[str, Sequence[Part]],
) -> bytes:
    """The manifest as JSON: a function of its arguments, without times. `parts`: data, metrics and errors."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "job": job,
        "generation": generation,
        **({"reopenings": reopenings} if reopenings else {}),
        "output_order": "input",
        "plan_sha256": plan_sha256,
        "rows": sum(part.rows for part in parts["data"]),
        "counts": dict(counts),
        "error_codes": [asdict(error) for error in errors],
        "parts": [asdict(part) for part in parts["data"]],
        "metrics": [asdict(part) for part in parts["metrics"]],
        "errors": [asdict(part) for part in parts["errors"]],
    }
    return (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode()


def readme_bytes(job: str, counts: Mapping[str, int]) -> bytes:
    named = ", ".join(f"{count} {status}" for status, count in counts.items() if count) or "none"
    return README.format(name=job, rows=sum(counts.values()), counts=named).encode()


def write_manifest(out: Path, generation: int, content: bytes, reopenings: int = 0) -> str:
    """Publish: keep the generation, then point `manifest.json` to it. The sha256.

    A generation that exists with other content was never pointed to (see `intact_manifest`), so it is replaced.
    Raises Fenced, see `refuse_if_newer`.
    """
    refuse_if_newer(out, generation, reopenings)
    kept = out / layout.manifest_generation(generation)
    if not create_exclusive(kept, content) and kept.read_bytes() != content:
        write_atomic(kept, content)
    write_atomic(out / layout.MANIFEST, content)
    return sha256_bytes(content)


def refuse_if_newer(out: Path, generation: int, reopenings: int) -> None:
    """Raise Fenced when a newer generation is published, or this one after more reopenings: this publisher slept."""
    newest = newest_generation(out)
    if newest > generation:
        raise Fenced(f"{out} holds generation {newest} already; generation {generation} was published before")
    if newest == generation and _reopenings(json.loads((out / layout.MANIFEST).read_bytes())) > reopenings:
        raise Fenced(f"{out}: rows of generation {generation} have run again since this publisher looked at them")


def newest_generation(out: Path) -> int:
    """The generation that `manifest.json` is; 0 when there is none that can be read."""
    try:
        return int(json.loads((out / layout.MANIFEST).read_bytes())["generation"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def intact_manifest(out: Path, generation: int, plan_sha256: str, reopenings: int = 0) -> dict[str, Any] | None:
    """The published manifest of this plan and generation, after so many reopenings of its shards, if there is one and
    all its parts are as it says."""
    try:
        manifest = json.loads((out / layout.MANIFEST).read_bytes())
        same = (manifest["generation"], manifest["plan_sha256"]) == (generation, plan_sha256)
        same = same and _reopenings(manifest) == reopenings
        parts = [part for kind in ("parts", "metrics", "errors") for part in manifest[kind]]
        whole = all(sha256_file(inside(out, part["path"])) == part["sha256"] for part in parts)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return manifest if same and whole else None


def _reopenings(manifest: dict[str, Any]) -> int:
    """How often shards of its generation had run again when it was written."""
    return int(manifest.get("reopenings", 0))
