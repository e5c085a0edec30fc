"""A checker that finds nothing is worth nothing: each damage to a published job is found and named."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.records import Job
from tests.faults.harness import Harness

pytestmark = pytest.mark.integration

KEYS = {(i, 0) for i in range(24)}
Published = tuple[Harness, Job]


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Published]:
    with Harness.create(tmp_path_factory.mktemp("checker")) as harness:
        harness.start_worker("w0")
        job = harness.submit([f"prompt number {i}" for i in range(24)], shard_rows=12)
        harness.wait_for_end(job.id)
        harness.check(job.id, KEYS)
        harness.stop()  # what is damaged below stays as it is
        shutil.copytree(job.output_uri, f"{job.output_uri}.copy")
        copy_database(harness.folder / "harness.db", harness.folder / "copy.db")
        yield harness, job


def rewrite(out: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    path = out / layout.part(layout.DATA, 0)
    pq.write_table(change(pq.read_table(path)), path)


def lose_a_row(harness: Harness, out: Path) -> None:
    rewrite(out, lambda table: table.slice(1))


def double_a_row(harness: Harness, out: Path) -> None:
    rewrite(out, lambda table: pa.concat_tables([table, table.slice(23)]))


def mix_rows_up(harness: Harness, out: Path) -> None:
    def rotate(table: pa.Table) -> pa.Table:
        texts = table["output_text"].take(pa.array([*range(1, 24), 0]))
        return table.set_column(table.schema.get_field_index("output_text"), "output_text", texts)

    rewrite(out, rotate)


def write_a_part_again(harness: Harness, out: Path) -> None:
    path = out / layout.part(layout.METRICS, 0)
    pq.write_table(pq.read_table(path), path, compression="none")


def change_a_count(harness: Harness, out: Path) -> None:
    sql(harness, "UPDATE jobs SET rows_succeeded = rows_succeeded - 1, rows_errored = rows_errored + 1")


def leave_a_file(harness: Harness, out: Path) -> None:
    (out / layout.DATA / "leftover.tmp").write_bytes(b"")


def commit_twice(harness: Harness, out: Path) -> None:
    columns = "SELECT shard_id, epoch + 1, job_id, owner, started_at, ended_at, outcome FROM attempts LIMIT 1"
    sql(
        harness,
        f"INSERT INTO attempts (shard_id, epoch, job_id, owner, started_at, ended_at, outcome) {columns}",
    )


def compute_again(harness: Harness, out: Path) -> None:
    harness.trace.write_text(2 * harness.trace.read_text())


def sql(harness: Harness, statement: str) -> None:
    with harness.repository._db.write() as conn:
        conn.exec_driver_sql(statement)


@pytest.mark.parametrize(
    ("damage", "check"),
    [
        (lose_a_row, "C1: rows are missing: "),
        (double_a_row, "C1: rows are there twice: "),
        (mix_rows_up, "C2: row 0.0: "),
        (write_a_part_again, "C3: sha256 of _meta/metrics/part-00000.parquet"),
        (change_a_count, "C4: rows succeeded: recorded 23, counted 24"),
        (leave_a_file, "C5: data/leftover.tmp is listed nowhere"),
        (commit_twice, "C6: commits of shard 1: "),
        (compute_again, "C7: 24 results were made again; 0 lost attempts allow 0"),
    ],
)
def test_a_damage_is_found_and_named(published: Published, damage: Callable[[Harness, Path], None], check: str) -> None:
    harness, job = published
    out = Path(job.output_uri)
    trace = harness.trace.read_text()

    damage(harness, out)
    with pytest.raises(AssertionError) as found:
        harness.check(job.id, KEYS)

    assert check in str(found.value)
    shutil.rmtree(out)
    shutil.copytree(f"{out}.copy", out)
    harness.trace.write_text(trace)
    copy_database(harness.folder / "copy.db", harness.folder / "harness.db")
    harness.check(job.id, KEYS)


def test_a_job_that_took_too_long_is_found(published: Published) -> None:
    harness, job = published

    with pytest.raises(AssertionError, match=r"C8: the job took .* s, allowed are 0"):
        harness.check(job.id, KEYS, seconds=0.0)


def copy_database(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as old, closing(sqlite3.connect(target)) as new:
        old.backup(new)
