from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from jobs.submit import Submitted
from storage.errors import JobConflict
from storage.records import Job, NewJob
from storage.states import JobState
from tests.unit.jobs.desk import Desk


def test_the_same_key_is_the_same_job_wherever_its_output_is(desk: Desk) -> None:
    first = desk.submit(idempotency_key="night 1")

    again = desk.submit(idempotency_key="night 1", output=desk.folder / "elsewhere")

    assert (again.how, again.job.id, again.job.output_uri) == ("resumed", first.job.id, str(desk.out))
    assert not (desk.folder / "elsewhere").exists()
    assert desk.submit().job.id == first.job.id  # by its output


def test_two_submits_of_one_key_at_once_with_two_outputs_take_one(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    real, faster = desk.repository.create_job, list[Submitted]()

    def overtaken(new: NewJob) -> Job:
        monkeypatch.setattr(desk.repository, "create_job", real)
        faster.append(desk.submit(idempotency_key="night 1", output=desk.folder / "elsewhere"))
        return real(new)

    monkeypatch.setattr(desk.repository, "create_job", overtaken)

    late = desk.submit(idempotency_key="night 1")

    assert (faster[0].how, late.how, late.job.id) == ("new", "resumed", faster[0].job.id)
    assert not desk.out.exists()


def test_the_same_key_with_other_options_or_another_input_is_refused(desk: Desk) -> None:
    desk.submit(idempotency_key="k")

    with pytest.raises(JobConflict, match=r"--idempotency-key k belongs to job 1.*limit: None -> 2"):
        desk.submit(idempotency_key="k", limit=2)
    desk.write({"prompt": ["other"]})
    with pytest.raises(JobConflict, match=r"--idempotency-key k belongs to job 1.*another input"):
        desk.submit(idempotency_key="k", output=desk.folder / "elsewhere")


def test_a_key_does_not_take_the_output_of_another_job(desk: Desk) -> None:
    desk.submit()

    with pytest.raises(JobConflict, match="belongs to job 1, which was not submitted with --idempotency-key k"):
        desk.submit(idempotency_key="k")

    assert desk.submit(idempotency_key="k", output=desk.folder / "elsewhere").how == "new"


def test_a_key_stands_for_its_job_even_if_the_results_were_taken_away(desk: Desk) -> None:
    job = desk.submit(idempotency_key="k").job
    desk.repository.request_cancel(job.id)
    desk.repository.advance_jobs()
    epoch = desk.repository.claim_job(job.id, "test", 60)
    assert epoch is not None
    desk.repository.complete_job(job.id, epoch, "sha")
    shutil.rmtree(desk.out)

    again = desk.submit(idempotency_key="k")

    assert (again.how, again.job.id, again.job.state) == ("ended", job.id, JobState.CANCELLED)


def test_a_job_that_came_to_nothing_frees_its_key(desk: Desk) -> None:
    first = desk.submit(idempotency_key="k")
    desk.repository.fail_job(first.job.id, None, "the model cannot be served")

    again = desk.submit(idempotency_key="k")

    assert (again.how, again.job.state) == ("new", JobState.QUEUED)


@pytest.mark.parametrize(
    ("changes", "told"),
    [({"idempotency_key": " "}, "is empty"), ({"max_error_rate": 1.5}, "from 0 to 1"), ({"deadline": "x"}, "write")],
)
def test_what_cannot_be_honoured_is_refused_before_anything_is_read(
    desk: Desk, changes: dict[str, object], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        desk.submit(**changes)
    assert not Path(desk.out).exists()
