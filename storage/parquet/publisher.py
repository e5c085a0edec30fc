"""From the shard files of a job to its published data set: verify, merge by key, move into place, manifest last.

    shard files, lost rows of the plan -> external sort -> one row per key -> parts under _inprogress
    -> data/, _meta/ -> _meta/manifest-0001.json -> manifest.json

Repeating it after a crash at any point gives the same bytes. A later generation is the one before it (its base) with
the rows of its own plan replaced: all rows stream through once more and are cut into the parts that there are.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from storage import failpoints, layout
from storage.durable import inside, make_folder, move, sha256_bytes, sha256_file, sync_folder, write_atomic
from storage.errors import FileDamaged
from storage.parquet.damage import FilesDamaged, damaged
from storage.parquet.generations import Generation
from storage.parquet.lost import lost_batches
from storage.parquet.manifest import (
    ErrorCount,
    intact_manifest,
    manifest_bytes,
    readme_bytes,
    refuse_if_newer,
    write_manifest,
)
from storage.parquet.parts import ROW_GROUP_BYTES, OutputWriter, Part, cut_row_groups
from storage.parquet.plan import passed_schema, plan_indices, shard_rows, verify_plan
from storage.parquet.rows import LostRows, SealedFile
from storage.parquet.schema import KEY, SCHEMA_VERSION, complete, decode, result_schema
from storage.parquet.sealed import read_sealed
from storage.parquet.sorting import ExternalSorter, drop_repeats, merge_sorted, split_at


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishJob:
    """What the publisher must know of a job. `footer` holds what affects results, for the data parts' footers."""

    name: str
    epoch: int  # of the job's lease; names the staging folder
    plan_sha256: str
    num_samples: int = 1  # the job's default, for lost rows
    generation: int = 1
    reopenings: int = 0  # times that shards of this generation ran again because their files were damaged
    plan: str = layout.PLAN  # relative to OUT; what only this generation needs is in the same work folder
    base: Generation | None = None  # the generation of which the rows of the plan are replaced
    footer: Mapping[str, str] = field(default_factory=dict)  # model, model_revision, sampling defaults, engine version
    job_json: Mapping[str, Any] = field(default_factory=dict)
    stats_json: Mapping[str, Any] = field(default_factory=dict)
    part_bytes: int = 128 << 20  # Arrow bytes of a data part
    row_group_bytes: int = ROW_GROUP_BYTES
    memory_bytes: int = 96 << 20  # for sorting


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    manifest_sha256: str
    rows: int
    counts: dict[str, int]  # by status
    parts: tuple[str, ...]  # data parts, relative to OUT
    cause: str | None  # the commonest error with an example, if there is any


def publish(
    out: Path,
    job: PublishJob,
    files: Iterable[SealedFile],
    lost: Sequence[LostRows] = (),
    *,
    beat: Callable[[], None] = lambda: None,
) -> Published:
    """Write the data set of a job whose shards have all ended. Does not sweep: see `storage.output.sweep`.

    `files`: the file of each done shard, and the sealed segments of shards that never got so far. `lost`: the plan
    rows of the latter; a lost row that has a result in `files` keeps that result. `beat` is called after each row
    group, before the first part becomes visible and before the manifest does; it renews the lease, and what it raises
    ends the attempt. Raises FilesDamaged when some of `files` are, FileDamaged when nothing can be published any more.
    """
    published = intact_manifest(out, job.generation, job.plan_sha256, job.reopenings)
    if published is not None:
        return _as_published(published, sha256_file(out / layout.MANIFEST))
    plan = inside(out, job.plan)
    verify_plan(plan, job.plan_sha256)
    if job.base is not None:
        job.base.verify()
    sealed = sorted(files, key=lambda file: file.key)
    _verify(out, sealed, beat)
    staging = inside(out, layout.publish_folder(job.epoch, layout.work_of(job.plan)))
    shutil.rmtree(staging, ignore_errors=True)
    make_folder(staging)
    writer = OutputWriter(staging, passed_schema(plan), {"schema_version": str(SCHEMA_VERSION), **job.footer})
    try:
        _write_parts(out, job, sealed, lost, writer, beat)
        writer.close()
        beat()
        return _install(out, job, staging, writer, beat)
    except FileDamaged:
        _verify(out, sealed, beat)  # has one of them changed since it was looked at?
        raise
    finally:
        writer.discard()
        shutil.rmtree(staging, ignore_errors=True)


def _verify(out: Path, files: Sequence[SealedFile], beat: Callable[[], None]) -> None:
    found = damaged(out, files, beat)
    if found:
        raise FilesDamaged(found)


