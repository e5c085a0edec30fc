"""The finished rows of one attempt on their way to disk and SQL: file first, row second."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from engine.cache.groups import LayerGroup
from jobs.engines import BlockUse
from jobs.rows import merge, sum_rows, with_use
from storage import failpoints
from storage.errors import DatabaseDown, StorageError
from storage.parquet.rows import ResultRow
from storage.parquet.writer import SegmentWriter
from storage.records import RunStats, Segment, ShardId
from storage.repository import Repository

log = logging.getLogger(__name__)


class Recorder:
    """Owns an attempt's segments. While SQL is down sealed files wait here: nobody can take the shard meanwhile."""

    def __init__(
        self,
        repository: Repository,
        writer: SegmentWriter,
        shard_id: ShardId,
        epoch: int,
        *,
        out: Path,
        groups: Sequence[LayerGroup],
        seconds: float,
        rows: int,
        use: Callable[[], Sequence[BlockUse]] = tuple,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`seconds`, `rows`: a segment is due when it is this old or this large. `use`: the job's blocks so far."""
        self._repository = repository
        self._writer = writer
        self._shard_id = shard_id
        self._epoch = epoch
        self._out = out
        self._groups = groups
        self._seconds = seconds
        self._rows = rows
        self._use = use
        self._monotonic = monotonic
        self._sealed_at = monotonic()
        self._seq = 0
        self._open: list[ResultRow] = []
        self._unrecorded: deque[tuple[Segment, RunStats]] = deque()
        self.keys: list[str] = []  # recorded segments of this attempt, in order
        self.total = RunStats()  # of the recorded rows

    def append(self, rows: Sequence[ResultRow]) -> None:
        if rows and not self._open:
            self._sealed_at = self._monotonic()
        self._open.extend(rows)
        self._writer.append(rows)

    @property
    def due(self) -> bool:
        """Rows have waited long enough, or a segment waits for SQL to come back."""
        waited = self._monotonic() - self._sealed_at
        return len(self._open) >= self._rows or (bool(self._open or self._unrecorded) and waited >= self._seconds)

    @property
    def settled(self) -> bool:
        """Every row given here is durable and recorded."""
        return not self._open and not self._unrecorded

    def seal(self) -> None:
        """Make the open rows durable and record what SQL will take. Raises Fenced; an unreachable SQL is no error."""
        self._sealed_at = self._monotonic()
        file = self._writer.seal()
        if file is not None:
            segment = Segment(
                seq=self._seq,
                key=file.key,
                sha256=file.sha256,
                rows=file.rows,
                epoch=self._epoch,
                succeeded=file.succeeded,
                errored=file.errored,
                expired=file.expired,
                canceled=file.canceled,
            )
            self._unrecorded.append((segment, with_use(sum_rows(self._open, self._groups), self._use())))
            self._seq += 1
            self._open = []
        self._record()

    def remove_unrecorded(self) -> None:
        """Delete the files that SQL knows nothing of: another attempt owns the shard. What was recorded with an answer
        that was lost is the shard's, and while SQL cannot say, all stay: they are swept with the job."""
        try:
            recorded = {segment.key for segment in self._repository.segments(self._shard_id)}
        except StorageError as error:
            log.warning("segments of shard %d are left behind: %s", self._shard_id, error)
            return
        for segment, _ in self._unrecorded:
            if segment.key not in recorded:
                (self._out / segment.key).unlink(missing_ok=True)

    def _record(self) -> None:
        while self._unrecorded:
            segment, stats = self._unrecorded[0]
            failpoints.reach("segment.before_row")
            try:
                self._repository.seal_segment(self._shard_id, segment, stats)
            except DatabaseDown as error:
                log.warning("segment waits shard=%d key=%s error=%s", self._shard_id, segment.key, error)
                return
            failpoints.reach("segment.after_row")
            self._unrecorded.popleft()
            self.keys.append(segment.key)
            self.total = merge(self.total, stats)
            log.info("segment_sealed shard=%d epoch=%d rows=%d", self._shard_id, self._epoch, segment.rows)
