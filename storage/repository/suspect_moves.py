"""The part of the repository that deals with shards whose worker died while they ran alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from storage.database import Database
from storage.records import Piece, Shard, ShardId
from storage.repository import splitting

_log = logging.getLogger(__name__)


class SuspectMoves:
    """Each call is one transaction."""

    _db: Database

    def crashed_shards(self) -> list[Shard]:
        """Shards whose worker died while it ran nothing else. They do not run again: `split_shard` or `give_up_shard`
        must follow."""
        with self._db.read() as conn:
            return splitting.crashed(conn)

    def split_shard(self, shard_id: ShardId, epoch: int, pieces: Sequence[Piece]) -> bool:
        """ready -> split, with a suspected shard for each piece. Together they have the rows that are not sealed; what
        is sealed stays with this shard and is published from there. False if it has moved since."""
        with self._db.write() as conn:
            moved = splitting.split(conn, shard_id, epoch, pieces)
        if moved:
            _log.warning("shard_split shard=%d epoch=%d pieces=%d", shard_id, epoch, len(pieces))
        return moved

    def give_up_shard(self, shard_id: ShardId, epoch: int) -> bool:
        """ready -> dead: its only row ends as an error, engine_killer. False if the shard has moved since."""
        with self._db.write() as conn:
            moved = splitting.give_up(conn, shard_id, epoch)
        if moved:
            _log.error("shard_given_up shard=%d epoch=%d", shard_id, epoch)
        return moved
