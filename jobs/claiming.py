"""Before an attempt: is there room for its results, and is the shard ours?"""

from __future__ import annotations

import uuid
from pathlib import Path

from jobs.disk import NO_ROOM
from jobs.patience import until_answered
from jobs.tools import Tools
from storage.errors import DatabaseDown, StorageError
from storage.records import Claim, JobId, ShardId


def try_claim(tools: Tools, shard_id: ShardId, alone: bool) -> Claim | None:
    """The claim, or None if there is nothing to do. While SQL is down this waits, and the gate lets no other in."""
    claim_id = uuid.uuid4().hex

    def claim() -> Claim | None:
        return tools.repository.claim_shard(
            shard_id, tools.leases.owner, tools.settings.lease_seconds, alone=alone, claim_id=claim_id
        )

    if tools.stopping.is_set():
        return None
    try:
        return until_answered(claim, tools.stopping)
    except DatabaseDown:
        return None  # stopping; the reconciler sends the hint again


def has_room(tools: Tools, job_id: JobId) -> bool:
    """For results and for their record. Without it no shard is claimed until there is some; the hint is dropped and
    comes again."""
    try:
        out = Path(tools.repository.get_job(job_id).output_uri)
    except StorageError:
        return True  # the claim will tell
    record = tools.repository.file
    if tools.disk.has_room(out) and (record is None or tools.disk.has_room(record.parent)):
        return True
    tools.gate.close(NO_ROOM)  # the watchdog opens it again
    return False
