"""A real Celery worker with a runtime that ends shards as their number says: run as a child of test_flower.py."""

from __future__ import annotations

import sys
from dataclasses import dataclass

from jobs.app import make_app, queue_name
from storage.records import ShardId

FAILING_SHARD = 13


@dataclass(frozen=True)
class ScriptedRuntime:
    """Ends each shard at once."""

    def run_shard(self, shard_id: ShardId, **_: object) -> str:
        if shard_id == FAILING_SHARD:
            raise RuntimeError(f"shard {shard_id}: the engine is dead")
        return "rows=256 cached=81% tok/s=412"


if __name__ == "__main__":
    broker_url, model_key = sys.argv[1:]
    app = make_app(broker_url, slots=1)
    app.runtime = ScriptedRuntime()  # type: ignore[assignment]
    app.worker_main(
        [
            "worker",
            "--without-gossip",
            "--without-mingle",
            "-E",
            "-P",
            "solo",
            "-Q",
            queue_name(model_key),
            "-n",
            "gpu0@test",
        ]
    )
