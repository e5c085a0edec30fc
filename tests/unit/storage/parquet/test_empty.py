"""A job without rows: its plan holds none, and its published data set is empty but can be read."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from storage import layout
from storage.parquet.generations import Generation
from storage.parquet.publisher import publish
from storage.parquet.schema import data_schema
from tests.unit.storage.parquet.samples import PASSED, make_job


def test_a_job_without_rows_publishes_one_part_that_has_its_columns(tmp_path: Path) -> None:
    job = make_job(tmp_path, [], shard_rows=3)

    published = publish(tmp_path, job.publish_job(), [])

    manifest = json.loads((tmp_path / layout.MANIFEST).read_bytes())
    assert (published.rows, manifest["rows"], [part["rows"] for part in manifest["parts"]]) == (0, 0, [0])
    assert pq.read_schema(tmp_path / "data/part-00000.parquet").names == data_schema(PASSED).names
    assert pd.read_parquet(tmp_path / "data").empty


def test_publishing_nothing_again_gives_the_same_bytes(tmp_path: Path) -> None:
    job = make_job(tmp_path, [], shard_rows=3)
    first = publish(tmp_path, job.publish_job(), [])
    (tmp_path / layout.MANIFEST).unlink()

    again = publish(tmp_path, job.publish_job(epoch=2), [])

    assert again == first
    assert Generation.load(tmp_path, 1, first.manifest_sha256).num_rows == 0
