"""The tasks: a hint to try to claim a shard, and one to look at the schedules. And how such hints are sent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from kombu.exceptions import OperationalError

from jobs.dispatch import BrokerDown
from storage.records import Hint, JobId, ShardId

if TYPE_CHECKING:
    from jobs.app import NightmillApp

RUN_SHARD = "nightmill.run_shard"
TICK = "nightmill.tick"


def run_shard(self: Any, job_id: int, shard_id: int, alone: bool = False) -> str:
    """Try to claim the shard and run it to its end: one message is one attempt. `alone`: with nothing beside it.

    Returns one line for Flower; a failed attempt raises ShardFailed, so that Flower shows a failure.
    """
    runtime = self.app.runtime
    assert runtime is not None, "a shard was sent to a process that is no worker"
    return str(runtime.run_shard(ShardId(int(shard_id)), job_id=JobId(int(job_id)), alone=bool(alone)))


def publish_tick(app: NightmillApp) -> None:
    """Ask whoever serves the control queue to look at the schedules now. Losing or doubling it is harmless. Raises
    BrokerDown."""
    try:
        app.send_task(TICK)  # to the default queue, which is the one of control
    except (OperationalError, OSError) as error:
        raise BrokerDown(f"the schedules could not be looked at now: {error}; it is done later") from error


def publish_hint(app: NightmillApp, hint: Hint) -> None:
    """Send one hint. Losing or doubling it is harmless. Raises BrokerDown."""
    shown = {"job_id": hint.job_id, "shard": hint.shard_id, "model": hint.model_source}
    try:
        app.tasks[RUN_SHARD].apply_async(
            kwargs={"job_id": hint.job_id, "shard_id": hint.shard_id, "alone": hint.alone},
            task_id=f"{hint.shard_id}.{hint.dispatch_seq}",
            queue=app.queues(hint.model_key)[hint.alone],
            kwargsrepr=repr(shown),
        )
    except (OperationalError, OSError) as error:
        raise BrokerDown(
            f"the hint for shard {hint.shard_id} of job {hint.job_id} could not be sent: {error}"
        ) from error


def queue_length(app: NightmillApp, model_key: str) -> int | None:
    """Hints waiting in a model's queues; None when the broker cannot be asked."""
    try:
        with app.connection_for_write() as connection:
            channel = connection.default_channel
            # Not passively: Redis keeps no empty queue, so that one would be told apart from none that is lost.
            return sum(int(channel.queue_declare(queue=name).message_count) for name in app.queues(model_key))
    except Exception:  # noqa: BLE001 - kombu's channel errors have no common base; the answer is "unknown" for all
        return None
