"""The tools that people read Parquet with get exactly the manifest's rows from OUT/data, and the same values."""

import json
import random
from pathlib import Path

import datasets
import duckdb
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.output import Owner, sweep, take_output
from storage.parquet.publisher import publish
from storage.parquet.rows import LostRows
from tests.unit.storage.parquet.samples import make_job, passed_values, result_row

NUM_ROWS = 60
CANCELED = LostRows(row_lo=50, row_hi=60, status="canceled", code="canceled", message="the job was cancelled")


def read_pandas(out: Path, _: Path) -> list[dict]:
    frame = pd.read_parquet(out / "data")
    assert isinstance(frame["status"].dtype, pd.CategoricalDtype)
    return pa.Table.from_pandas(frame, preserve_index=False).to_pylist()


def read_pyarrow(out: Path, _: Path) -> list[dict]:
    table = ds.dataset(out / "data", format="parquet").to_table()
    assert pa.types.is_dictionary(table.schema.field("status").type)
    return table.to_pylist()


def read_duckdb(out: Path, _: Path) -> list[dict]:
    with duckdb.connect() as connection:
        found = connection.sql(f"SELECT * FROM read_parquet('{out}/data/*.parquet')")
        return [dict(zip(found.columns, row, strict=True)) for row in found.fetchall()]


def read_polars(out: Path, _: Path) -> list[dict]:
    return pl.scan_parquet(out / "data" / "*.parquet").collect().to_dicts()


def read_datasets(out: Path, cache: Path) -> list[dict]:
    files = str(out / "data" / "*.parquet")
    return list(datasets.load_dataset("parquet", data_files=files, split="train", cache_dir=str(cache)))


READERS = [read_pandas, read_pyarrow, read_duckdb, read_polars, read_datasets]


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    """A published job of several parts, with errored and canceled rows."""
    out = tmp_path_factory.mktemp("readers") / "out"
    take_output(out, Owner(run_key="readers", spec_hash="0"))
    order = random.Random(1).sample(range(NUM_ROWS), NUM_ROWS)
    job = make_job(out, order, shard_rows=10)
    files = [job.run_shard(idx) for idx in range(5)]
    publish(out, job.publish_job(part_bytes=3000, row_group_bytes=1000), files, [CANCELED])
    sweep(out)
    return out


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    """Reading local files needs no Hub, and shows no progress bars."""
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.mark.parametrize("read", READERS)
def test_every_reader_gets_exactly_the_manifests_rows(published, tmp_path, read):
    manifest = json.loads((published / layout.MANIFEST).read_bytes())
    assert len(manifest["parts"]) > 2

    rows = sorted(read(published, tmp_path), key=lambda row: (row["row_index"], row["sample_index"]))

    assert len(rows) == manifest["rows"]
    assert {row["row_index"] for row in rows} == set(range(NUM_ROWS))
    for status, count in manifest["counts"].items():
        assert sum(row["status"] == status for row in rows) == count
    assert manifest["counts"]["canceled"] > 0
    for row in rows:
        index, done = row["row_index"], row["status"] != "canceled"
        wanted = result_row(index)
        assert row["custom_id"] == wanted.custom_id
        assert row["output_text"] == (wanted.output_text if done else None)
        assert row["error_code"] == (wanted.error_code if done else "canceled")
        assert row["logprobs"] == (wanted.logprobs if done else None)
        assert {name: row[name] for name in passed_values(index)} == passed_values(index)


def test_the_folder_holds_what_the_readme_says(published):
    entries = {path.name for path in published.iterdir()}

    assert entries == {"data", "_meta", "manifest.json", "README.md"}
    assert all(pq.ParquetFile(path).metadata.num_rows for path in (published / "data").iterdir())


def test_the_readmes_pandas_and_duckdb_lines_run_in_the_output_directory(published, monkeypatch):
    monkeypatch.chdir(published)
    text = (published / "README.md").read_text()
    sql = text.split("```sql\n")[1].split("```")[0]
    scripts = [block.split("```")[0] for block in text.split("```python\n")[1:]]

    counts = dict(duckdb.sql(sql).fetchall())
    for script in scripts[:3]:
        names: dict = {}
        exec(script, names)
        assert len(names.get("frame", names.get("table"))) == sum(counts.values())

    manifest = json.loads(Path("manifest.json").read_bytes())
    assert counts == {status: count for status, count in manifest["counts"].items() if count}
