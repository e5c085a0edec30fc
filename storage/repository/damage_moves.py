"""The part of the repository that takes recorded files back which are not what was recorded."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence

from storage.database import Database
from storage.records import Damage, Job, JobId, ShardId
from storage.repository import reopening

_log = logging.getLogger(__name__)


class DamageMoves:
    """Each call is one transaction."""

    _db: Database

    def drop_segments(self, shard_id: ShardId, epoch: int, attempts: Collection[int], error: str) -> None:
        """Forget what attempts at a shard have sealed that runs, or is ready, under this epoch, with its counters: a
        file of theirs is damaged, so that their rows are owed again. `attempts` are epochs. Raises Fenced."""
        with self._db.write() as conn:
            rows = reopening.drop_segments(conn, shard_id, epoch, attempts, error)
        _log.warning("segments_dropped shard=%d epoch=%d rows=%d error=%s", shard_id, epoch, rows, error)

    def reopen_shards(self, job_id: JobId, epoch: int, damages: Sequence[Damage]) -> Job:
        """done, dead -> ready, and new parts of split shards: what damaged files held runs again, its counters are
        taken back, and the job moves from finalizing to in_progress. Of a job that is being stopped, or whose cancel
        came while it was published, nothing runs again: such rows end as those that never had their turn. The right to
        publish is given back. Raises Fenced."""
        with self._db.write() as conn:
            job = reopening.reopen(conn, job_id, epoch, damages)
        for damage in damages:
            _log.error("shard_reopened job=%d shard=%d error=%s", job_id, damage.shard_id, damage.error)
        return job
