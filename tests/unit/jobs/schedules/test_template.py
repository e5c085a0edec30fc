from __future__ import annotations

from datetime import date

import pytest

from jobs.schedules.cron import Cron
from jobs.schedules.template import check_template, fill, is_dated, seed_of

[NIGHT] = Cron.parse("30 2 * * *", "UTC").between(date(2026, 11, 7), date(2026, 11, 7))
HALVES = Cron.parse("*/30 2 * * *", "UTC").between(date(2026, 11, 7), date(2026, 11, 7))


@pytest.mark.parametrize(
    ("template", "path"),
    [
        ("prompts/{ds}/*.parquet", "prompts/2026-11-07/*.parquet"),
        ("{year}/{month}/{day}.parquet", "2026/11/07.parquet"),
        ("in-{ds_nodash}-{hour}{minute}-{label}", "in-20261107-0230-2026-11-07"),
        ("all/*.parquet", "all/*.parquet"),
    ],
)
def test_an_input_path_is_filled_in_with_the_date(template: str, path: str) -> None:
    check_template(template)

    assert fill(template, NIGHT) == path
    assert is_dated(template) == (template != path)


def test_an_unknown_field_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(ValueError, match=r"nothing is known of \{date\}; there are \{ds\}"):
        check_template("prompts/{date}/*.parquet")


def test_every_label_has_a_seed_of_its_own_and_keeps_it() -> None:
    seeds = [seed_of("nightly", None, slot.label) for slot in HALVES]

    assert len(set(seeds)) == 2
    assert seed_of("nightly", None, HALVES[0].label) == seeds[0]
    assert seed_of("nightly", 7, "2026-11-07") == seed_of("other", 7, "2026-11-07")
    assert seed_of("nightly", 7, "2026-11-07") != seed_of("nightly", 8, "2026-11-07")
