from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jobs.schedules.cron import Cron

MINUTE = timedelta(minutes=1)
BERLIN, NEW_YORK = "Europe/Berlin", "America/New_York"
CHANGES = {  # days around which the clocks of a zone jump
    BERLIN: (datetime(2026, 3, 29, tzinfo=UTC), datetime(2026, 10, 25, tzinfo=UTC)),
    NEW_YORK: (datetime(2026, 3, 8, tzinfo=UTC), datetime(2026, 11, 1, tzinfo=UTC)),
    "Australia/Lord_Howe": (datetime(2026, 4, 4, tzinfo=UTC), datetime(2026, 10, 3, tzinfo=UTC)),
    "UTC": (datetime(2026, 2, 28, tzinfo=UTC),),
}


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def fired(cron: str, zone: str, since: str, until: datetime) -> list[tuple[str, str]]:
    """(label, moment in UTC) of everything due after a slot."""
    due = Cron.parse(cron, zone).due(since, until, 1000)
    return [(slot.label, f"{slot.instant:%d %H:%M}") for slot in due]


# --- days on which the clock jumps ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "day", "before", "that_day", "after"),
    [
        pytest.param(BERLIN, 29, "28 01:30", "29 01:30", "30 00:30", id="berlin-spring"),
        pytest.param(NEW_YORK, 8, "07 07:30", "08 07:30", "09 06:30", id="new-york-spring"),
    ],
)
def test_a_time_that_the_clock_jumps_over_fires_once_an_hour_later(
    zone: str, day: int, before: str, that_day: str, after: str
) -> None:
    since, until = f"2026-03-{day - 2:02}T02:30:00", datetime(2026, 3, day + 1, 12, tzinfo=UTC)

    found = fired("30 2 * * *", zone, since, until)

    labels = [f"2026-03-{day + shift:02}" for shift in (-1, 0, 1)]
    assert found == list(zip(labels, (before, that_day, after), strict=True))


@pytest.mark.parametrize(
    ("cron", "zone", "day", "moments"),
    [
        pytest.param("30 2 * * *", BERLIN, 25, ["25 00:30", "26 01:30"], id="berlin"),
        pytest.param("30 1 * * *", NEW_YORK, 1, ["01 05:30", "02 06:30"], id="new-york-shows-half-past-one-twice"),
        pytest.param("30 2 * * *", NEW_YORK, 1, ["01 07:30", "02 07:30"], id="new-york-shows-half-past-two-once"),
    ],
)
def test_a_time_that_the_clock_shows_twice_fires_once_at_the_first(
    cron: str, zone: str, day: int, moments: list[str]
) -> None:
    month = 10 if zone == BERLIN else 11
    since, until = f"2026-{month}-{day:02}T00:00:00", datetime(2026, month, day + 1, 12, tzinfo=UTC)

    found = fired(cron, zone, since, until)

    assert found == [(f"2026-{month}-{day + later:02}", moment) for later, moment in enumerate(moments)]


def test_an_hour_that_is_shown_twice_fires_on_its_first_way_only_and_is_due_during_the_second() -> None:
    second_way = utc("2026-10-25T01:10")  # 02:10, for the second time

    found = fired("*/20 * * * *", BERLIN, "2026-10-25T01:40:00", second_way)

    assert found == [
        ("2026-10-25T02-00", "25 00:00"),
        ("2026-10-25T02-20", "25 00:20"),
        ("2026-10-25T02-40", "25 00:40"),
    ]


def test_every_half_hour_goes_on_evenly_where_the_clock_jumps_over_an_hour() -> None:
    found = fired("*/30 * * * *", NEW_YORK, "2026-03-08T01:00:00", utc("2026-03-08T08:00"))

    assert [label for label, _ in found] == [
        "2026-03-08T01-30",
        "2026-03-08T03-00",
        "2026-03-08T03-30",
        "2026-03-08T04-00",
    ]


