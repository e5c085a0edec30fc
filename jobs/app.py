"""The Celery application: the settings that make a message a hint and nothing more.

Imported by worker, reconciler, command line and Flower alike, so it must never import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from celery import Celery

from jobs import tasks

if TYPE_CHECKING:
    from jobs.runtime import Runtime

POOL = "jobs.pool:ShardPool"
CONTROL_QUEUE = "control"


class NightmillApp(Celery):  # type: ignore[misc]
    """Celery plus the one thing that tasks need: what this process owns. `runtime` is None outside a worker."""

    runtime: Runtime | None = None

    @staticmethod
    def queues(model_key: str) -> tuple[str, str]:
        """The queues of one model in the order in which a worker empties them."""
        return queue_name(model_key), quarantine_name(model_key)


def make_app(broker_url: str, *, prefix: str = "nightmill:", slots: int = 16) -> NightmillApp:
    """An application on this broker; `redis://`, `rediss://` or `redis+socket://`. Opens no connection."""
    app = NightmillApp("nightmill", broker=broker_url, set_as_current=False)
    app.conf.update(_settings(prefix, slots))
    app.task(tasks.run_shard, name=tasks.RUN_SHARD, bind=True)
    app.finalize()
    return app


def queue_name(model_key: str) -> str:
    """The queue of one model; a worker consumes only its own."""
    return f"m.{model_key}"


def quarantine_name(model_key: str) -> str:
    """The queue of the model's shards that must run alone, because workers died of them."""
    return f"{queue_name(model_key)}.quarantine"


def _settings(prefix: str, slots: int) -> dict[str, Any]:
    return {
        # SQL is the truth: no results, no chords, no pickle.
        "result_backend": None,
        "task_ignore_result": True,
        "task_serializer": "json",
        "accept_content": ["json"],
        "event_serializer": "json",
        # Hints are acknowledged early: with late acks a connection reset starts running shards a second time.
        "task_acks_late": False,
        "task_acks_on_failure": True,
        "task_reject_on_worker_lost": False,
        "task_default_queue": CONTROL_QUEUE,
        "task_create_missing_queues": True,
        "task_time_limit": None,
        "task_soft_time_limit": None,
        "task_send_sent_event": True,
        "task_track_started": False,
        "task_publish_retry": True,
        "task_publish_retry_policy": {"max_retries": 2, "interval_start": 0.2, "interval_step": 0.5, "interval_max": 1},
        # A hint is popped only when the engine wants more rows.
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_pool": POOL,
        "worker_concurrency": slots,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_soft_shutdown_timeout": 0,
        "worker_send_task_events": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_state_db": None,
        "worker_disable_rate_limits": True,
        "worker_enable_remote_control": True,
        # The broker may go away and come back at any time; error replies are as recoverable as lost connections.
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_channel_error_retry": True,
        "broker_connection_timeout": 4,
        "broker_pool_acquire_timeout": 10,
        "broker_pool_limit": 10,
        "broker_transport_options": {
            "visibility_timeout": 600,
            "unacked_restore_interval": 10,
            "unacked_restore_throttle": 6,
            "queue_order_strategy": "priority",
            "socket_timeout": 15,
            "socket_connect_timeout": 5,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "client_name": "nightmill-worker",
            "global_keyprefix": prefix,
        },
        "timezone": "UTC",
        "enable_utc": True,
        "beat_max_loop_interval": 30,
        "beat_cron_starting_deadline": None,
        "beat_enable_remote_control": True,
    }
