"""A job goes on after an update: what an older program sealed lacks the metrics that came later."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.durable import sha256_file
from storage.parquet.publisher import publish
from storage.parquet.rows import SealedFile
from storage.parquet.schema import metrics_schema, result_schema
from storage.parquet.writer import write_shard
from tests.unit.storage.parquet.samples import PASSED, make_job, result_row, write_segments

LATER = ["planned_tokens", "limited_by"]


def make_older(out: Path, file: SealedFile) -> SealedFile:
    """The same rows as a program without the later metrics would have written them."""
    path = out / file.key
    table = pq.read_table(path).drop_columns(LATER)
    pq.write_table(table, path, write_page_checksum=True)
    return SealedFile(key=file.key, sha256=sha256_file(path), rows=file.rows)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_segments_of_an_older_program_and_of_this_one_become_one_shard(tmp_path: Path, order: Sequence[int]) -> None:
    [older] = write_segments(tmp_path, 0, 1, [result_row(0, planned_tokens=3)])
    [newer] = write_segments(tmp_path, 0, 2, [result_row(1, planned_tokens=4)])
    keys = [make_older(tmp_path, older).key, newer.key]

    shard = write_shard(tmp_path, 0, 2, [keys[position] for position in order])

    table = pq.read_table(tmp_path / shard.key)
    assert table.schema.equals(result_schema(PASSED))
    assert table["planned_tokens"].to_pylist() == [None, 4]
    assert table["output_text"].to_pylist() == [result_row(index).output_text for index in (0, 1)]


def test_a_shard_file_of_an_older_program_is_published(tmp_path: Path) -> None:
    job = make_job(tmp_path, range(4), shard_rows=2)
    files = job.run()

    published = publish(tmp_path, job.publish_job(), [make_older(tmp_path, files[0]), files[1]])

    metrics = pq.read_table(tmp_path / layout.part(layout.METRICS, 0))
    assert published.rows == 4
    assert metrics.schema.equals(metrics_schema())
    assert [limits is None for limits in metrics["limited_by"].to_pylist()] == [True, True, False, False]