def test_a_leap_day_has_its_slot_and_a_day_that_a_zone_left_out_has_none() -> None:
    leap = Cron.parse("30 2 29 2 *", BERLIN)
    samoa = Cron.parse("30 2 * * *", "Pacific/Apia")  # there was no 30 December 2011

    assert [slot.label for slot in leap.between(date(2023, 1, 1), date(2029, 1, 1))] == ["2024-02-29", "2028-02-29"]
    labels = [slot.label for slot in samoa.between(date(2011, 12, 29), date(2011, 12, 31))]
    assert labels == ["2011-12-29", "2011-12-31"]


# --- against brute force --------------------------------------------------------------------------------------------


def brute_force(minutes: set[int], hours: set[int], zone: ZoneInfo, start: datetime, days: int) -> dict[str, datetime]:
    """Label to moment, by looking at the clock every minute."""
    found: dict[datetime, datetime] = {}
    shown_before = (start - MINUTE).astimezone(zone).replace(tzinfo=None)
    skipped: list[tuple[datetime, datetime]] = []
    for step in range(days * 1440):
        moment = start + step * MINUTE
        shown = moment.astimezone(zone).replace(tzinfo=None, fold=0)
        missing = shown_before + MINUTE
        jump = shown - missing
        while missing < shown:
            skipped.append((missing, moment + (missing - (shown - jump))))
            missing += MINUTE
        found.setdefault(shown, moment)
        shown_before = max(shown, shown_before)
        if shown < shown_before:
            shown_before = shown  # the clock was put back: nothing is missing

    def named(at: datetime) -> bool:
        return at.minute in minutes and at.hour in hours

    fires = {at: moment for at, moment in found.items() if named(at)}
    taken = set(fires.values())
    fires |= {at: moment for at, moment in skipped if named(at) and moment not in taken}
    return {at.isoformat(): moment for at, moment in fires.items()}


@st.composite
def schedules(draw: st.DrawFn) -> tuple[set[int], set[int], str, datetime]:
    zone = draw(st.sampled_from(sorted(CHANGES)))
    minutes = draw(st.sets(st.sampled_from([0, 1, 15, 29, 30, 31, 45, 59]), min_size=1, max_size=3))
    hours = draw(st.sets(st.integers(0, 23), min_size=1, max_size=4))
    return minutes, hours, zone, draw(st.sampled_from(CHANGES[zone])) - timedelta(days=1)


@settings(max_examples=25, deadline=None)
@given(schedules())
@example(({30}, {2}, BERLIN, CHANGES[BERLIN][0] - timedelta(days=1)))
@example(({30}, {2}, NEW_YORK, CHANGES[NEW_YORK][1] - timedelta(days=1)))
@example(({15, 45}, {2}, "Australia/Lord_Howe", CHANGES["Australia/Lord_Howe"][1] - timedelta(days=1)))
def test_what_fires_is_what_a_look_at_the_clock_every_minute_finds(
    case: tuple[set[int], set[int], str, datetime],
) -> None:
    minutes, hours, zone, start = case
    cron = Cron.parse(f"{','.join(map(str, minutes))} {','.join(map(str, hours))} * * *", zone)
    expected = brute_force(minutes, hours, cron.zone, start, 3)
    cursor = cron.wall(start - MINUTE).isoformat()

    due = cron.due(cursor, start + timedelta(days=3) - MINUTE, 10_000)

    inside = {name: moment for name, moment in expected.items() if name > cursor}
    assert {slot.name: slot.instant for slot in due} == inside
    assert [slot.name for slot in due] == sorted(inside)


