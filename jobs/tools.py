"""What all attempts of one worker share."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from jobs.disk import DiskWatch
from jobs.engines import ServingEngine
from jobs.gate import Gate
from jobs.leases import LeaseKeeper
from jobs.prompts import PromptEncoder
from jobs.settings import Settings
from storage.repository import Repository


@dataclass(frozen=True, slots=True, kw_only=True)
class Tools:
    """`stopping` is set when the worker must leave."""

    repository: Repository
    engine: ServingEngine
    encoder: PromptEncoder
    leases: LeaseKeeper
    gate: Gate
    settings: Settings
    stopping: threading.Event
    disk: DiskWatch = field(default_factory=lambda: DiskWatch(0))
