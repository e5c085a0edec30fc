"""Which rows of a shard may have killed its worker: the shard is cut until one row is left.

A suspected shard runs alone and in waves: a wave enters the engine when all rows before it are sealed. So when its
worker dies, the first rows that are not sealed say which wave was in the engine; the others are innocent of this death.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from jobs.damage import lost_attempts
from jobs.planrows import Counts, open_outputs
from jobs.sampling import Sampling
from storage.errors import DatabaseDown, Fenced
from storage.parquet.plan import read_rows
from storage.parquet.writer import segment_keys
from storage.records import Job, Piece, Shard
from storage.repository import Repository

log = logging.getLogger(__name__)

WAVES = 8  # each death leaves an eighth of the rows under suspicion, and each wave drains the engine once


def cut_waves(num_rows: int) -> list[slice]:
    """The rows of each wave, of all that are not sealed when the attempt begins."""
    size = max(1, -(-num_rows // WAVES))
    return [slice(start, min(start + size, num_rows)) for start in range(0, num_rows, size)]


def pieces(at_start: Counts, left: Counts, row_lo: int) -> list[Piece]:
    """The rows that were in the engine, then the rest of those that are not sealed; empty when all are.

    Outputs of each row that were missing when the attempt began, and that are missing now [rows].
    """
    rows = np.flatnonzero(at_start)
    guilty = next((wave for part in cut_waves(len(rows)) if left[wave := rows[part]].any()), rows[:0])
    rest = rows[rows > guilty[-1]] if len(guilty) else rows[:0]
    return [piece for part in (guilty, rest) for piece in _piece(part[left[part] > 0], left, row_lo)]


def _piece(rows: Counts, left: Counts, row_lo: int) -> Iterator[Piece]:
    if len(rows):
        lo, hi = int(rows[0]), int(rows[-1]) + 1
        yield Piece(row_lo=row_lo + lo, row_hi=row_lo + hi, num_outputs=int(left[lo:hi].sum()))


def divide_crashed(repository: Repository) -> int:
    """Split every shard whose worker died while it ran alone, or give up the one row that is left; how many moved.

    A job whose files cannot be read fails, and so does one on which our own code does: the others go on. Raises
    DatabaseDown, which says nothing of a job.
    """
    moved = 0
    for shard in repository.crashed_shards():
        job = repository.get_job(shard.job_id)
        try:
            found = _suspected(repository, job, shard)
            if len(found) == 1 and found[0].row_hi - found[0].row_lo == 1:
                moved += repository.give_up_shard(shard.id, shard.epoch)
            else:
                moved += repository.split_shard(shard.id, shard.epoch, found)
        except Fenced:
            continue  # it has moved since
        except DatabaseDown:
            raise
        except Exception as error:  # a file or a mistake of ours in one job: the others are still divided
            log.exception("shard_not_divided job=%d shard=%d", job.id, shard.id)
            why = f"shard {shard.idx}, of which workers died, cannot be divided: {error or repr(error)}"
            repository.fail_job(job.id, None, why)
    return moved


def _suspected(repository: Repository, job: Job, shard: Shard) -> Sequence[Piece]:
    assert job.plan is not None, f"job {job.id} has shards and no plan"
    out = Path(job.output_uri)
    table = read_rows(out / job.plan.path, shard.row_group, shard.row_lo, shard.row_hi)
    defaults = Sampling.from_spec(job.spec["sampling"])
    own = repository.segments(shard.id)
    lost = lost_attempts(out, own)
    if lost:
        repository.drop_segments(shard.id, shard.epoch, lost, next(iter(lost.values())))
        own = [each for each in own if each.epoch not in lost]
    before = [*repository.parent_segments(shard.id), *(each for each in own if each.epoch < shard.epoch)]
    sealed = segment_keys(out, [each.key for each in before])
    at_start = open_outputs(table, defaults, sealed)
    sealed |= segment_keys(out, [each.key for each in own if each.epoch == shard.epoch])
    return pieces(at_start, open_outputs(table, defaults, sealed), shard.row_lo)
