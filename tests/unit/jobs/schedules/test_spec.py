from __future__ import annotations

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from jobs.schedules.cron import Cron
from jobs.schedules.spec import day_of, differences, is_dated_input, options_of, parse_schedule

BASE = Path("/team")
TABLE: dict[str, Any] = {
    "cron": "30 2 * * *",
    "zone": "Europe/Berlin",
    "input": "prompts/{ds}/*.parquet",
    "dataset": "nightly",
    "model": "org/model",
    "job": {"max_tokens": 64, "system_prompt": "Be brief.", "seed": 3, "stop": ["END"]},
    "terms": {"min_success_rate": 0.9},
}
[NIGHT] = Cron.parse("30 2 * * *", "UTC").between(date(2026, 11, 27), date(2026, 11, 27))


def test_a_table_becomes_a_schedule_with_paths_that_mean_the_same_everywhere() -> None:
    new = parse_schedule("nightly", TABLE | {"deadline": "6h", "input_wait": "90m"}, BASE)

    assert (new.name, new.cron, new.zone, new.dataset) == ("nightly", "30 2 * * *", "Europe/Berlin", "/team/nightly")
    assert new.job["inputs"] == ["/team/prompts/{ds}/*.parquet"]
    assert (new.deadline_seconds, new.input_wait_seconds) == (6 * 3600, 90 * 60)
    assert (new.catch_up, new.overlap, new.max_active, new.only_new) == ("latest", "queue", 1, False)
    assert new.terms["min_success_rate"] == 0.9
    assert is_dated_input(new)


def test_a_model_that_is_a_folder_is_found_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()

    assert parse_schedule("n", TABLE | {"model": "model"}, tmp_path).job["model"] == str(tmp_path / "model")
    assert parse_schedule("n", TABLE, tmp_path).job["model"] == "org/model"


def test_a_slot_gives_the_options_of_its_job() -> None:
    options = options_of(parse_schedule("nightly", TABLE | {"deadline": "6h"}, BASE), NIGHT, "a1b2")

    assert options.inputs == ("/team/prompts/2026-11-27/*.parquet",)
    assert options.output == Path("/team/nightly/_runs/2026-11-27/a1b2")
    assert (options.system_prompt, options.sampling.params.max_tokens, options.sampling.stop) == (
        "Be brief.",
        64,
        ("END",),
    )
    assert options.name == "nightly 2026-11-27"
    assert options.tags == {"schedule": "nightly", "label": "2026-11-27"}
    assert options.idempotency_key == "schedule nightly 2026-11-27 a1b2"
    assert options.deadline == "21600.000000s"
    other = options_of(parse_schedule("other", TABLE, BASE), NIGHT, "a1b2")
    assert options.seed == other.seed  # of the job's own seed and the date
    assert options.seed != 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cron": None}, "cron is missing"),
        ({"model": ""}, "model is missing"),
        ({"cron": "30 25 * * *"}, "Bad hour"),
        ({"zone": "Mars"}, "zone is 'Mars'"),
        ({"crom": "x"}, "there is no option 'crom' of a schedule; there are catch_up"),
        ({"input": "in/{date}"}, r"nothing is known of \{date\}"),
        ({"input": 7}, "write one path or a list of paths"),
        ({"dataset": 7}, "dataset is 7; it must be text"),
        ({"dataset": "s3://bucket/x"}, "dataset is 's3://bucket/x', and object storage is not supported yet"),
        ({"input": ["in", "gs://bucket/{ds}"]}, "input is 'gs://bucket/{ds}', and object storage is not supported yet"),
        ({"job": {"keep_columns": ["topic", "DT"]}}, "the column DT is the run's label in a data set; rename it"),
        ({"catch_up": "some"}, "catch_up is 'some'; it must be none, latest or all"),
        ({"overlap": "wait"}, "it must be skip, queue or cancel_previous"),
        ({"max_active": 0}, "max_active is 0; it must be a whole number"),
        ({"max_active": True}, "max_active is True"),
        ({"deadline": "soon"}, "deadline is 'soon'; write a duration like 90m"),
        ({"overlap": "cancel_previous", "catch_up": "all"}, "would cancel the runs that catch_up all asks for"),
        ({"overlap": "cancel_previous", "max_active": 2}, "cancel_previous needs max_active 1"),
        ({"only_new": True, "max_active": 2}, "only_new needs max_active 1"),
        ({"only_new": "yes"}, "only_new is 'yes'"),
        ({"job": {"max_tokens": -1}}, "max_tokens"),
        ({"job": {"output": "x"}}, "there is no option 'output' of a schedule's job"),
        ({"job": 7}, "7 is no table of options"),
        ({"job": {"system_prompt": "x", "raw_prompt": True}}, "--raw-prompt"),
        ({"terms": {"min_success_rate": 2}}, "min_success_rate is 2"),
    ],
)
def test_what_cannot_be_honoured_is_refused_with_the_schedules_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"schedule nightly: .*{message}"):
        parse_schedule("nightly", TABLE | changes, BASE)


def test_a_name_must_be_one_step_of_a_path() -> None:
    with pytest.raises(ValueError, match="a name holds letters"):
        parse_schedule("../x", TABLE, BASE)


def test_differences_name_what_changes_and_nothing_else() -> None:
    old = parse_schedule("nightly", TABLE, BASE)
    new = replace(parse_schedule("nightly", TABLE | {"job": {"max_tokens": 65}}, BASE), max_active=2)

    assert differences(old, old) == []
    assert differences(old, new) == [
        "- job.max_tokens: 64",
        "+ job.max_tokens: 65",
        "- job.seed: 3",
        "- job.stop: ['END']",
        "- job.system_prompt: Be brief.",
        "- max_active: 1",
        "+ max_active: 2",
    ]
    assert "+ terms.min_success_rate: 0.9" in differences(None, new)
    assert all(line.startswith("- ") for line in differences(old, None))


def test_of_a_webhooks_address_nothing_is_shown_that_may_be_a_secret() -> None:
    first, second = (
        parse_schedule("nightly", TABLE | {"terms": {"webhook_url": url, "webhook_secret_env": "SECRET"}}, BASE)
        for url in ("https://hooks.example:8443/T0/hidden?key=1#x", "https://hooks.example/hidden")
    )

    lines = [*differences(None, first), *differences(first, second), *differences(second, None)]

    assert [line for line in lines if "webhook_url" in line] == [
        "+ terms.webhook_url: https://hooks.example/...",
        "- terms.webhook_url: https://hooks.example/...",
        "+ terms.webhook_url: https://hooks.example/...",
        "- terms.webhook_url: https://hooks.example/...",
    ]
    assert not any("hidden" in line for line in lines)


def test_a_day_is_written_in_one_way() -> None:
    assert day_of("2026-11-27") == date(2026, 11, 27)
    with pytest.raises(ValueError, match="'yesterday' is no date"):
        day_of("yesterday")
