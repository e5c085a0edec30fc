"""Recorded files that turn out to be damaged: which rows must run again, for a running attempt and for a finaliser."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from itertools import groupby
from pathlib import Path

import numpy as np

from jobs.planrows import Counts, open_outputs
from jobs.sampling import Sampling
from storage.errors import FileDamaged
from storage.parquet.damage import damaged
from storage.parquet.plan import read_rows
from storage.parquet.rows import SealedFile
from storage.parquet.writer import segment_keys
from storage.records import Damage, Job, Piece, Segment, Shard
from storage.repository import Repository
from storage.states import JOB_STOPPING, ShardState


def find_damages(repository: Repository, job: Job, files: Mapping[str, str], limit: int) -> list[Damage]:
    """What is to be said of the shards of a job that is published, of which these files are damaged.

    Lost rows of a split shard are those that nobody else holds, so all others come first. Raises FileDamaged when a
    shard was reopened as often as `limit` before, or when nobody can tell which rows were lost.
    """
    shards = [shard for shard in repository.shards(job.id) if shard.generation == job.generation]
    segments = {shard.id: repository.segments(shard.id) for shard in shards}
    hit = {
        shard.id: files[key]
        for shard in shards
        for key in (shard.out_key or "", *(each.key for each in segments[shard.id]))
        if key in files
    }
    chosen = [shard for shard in shards if shard.id in hit and shard.state is not ShardState.SPLIT]
    found = []
    for shard in chosen or [shard for shard in shards if shard.id in hit]:
        if shard.reopenings >= limit:
            raise FileDamaged(
                f"{hit[shard.id]}; files of shard {shard.idx} were found damaged {limit} times before:"
                " look at the disk, then submit the job again"
            )
        lost = lost_attempts(Path(job.output_uri), segments[shard.id])
        pieces = _pieces(repository, job, shard, lost.keys()) if shard.state is ShardState.SPLIT else []
        found.append(
            Damage(
                shard_id=shard.id,
                epoch=shard.epoch,
                error=hit[shard.id],
                attempts=tuple(sorted(lost)),
                pieces=tuple(pieces),
            )
        )
    return found


def lost_attempts(out: Path, segments: Sequence[Segment]) -> dict[int, str]:
    """The epochs of which a segment is damaged, with what is wrong with it."""
    files = [SealedFile(key=each.key, sha256=each.sha256, rows=each.rows) for each in segments]
    wrong = damaged(out, files)
    return {each.epoch: wrong[each.key] for each in segments if each.key in wrong}


def _pieces(repository: Repository, job: Job, shard: Shard, lost: Set[int]) -> list[Piece]:
    """Rows of a split shard that neither its intact segments nor its parts hold. Raises FileDamaged."""
    own = repository.segments(shard.id)
    num_lost = sum(each.rows for each in own if each.epoch in lost)
    if job.state in JOB_STOPPING or job.cancel_requested:  # nothing runs again, so it need not be known
        return [Piece(row_lo=shard.row_lo, row_hi=shard.row_hi, num_outputs=num_lost)]
    assert job.plan is not None, f"job {job.id} has shards and no plan"
    out = Path(job.output_uri)
    table = read_rows(out / job.plan.path, shard.row_group, shard.row_lo, shard.row_hi)
    defaults = Sampling.from_spec(job.spec["sampling"])
    kept = [*repository.parent_segments(shard.id), *(each for each in own if each.epoch not in lost)]
    keys = segment_keys(out, [each.key for each in kept])
    would_run = open_outputs(table, defaults, keys)
    parts = list(_parts(repository.shards(job.id), shard))
    keys |= segment_keys(out, [each.key for part in parts for each in repository.segments(part.id)])
    missing = open_outputs(table, defaults, keys)
    for part in parts:
        if part.state is ShardState.DEAD:
            missing[part.row_lo - shard.row_lo : part.row_hi - shard.row_lo] = 0
    runs = np.where(missing > 0, would_run, 0)
    if missing.sum() != num_lost or runs.sum() != num_lost:
        raise FileDamaged(f"shard {shard.idx} was split, and nobody can tell which of its rows were lost with a file")
    return list(_runs(missing, shard.row_lo))


def _parts(shards: Sequence[Shard], parent: Shard) -> Iterator[Shard]:
    """Parts of it, their parts, and so on."""
    for shard in shards:
        if shard.parent_id == parent.id:
            yield shard
            yield from _parts(shards, shard)


def _runs(missing: Counts, row_lo: int) -> Iterator[Piece]:
    """A piece for each run of rows of which something is missing [rows]."""
    for is_missing, rows in groupby(range(len(missing)), key=lambda row: bool(missing[row])):
        if is_missing:
            first, *others = rows
            stop = first + 1 + len(others)
            yield Piece(row_lo=row_lo + first, row_hi=row_lo + stop, num_outputs=int(missing[first:stop].sum()))
