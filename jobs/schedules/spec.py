"""What a user declares of a schedule, from a table of TOML or from flags, checked; and the job of one slot. Pure."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import date
from pathlib import Path
from typing import Any, get_args
from urllib.parse import urlsplit

from jobs.datasets.terms import DatasetTerms
from jobs.deadline import DURATION, parse_deadline
from jobs.options import SubmitOptions
from jobs.sampling import RULES, Sampling, check_overrides
from jobs.schedules.cron import Cron, Slot
from jobs.schedules.template import check_template, fill, is_dated, seed_of
from storage.dataset import names
from storage.layout import is_remote
from storage.schedule_records import CatchUp, NewSchedule, Overlap

TABLES = ("job", "terms")
KEYS = (
    *("cron", "zone", "input", "dataset", "model", "only_new", "catch_up", "catch_up_limit", "overlap", "max_active"),
    *("deadline", "input_wait", *TABLES),
)
DEFAULT_CATCH_UP_LIMIT = 30  # nights
DEFAULT_INPUT_WAIT = 6 * 3600.0
_OF_THE_RUN = {
    *("inputs", "output", "model", "sampling", "only_new", "deadline", "name", "resume", "idempotency_key"),
}
JOB_KEYS = frozenset({field.name for field in fields(SubmitOptions)} - _OF_THE_RUN | set(RULES))
"""Options of submit that a schedule may give to all of its jobs; the rest is a matter of the schedule itself."""


def parse_schedule(name: str, table: Mapping[str, Any], base: Path) -> NewSchedule:
    """Relative paths are meant from the folder `base`. Raises ValueError with the name of the schedule."""
    try:
        return _parse(name, table, base)
    except (ValueError, TypeError) as error:
        raise ValueError(f"schedule {name}: {error}") from None


def _parse(name: str, table: Mapping[str, Any], base: Path) -> NewSchedule:
    if not names.is_name(name):
        raise ValueError("a name holds letters, digits, dots, dashes and underscores only")
    _refuse_unknown(table, KEYS, "a schedule")
    for key in ("cron", "input", "dataset", "model"):
        if not table.get(key):
            raise ValueError(f"{key} is missing")
    only_new = table.get("only_new", False)
    new = NewSchedule(
        name=name,
        cron=_text("cron", table["cron"]),
        zone=_text("zone", table.get("zone", "UTC")),
        dataset=_local("dataset", _text("dataset", table["dataset"]), base),
        job={
            "inputs": _inputs(table["input"], base),
            "model": _model(_text("model", table["model"]), base),
            "options": _job_options(table.get("job", {})),
        },
        terms=DatasetTerms.from_dict(table.get("terms", {})).as_dict(),
        catch_up=_one_of("catch_up", table.get("catch_up", "latest"), get_args(CatchUp)),
        catch_up_limit=_count("catch_up_limit", table.get("catch_up_limit", DEFAULT_CATCH_UP_LIMIT)),
        overlap=_one_of("overlap", table.get("overlap", "queue"), get_args(Overlap)),
        max_active=_count("max_active", table.get("max_active", 1)),
        only_new=only_new,
        deadline_seconds=_seconds("deadline", table["deadline"]) if "deadline" in table else None,
        input_wait_seconds=_seconds("input_wait", table.get("input_wait", DEFAULT_INPUT_WAIT)),
    )
    _check(new)
    return new


def _check(new: NewSchedule) -> None:
    """What no single value shows."""
    if not isinstance(new.only_new, bool):
        raise ValueError(f"only_new is {new.only_new!r}; it must be true or false")
    if new.overlap == "cancel_previous" and new.catch_up == "all":
        raise ValueError("overlap cancel_previous would cancel the runs that catch_up all asks for; use latest or none")
    if new.only_new and new.max_active != 1:
        raise ValueError("only_new needs max_active 1: a run must know which rows the one before has generated")
    if new.overlap == "cancel_previous" and new.max_active != 1:
        raise ValueError("overlap cancel_previous needs max_active 1")
    cron = Cron.parse(new.cron, new.zone)
    slot = cron.upcoming("2026-01-01T00:00:00")
    if slot is None:
        raise ValueError(f"cron is {new.cron!r}, and that never comes")
    options_of(new, slot, "run")


def options_of(declared: NewSchedule, slot: Slot, run_id: str) -> SubmitOptions:
    """The submission that a run of this slot is. Raises ValueError for options that do not fit together."""
    given = dict(declared.job["options"])
    seed = seed_of(declared.name, given.pop("seed", None), slot.label)
    sampling = {key: given.pop(key) for key in list(given) if key in RULES}
    tags = {**given.pop("tags", {}), "schedule": declared.name, "label": slot.label}
    if declared.only_new:
        given["only_new"] = Path(declared.dataset)
    if "keep_columns" in given:
        given["keep_columns"] = tuple(given["keep_columns"])
        names.check_label_column(given["keep_columns"])
    return SubmitOptions(
        **given,
        inputs=tuple(fill(path, slot) for path in declared.job["inputs"]),
        output=Path(declared.dataset) / names.run_folder(slot.label, run_id),
        model=declared.job["model"],
        sampling=Sampling().overridden(check_overrides(sampling)),
        seed=seed,
        tags=tags,
        name=f"{declared.name} {slot.label}",
        deadline=None if declared.deadline_seconds is None else f"{declared.deadline_seconds:f}s",
        idempotency_key=f"schedule {declared.name} {slot.label} {run_id}",
    )


def set_options(table: dict[str, Any], pairs: Sequence[str]) -> dict[str, Any]:
    """The table with `job.max_tokens=64` and the like: values as in TOML, anything else is text. Raises ValueError."""
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"--set is {pair!r}; write it as NAME=VALUE")
        inner = table
        *path, last = name.strip().split(".")
        for step in path:
            inner = inner.setdefault(step, {})
            if not isinstance(inner, dict):
                raise ValueError(f"--set is {pair!r}, and {step} is no table")
        try:
            inner[last] = tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            inner[last] = text
    return table


def is_dated_input(declared: NewSchedule) -> bool:
    """Does the input depend on the date?"""
    return any(is_dated(path) for path in declared.job["inputs"])


def differences(old: NewSchedule | None, new: NewSchedule | None) -> list[str]:
    """What applying `new` would change, as lines `+ key: new`, `- key: old`; empty when it is the same. Of a webhook's
    address only scheme and host are shown: the rest may be as good as a password."""
    before, after = _flat(old), _flat(new)
    lines = []
    for key in sorted(before.keys() | after.keys()):
        if before.get(key) != after.get(key):
            lines += [f"- {key}: {_shown(key, before[key])}"] if before.get(key) is not None else []
            lines += [f"+ {key}: {_shown(key, after[key])}"] if after.get(key) is not None else []
    return lines


def _shown(key: str, value: Any) -> Any:
    if key != "terms.webhook_url":
        return value
    address = urlsplit(str(value))
    return f"{address.scheme}://{address.hostname}/..."


def _flat(declared: NewSchedule | None) -> dict[str, Any]:
    values: dict[str, Any] = {} if declared is None else asdict(declared)
    values.pop("name", None)
    job: dict[str, Any] = values.pop("job", {})
    options = {f"job.{key}": value for key, value in job.pop("options", {}).items()}
    terms = {f"terms.{key}": value for key, value in values.pop("terms", {}).items() if value not in (None, [])}
    return values | job | options | terms


# --- single values --------------------------------------------------------------------------------------------------


def _refuse_unknown(table: object, known: Collection[str], of: str) -> None:
    if not isinstance(table, Mapping):
        raise ValueError(f"{table!r} is no table of options of {of}")
    for key in table:
        if key not in known:
            raise ValueError(f"there is no option {key!r} of {of}; there are {', '.join(sorted(known))}")


def _inputs(given: Any, base: Path) -> list[str]:
    paths = [given] if isinstance(given, str) else given
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"input is {given!r}; write one path or a list of paths")
    for path in paths:
        check_template(path)
    return [_local("input", path, base) for path in paths]


def _local(key: str, path: str, base: Path) -> str:
    if is_remote(path):
        raise ValueError(f"{key} is {path!r}, and object storage is not supported yet; name a local path")
    return os.path.abspath(base / path)


def _model(given: str, base: Path) -> str:
    """A folder or file as its absolute path, so that every process finds it; else a name on the Hub."""
    return os.path.abspath(base / given) if (base / given).exists() else given


def _job_options(given: Mapping[str, Any]) -> dict[str, Any]:
    _refuse_unknown(given, JOB_KEYS, "a schedule's job")
    options = {str(key): value for key, value in given.items()}
    check_overrides({key: value for key, value in options.items() if key in RULES})
    return options


def _text(key: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{key} is {value!r}; it must be text")
    return value


def _one_of(key: str, value: Any, allowed: tuple[Any, ...]) -> Any:
    if value not in allowed:
        raise ValueError(f"{key} is {value!r}; it must be {', '.join(allowed[:-1])} or {allowed[-1]}")
    return value


def _count(key: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{key} is {value!r}; it must be a whole number of at least 1")
    return value


def _seconds(key: str, value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and value >= 0:
        return float(value)
    if isinstance(value, str) and DURATION.fullmatch(value):
        return parse_deadline(value).seconds or 0.0
    raise ValueError(f"{key} is {value!r}; write a duration like 90m, 6h or 1d12h")


def day_of(text: str) -> date:
    """`2026-11-27`. Raises ValueError."""
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise ValueError(f"{text!r} is no date; write it like 2026-11-27") from None