@settings(max_examples=40, deadline=None)
@given(
    case=schedules(),
    hours=st.lists(st.floats(0, 72), min_size=1, max_size=8),
    back=st.sampled_from([0.0, 1.0]),
)
def test_whatever_way_the_clock_goes_every_slot_up_to_its_latest_time_fires_once(
    case: tuple[set[int], set[int], str, datetime], hours: list[float], back: float
) -> None:
    """Ticks at any moments, also with a clock that is put back an hour in between."""
    minutes, named, zone, start = case
    cron = Cron.parse(f"{','.join(map(str, minutes))} {','.join(map(str, named))} * * *", zone)
    first = cursor = cron.wall(start).isoformat()

    labels: list[str] = []
    for moment in clock(start, hours, back):
        due = cron.due(cursor, moment, 10_000)
        labels += [slot.label for slot in due]
        cursor = due[-1].name if due else cursor

    latest = start + timedelta(hours=max(hours))
    assert labels == [slot.label for slot in cron.due(first, latest, 10_000)]
    assert len(labels) == len(set(labels))


def clock(start: datetime, hours: list[float], back: float) -> Iterator[datetime]:
    for hour in hours:
        yield start + timedelta(hours=hour)
        yield start + timedelta(hours=hour - back)


def test_a_tick_after_a_long_time_looks_at_the_newest_slots_only() -> None:
    cron = Cron.parse("* * * * * *", "UTC")

    due = cron.due("1999-01-01T00:00:00", utc("2026-11-27T12:00"), 3)

    assert [slot.label for slot in due] == ["2026-11-27T11-59-58", "2026-11-27T11-59-59", "2026-11-27T12-00-00"]


# --- a changed zone -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (BERLIN, NEW_YORK),
        (NEW_YORK, BERLIN),
        ("Pacific/Kiritimati", "Pacific/Honolulu"),
        ("Pacific/Honolulu", "Pacific/Kiritimati"),
    ],
)
def test_a_changed_zone_neither_repeats_a_label_nor_leaves_one_out(old: str, new: str) -> None:
    change = utc("2026-06-10T17:00")
    before = Cron.parse("30 2 * * *", old).due("2026-06-01T12:00:00", change, 100)

    after = Cron.parse("30 2 * * *", new).due(before[-1].name, change + timedelta(days=5), 100)

    labels = [slot.label for slot in (*before, *after)]
    days = [date.fromisoformat(label) for label in labels]
    assert days == [days[0] + timedelta(days=number) for number in range(len(days))]
    assert len(after) >= 3


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cron", "label"),
    [
        ("30 2 * * *", "2026-11-27"),
        ("30 2 * * MON-FRI", "2026-11-27"),
        ("30 2,14 * * *", "2026-11-27T02-30"),
        ("0 * * * *", "2026-11-27T00-00"),
        ("*/5 30 2 * * *", "2026-11-27T02-30-00"),
    ],
)
def test_a_label_is_as_fine_as_the_schedule(cron: str, label: str) -> None:
    found = Cron.parse(cron, "UTC").between(date(2026, 11, 27), date(2026, 11, 27))

    assert found[0].label == label
    assert Cron.parse(cron, "UTC").labelled(label) == found[0]


def test_the_next_slot_follows_the_cursor() -> None:
    upcoming = Cron.parse("30 2 * * *", BERLIN).upcoming("2026-11-27T02:30:00")

    assert upcoming is not None
    assert (upcoming.label, upcoming.instant) == ("2026-11-28", utc("2026-11-28T01:30"))
    assert Cron.parse("30 2 * * *", BERLIN).labelled("tomorrow") is None


@pytest.mark.parametrize(
    ("cron", "zone", "message"),
    [
        ("30 2 * *", "UTC", "cron is '30 2 \\* \\*'.*write minute, hour"),
        ("61 2 * * *", "UTC", "Bad minute"),
        ("0 0 30 2 *", "UTC", "Bad day-of-month"),
        ("30 2 * * *", "Mars/Olympus", "zone is 'Mars/Olympus'; write an IANA name"),
        ("30 2 * * *", "Europe", "zone is 'Europe'"),
        ("30 2 * * *", "../etc/passwd", "zone is"),
    ],
)
def test_what_cannot_be_a_schedule_is_refused(cron: str, zone: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Cron.parse(cron, zone)
