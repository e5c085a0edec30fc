"""One run of `submit`: plan and register the job, then wait for its end where that was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jobs.exits import Exit
from jobs.options import SubmitOptions


@dataclass(frozen=True, slots=True)
class Run:
    """What the command line asks for. `engine` has the engine options that were given, as fields of Settings."""

    options: SubmitOptions
    engine: Mapping[str, Any]
    dry_run: bool
    wait: bool
    wait_timeout: float | None


def submit_and_wait(run: Run) -> Exit:
    raise NotImplementedError
