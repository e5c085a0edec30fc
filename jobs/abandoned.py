"""Jobs whose planner has died, and those of schedules, are planned by the reconciler beside its other work."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from jobs.background import OneAtATime
from jobs.settings import Settings
from storage.errors import DatabaseDown, Fenced, InputInvalid, StorageError
from storage.records import Job, JobId
from storage.repository import Repository

if TYPE_CHECKING:
    from jobs.submission import Submission

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Unseen:
    """A job whose input cannot be seen from here: since when, and when to look again, on the monotonic clock."""

    since: float
    again_at: float


class AbandonedJobs:
    """Plans one at a time, in a thread of its own: leases and hints must not wait for a large input."""

    def __init__(
        self,
        settings: Settings,
        repository: Repository,
        owner: str,
        done: Callable[[], None] = lambda: None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`done` is called, in any thread, when a job has been planned or has failed."""
        self._settings = settings
        self._repository = repository
        self._owner = owner
        self._done = done
        self._monotonic = monotonic
        self._unseen: dict[JobId, Unseen] = {}
        self._stopping = threading.Event()
        self._work = OneAtATime("planner")

    def look(self) -> None:
        """Begin with the next one, if there is one and nothing else is being planned. Raises DatabaseDown."""
        if self._work.busy:
            return
        for job in self._repository.unplanned_jobs(self._settings.lease_seconds):
            if not job.options:
                continue  # an older version submitted it: only the same submit knows how to plan it
            if job.id in self._unseen and self._monotonic() < self._unseen[job.id].again_at:
                continue
            epoch = self._repository.claim_job(job.id, self._owner, self._settings.lease_seconds)
            if epoch is not None:
                self._work.start(partial(self._plan, job, epoch))
                return

    def stop(self) -> None:
        """Leave what is being planned to the next process. What does not hear of it in time, as a look at a large
        input, ends with this process, and its lease runs out."""
        self._stopping.set()
        self._work.wait(self._settings.stop_seconds)

    def wait(self) -> None:
        self._work.wait()

    def _plan(self, job: Job, epoch: int) -> None:
        from jobs.freezing import PlanningLeft, freeze_plan  # the tokenizer and all: seldom needed here
        from jobs.models import ModelUnknown

        def leave_when_told(stage: str, done: int, total: int) -> None:
            if self._stopping.is_set():
                raise PlanningLeft(f"job {job.id} waits for another planner")

        log.info("planning a job that nobody plans job=%d epoch=%d", job.id, epoch)
        try:
            freeze_plan(
                job,
                epoch,
                lambda: self._submission(job),
                self._repository,
                self._settings,
                leave_when_told,
            )
        except (PlanningLeft, Fenced, DatabaseDown) as error:
            log.info("planning left job=%d reason=%s", job.id, error)
        except (StorageError, ModelUnknown, OSError) as error:
            log.warning("planning failed job=%d error=%s", job.id, error)  # the job has failed with this reason
        except Exception:  # a mistake of ours in one job: the reconciler goes on for all others
            log.exception("planning failed job=%d", job.id)
        finally:
            self._done()

    def _submission(self, job: Job) -> Submission:
        """Raises InputUnseen for a while when the input or the model is not to be seen from here: another process may
        see it, or whoever mounts it; then what `submission_of` raises."""
        from jobs.freezing import InputUnseen
        from jobs.models import ModelUnknown
        from jobs.submission import submission_of

        try:
            return submission_of(job, self._settings)
        except (InputInvalid, ModelUnknown) as error:
            if isinstance(error, InputInvalid) and error.code != "missing_file":
                raise
            now, seconds = self._monotonic(), self._settings.input_wait_seconds
            since = self._unseen[job.id].since if job.id in self._unseen else now
            if now - since >= seconds:
                raise
            self._unseen[job.id] = Unseen(since, now + self._settings.lease_seconds)
            raise InputUnseen(
                f"{self._owner} cannot see what the job needs: {error}. It waits until a process can, for {seconds:g} s"
                " at most"
            ) from error