def _write_parts(
    out: Path,
    job: PublishJob,
    sealed: Sequence[SealedFile],
    lost: Sequence[LostRows],
    writer: OutputWriter,
    beat: Callable[[], None],
) -> None:
    plan, base = out / job.plan, job.base
    schema = pa.schema([decode(column) for column in result_schema(passed_schema(plan))])
    with ExternalSorter(schema, KEY, out / layout.work_of(job.plan), memory_bytes=job.memory_bytes) as sorter:
        for file in sealed:
            for batch in read_sealed(inside(out, file.key)):
                sorter.add(complete(batch, schema))
            beat()
        for batch in lost_batches(plan, lost, schema, job.num_samples):  # behind the files: the first of a key stays
            sorter.add(batch)
        rows = drop_repeats(sorter.sorted(), KEY)
        if base is None:
            rows = check_complete(rows, sum(shard_rows(plan)))
            _write_rows(writer, rows, job, job.part_bytes, beat)
            return
        rows = merge_sorted([rows, base.rows(schema, without=plan_indices(plan))], KEY)
        for piece in split_at(check_complete(rows, base.num_rows), KEY, base.starts()):
            _write_rows(writer, piece, job, None, beat)


def _write_rows(
    writer: OutputWriter,
    rows: Iterable[pa.RecordBatch],
    job: PublishJob,
    part_bytes: int | None,
    beat: Callable[[], None],
) -> None:
    """As parts of so many bytes, or as one."""
    size = 0
    for table, table_bytes in cut_row_groups(rows, job.row_group_bytes):
        writer.write(table)
        size += table_bytes
        if part_bytes is not None and size >= part_bytes:
            writer.close_part()
            pa.default_memory_pool().release_unused()
            size = 0
        beat()
    writer.close_part()


def check_complete(batches: Iterable[pa.RecordBatch], num_rows: int) -> Iterator[pa.RecordBatch]:
    """The same batches, sorted by row_index; raises FileDamaged unless they hold every row of [0, num_rows)."""
    last = -1
    for batch in batches:
        index = batch["row_index"].to_numpy()
        gaps = np.flatnonzero(np.diff(index, prepend=last) > 1)
        if gaps.size:
            missing = (last if gaps[0] == 0 else int(index[gaps[0] - 1])) + 1
            raise FileDamaged(f"row {missing} has neither a result nor an error; its shard must run again")
        last = int(index[-1])
        yield batch
    if last != num_rows - 1:
        raise FileDamaged(f"the results end with row {last} where the plan ends with row {num_rows - 1}")


def _install(out: Path, job: PublishJob, staging: Path, writer: OutputWriter, beat: Callable[[], None]) -> Published:
    """Move the parts into place and make them count."""
    parts: dict[str, list[Part]] = {
        "data": writer.data.parts,
        "metrics": writer.metrics.parts,
        "errors": writer.errors.parts,
    }
    failpoints.reach("publish.before_parts")
    refuse_if_newer(out, job.generation, job.reopenings)
    if job.base is not None:
        job.base.put_aside([part for kind in parts.values() for part in kind])
    for kind, folder in (("data", layout.DATA), ("metrics", layout.METRICS), ("errors", layout.ERRORS)):
        _install_folder(out, staging, folder, [part.path for part in parts[kind]])
    failpoints.reach("publish.after_parts")
    write_atomic(out / layout.README, readme_bytes(job.name, writer.counts))
    write_atomic(out / layout.JOB_JSON, _json_bytes(job.job_json))
    write_atomic(out / layout.STATS_JSON, _json_bytes(job.stats_json))
    content = manifest_bytes(
        job=job.name,
        generation=job.generation,
        reopenings=job.reopenings,
        plan_sha256=job.plan_sha256,
        counts=writer.counts,
        errors=[
            ErrorCount(code=code, rows=rows, example=writer.error_examples[code])
            for code, rows in writer.error_codes.most_common()
        ],
        parts=parts,
    )
    failpoints.reach("publish.before_manifest")
    beat()
    write_manifest(out, job.generation, content, job.reopenings)
    failpoints.reach("publish.after_manifest")
    return _as_published(json.loads(content), sha256_bytes(content))


def _install_folder(out: Path, staging: Path, folder: str, keys: Sequence[str]) -> None:
    """Make `folder` hold exactly these parts: what a crashed attempt left there goes."""
    target = inside(out, folder)
    if not keys and not target.exists() and folder != layout.DATA:
        return
    make_folder(target)
    for stray in target.iterdir():
        if f"{folder}/{stray.name}" not in keys:
            stray.unlink()
    for key in keys:
        move(staging / key, inside(out, key))
    sync_folder(target)


def _as_published(manifest: Mapping[str, Any], sha256: str) -> Published:
    return Published(
        manifest_sha256=sha256,
        rows=manifest["rows"],
        counts=dict(manifest["counts"]),
        parts=tuple(part["path"] for part in manifest["parts"]),
        cause=next((f"{error['code']} ({error['example']})" for error in manifest.get("error_codes", ())), None),
    )


def _json_bytes(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=2, ensure_ascii=False, default=str) + "\n").encode()
