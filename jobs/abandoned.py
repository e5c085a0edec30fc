"""Jobs whose planner has died, and those of schedules, are planned by the reconciler beside its other work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from jobs.settings import Settings
from storage.errors import Fenced, StorageError
from storage.records import Job
from storage.repository import Repository

log = logging.getLogger(__name__)


class AbandonedJobs:
    """Plans one at a time, in a thread of its own: leases and hints must not wait for a large input."""

    def __init__(
        self, settings: Settings, repository: Repository, owner: str, done: Callable[[], None] = lambda: None
    ) -> None:
        """`done` is called, in any thread, when a job has been planned or has failed."""
        self._settings = settings
        self._repository = repository
        self._owner = owner
        self._done = done
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def look(self) -> None:
        """Begin with the next one, if there is one and nothing else is being planned. Raises DatabaseDown."""
        if self._thread is not None and self._thread.is_alive():
            return
        for job in self._repository.unplanned_jobs(self._settings.lease_seconds):
            if not job.options:
                continue  # an older version submitted it: only the same submit knows how to plan it
            epoch = self._repository.claim_job(job.id, self._owner, self._settings.lease_seconds)
            if epoch is not None:
                self._thread = threading.Thread(target=self._plan, args=(job, epoch), name="planner", daemon=True)
                self._thread.start()
                return

    def stop(self) -> None:
        """Leave what is being planned to the next process."""
        self._stopping.set()
        self.wait()

    def wait(self) -> None:
        if self._thread is not None:
            self._thread.join()

    def _plan(self, job: Job, epoch: int) -> None:
        from jobs.freezing import PlanningLeft, freeze_plan  # the tokenizer and all: seldom needed here
        from jobs.models import ModelUnknown
        from jobs.submission import submission_of

        def leave_when_told(stage: str, done: int, total: int) -> None:
            if self._stopping.is_set():
                raise PlanningLeft(f"job {job.id} waits for another planner")

        log.info("planning a job that nobody plans job=%d epoch=%d", job.id, epoch)
        try:
            freeze_plan(
                job,
                epoch,
                lambda: submission_of(job, self._settings),
                self._repository,
                self._settings,
                leave_when_told,
            )
        except (PlanningLeft, Fenced) as error:
            log.info("planning left job=%d reason=%s", job.id, error)
        except (StorageError, ModelUnknown, OSError) as error:
            log.warning("planning failed job=%d error=%s", job.id, error)  # the job has failed with this reason
        except Exception:  # a mistake of ours in one job: the reconciler goes on for all others
            log.exception("planning failed job=%d", job.id)
        finally:
            self._done()
