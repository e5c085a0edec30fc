"""What Flower's pages show of a task."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.monitor.tasks import format_task


@dataclass
class SeenTask:
    """A task as Flower remembers it."""

    uuid: str = "3.1"
    name: str | None = "nightmill.run_shard"
    args: str | None = "()"
    kwargs: str | None = "{'job_id': 7, 'shard': 3, 'model': 'org/model'}"
    result: str | None = None


def test_job_shard_and_model_are_shown_in_words() -> None:
    task = format_task(SeenTask())

    assert (task.name, task.kwargs) == ("run_shard", "job 7 · shard 3 · org/model")


def test_a_result_line_is_shown_without_its_quotes() -> None:
    assert format_task(SeenTask(result="'rows=2 cached=81%'")).result == "rows=2 cached=81%"


def test_a_task_from_before_flower_started_still_names_its_shard() -> None:
    task = format_task(SeenTask(name=None, kwargs=None, args=None))

    assert (task.name, task.kwargs) == ("run_shard", "shard id 3")


def test_a_cut_or_foreign_text_stays_as_it_is() -> None:
    cut = "{'job_id': 7, 'model': 'org/..."

    assert format_task(SeenTask(kwargs=cut, result="<obj")).kwargs == cut
    assert format_task(SeenTask(kwargs="{'x': 1}")).kwargs == "{'x': 1}"
