"""Laws of what is asked of a job after its submission, on every database."""

from __future__ import annotations

import pytest

from storage.errors import Fenced
from storage.repository import Repository
from storage.states import JobState
from tests.conformance.samples import LEASE, OVER, new_job, queued_job


def test_options_are_kept_for_whoever_plans_the_job(repository: Repository) -> None:
    options = {"inputs": ["/in/naïve.parquet"], "order": "prefix", "limit": None}

    job = repository.create_job(new_job(options=options))

    assert repository.get_job(job.id).options == options


def test_a_job_without_a_planner_is_offered_once_it_is_old_enough(repository: Repository) -> None:
    fresh = repository.create_job(new_job())
    held = repository.create_job(new_job())
    dead = repository.create_job(new_job())
    queued_job(repository)
    repository.claim_job(held.id, "alive", LEASE)
    repository.claim_job(dead.id, "killed", OVER)

    assert [job.id for job in repository.unplanned_jobs(OVER)] == [fresh.id, dead.id]
    assert repository.unplanned_jobs(LEASE) == []


def test_a_planner_that_leaves_makes_room_for_the_next_at_once(repository: Repository) -> None:
    job = repository.create_job(new_job())
    repository.claim_job(job.id, "leaving", LEASE)

    repository.release_job(job.id, 1)

    assert repository.claim_job(job.id, "next", LEASE) == 2
    with pytest.raises(Fenced, match="epoch 1 may not release it"):
        repository.release_job(job.id, 1)
    assert repository.get_job(job.id).state == JobState.VALIDATING
    repository.check_integrity()
