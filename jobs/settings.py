"""Settings of the processes, resolved once from `NIGHTMILL_*` variables and frozen. Durations are in seconds.

Tests scale every duration down; nothing in the program sleeps for a literal number.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


def default_home() -> Path:
    """The user's state folder: one owner, one database and one broker below it in embedded mode."""
    return Path(platformdirs.user_state_dir("nightmill")).resolve()


class Settings(BaseSettings):
    """Where things are, and how long they may take."""

    model_config = SettingsConfigDict(env_prefix="NIGHTMILL_", frozen=True, extra="ignore")

    # --- places: real mode names both; embedded mode names neither -------------------------------------------
    broker_url: SecretStr | None = None
    database_url: SecretStr | None = None
    home: Path = default_home()
    redis_prefix: str = "nightmill:"

    # --- protocol ---------------------------------------------------------------------------------------------
    lease_seconds: float = 60.0
    heartbeat_seconds: float = 10.0
    reconcile_seconds: float = 15.0
    hint_stale_seconds: float = 120.0
    segment_seconds: float = 5.0
    segment_rows: int = 256
    max_shard_attempts: int = 5  # failures of a shard, not counting those in which its worker died
    max_shard_reopenings: int = 3  # times that a shard's recorded files may be found damaged before it is published
    max_job_crashes: int = 50  # workers that may die of a job before it is ended as failed
    input_wait_seconds: float = 3600.0  # for which an abandoned job waits whose input or model this process cannot see

    # --- worker -----------------------------------------------------------------------------------------------
    worker_slots: int = 16
    worker_stale_seconds: float = 30.0  # a worker silent for longer is not live
    idle_exit_seconds: float = 10.0
    restart_backoff_seconds: float = 1.0
    engine_stall_seconds: float = 300.0  # rows in the engine and no step for longer: the worker exits
    loop_stall_seconds: float = 300.0  # the broker answers and the event loop has not moved for longer: the same
    max_consecutive_restarts: int = 5
    stop_seconds: float = 4.5  # then a worker leaves by force: within 5 s of its SIGTERM, whatever keeps it
    full_disk_seconds: float = 30.0  # until a shard is tried again whose disk was full
    disk_reserve_bytes: int = 256 << 20  # with less than this free where a job writes, none of its shards is claimed
    watch_seconds: float = 0.5  # between two looks at a job that is waited for
    engine_factory: str = "jobs.engines:real_engine"  # dotted path; tests name a fake one

    # --- schedules --------------------------------------------------------------------------------------------
    schedule_tick_seconds: float = 30.0  # between two looks at what is due, by the reconciler and by beat
    schedule_grace_seconds: float = 300.0  # a slot that nobody looked at for longer is late: catch-up decides
    schedule_slots: int = 1000  # of those that came due since the last look, only the newest are recorded
    notice_tries: int = 30  # until a webhook that takes nothing is given up: with the pauses below after about a day
    notice_pause_seconds: float = 30.0  # before the second try; then twice as long each time, at most an hour

    # --- data sets --------------------------------------------------------------------------------------------
    dataset_checks: str = ""  # functions that a data set may name as a gate: package.module:function, with commas
    dataset_check_seconds: float = 600.0  # for which one of them may run; then it is stopped, and has not passed
    webhook_timeout_seconds: float = 10.0
    webhook_tries: int = 4
    webhook_pause_seconds: float = 1.0  # before the second try; then twice as long each time

    # --- tests ------------------------------------------------------------------------------------------------
    failpoints: str = ""  # where to die, see storage.failpoints

    # --- engine (see engine.config.EngineConfig) --------------------------------------------------------------
    device: str = "cpu"
    dtype: Literal["float32", "bfloat16", "float16", "auto", "int8"] = "float32"
    block_size: int = 16
    max_batch_tokens: int = 4096
    max_sequences: int = 256
    cache_bytes: int | None = None
    max_model_len: int | None = None  # tokens of prompt and output together, below the model's own limit
    request_timeout_seconds: float | None = None  # for which one row may run in the engine; None: for ever
    threads: int | None = None
    block_sharing: bool = True
    prefix_sharing: bool = True
    strict: bool = False

    @field_validator("home")
    @classmethod
    def _absolute(cls, home: Path) -> Path:
        """Here and nowhere else, so that all processes mean the same directory, whatever folder they run in."""
        try:
            return home.expanduser().resolve()
        except RuntimeError as error:
            raise ValueError(f"{home} names a home directory that is not known") from error

    @property
    def contradiction(self) -> str | None:
        """What of these settings no process could honour together with the others."""
        none = [name for name in ("worker_slots", "segment_rows", "max_sequences") if getattr(self, name) < 1]
        if none:
            return f"NIGHTMILL_{none[0].upper()} must be 1 or more: with less nothing would ever run"
        if self.lease_seconds < 2 * self.heartbeat_seconds:
            return (
                f"NIGHTMILL_LEASE_SECONDS is {self.lease_seconds:g} and NIGHTMILL_HEARTBEAT_SECONDS is"
                f" {self.heartbeat_seconds:g}: a lease must last for two heartbeats, or live workers lose their shards"
            )
        return None

    @property
    def batch_target(self) -> int:
        """Sequences in flight below which a worker takes another shard."""
        return 2 * self.max_sequences

    @property
    def allowed_checks(self) -> frozenset[str]:
        """`dataset_checks`, one by one."""
        return frozenset(filter(None, (check.strip() for check in self.dataset_checks.split(","))))

    @property
    def embedded(self) -> bool:
        """No broker and no database named: this machine runs everything below `home`."""
        return self.broker_url is None and self.database_url is None
