"""The commands of schedules in this process: what they print, and their exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.cli import main, terminal
from tests.unit.jobs.tiny_model import make_model

Run = Callable[..., tuple[int, str, str]]
ADD = ("--cron", "30 2 * * *", "--input", "in/{ds}.parquet", "--dataset", "data", "--model", "model")


@pytest.fixture
def nightmill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a folder with a model; its exit code, stdout and stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path / "home"))
    make_model(tmp_path / "model")

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(["schedule", *arguments])
        out, err = capsys.readouterr()
        return int(str(ended.value.code or 0)), out, err

    return run


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_a_schedule_is_added_listed_shown_paused_resumed_and_removed(nightmill: Run, tmp_path: Path) -> None:
    code, _, err = nightmill("add", "nightly", *ADD, "--zone", "Europe/Berlin", "--set", "job.max_tokens=8")

    assert code == 0
    assert "schedule nightly is added; it fires next for 2" in err
    assert "start `nightmill up`" in err
    [listed] = lines(nightmill("list")[1])
    assert (listed["schedule"], listed["zone"], listed["paused"], listed["last"]) == (
        "nightly",
        "Europe/Berlin",
        False,
        None,
    )
    assert listed["next_at"].endswith(("00:30:00+00:00", "01:30:00+00:00"))
    [shown] = lines(nightmill("show", "nightly")[1])
    assert (shown["options"]["job.max_tokens"], shown["runs"]) == ("8", [])
    assert shown["options"]["dataset"] == str(tmp_path / "data")
    assert nightmill("pause", "nightly")[0] == 0
    assert lines(nightmill("list")[1])[0]["next"] is None
    assert "fires next for" in nightmill("resume", "nightly")[2]
    assert "its data set stays" in nightmill("remove", "nightly")[2]
    assert nightmill("list")[1] == ""


def test_a_webhooks_address_is_shown_without_its_secret_parts(nightmill: Run, tmp_path: Path) -> None:
    table = 'cron = "0 0 * * *"\ninput = "in"\ndataset = "data"\nmodel = "model"'
    hook = 'terms = {{ webhook_url = "https://hooks.example/{}", webhook_secret_env = "SECRET" }}'
    file = tmp_path / "schedules.toml"

    said = []
    for token in ("token-1", "token-2"):
        file.write_text(f"[schedules.nightly]\n{table}\n{hook.format(token)}\n")
        said.append(nightmill("apply", str(file), "--yes"))
    said += [nightmill("show", "nightly"), nightmill("show", "nightly", "--json"), nightmill("list", "--json")]

    assert [code for code, _, _ in said] == [0] * 5
    assert all("token" not in out + err for _, out, err in said)
    assert [out.count("https://hooks.example/...") for _, out, _ in said] == [1, 2, 1, 1, 0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "n", "--cron", "30 2 * *", *ADD[2:]), 2, "write minute, hour, day"),
        (("add", "n", *ADD, "--set", "max_active"), 2, "write it as NAME=VALUE"),
        (("add", "n", *ADD, "--set", "cron.x=1"), 2, "cron is no table"),
        (("show", "nobody"), 9, "there is no schedule nobody"),
        (("backfill", "nobody", "--from", "2026-11-01", "--to", "soon"), 2, "'soon' is no date"),
        (("backfill", "nobody", "--from", "2026-11-01", "--to", "2026-11-02"), 9, "no schedule nobody"),
        (("apply", "nowhere.toml"), 2, "nowhere.toml cannot be read"),
    ],
)
def test_what_is_wrong_is_said_with_the_exit_code(
    nightmill: Run, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended, _, err = nightmill(*arguments)

    assert ended == code
    assert message in err


def test_a_second_schedule_of_the_same_name_is_a_conflict(nightmill: Run) -> None:
    nightmill("add", "nightly", *ADD)

    code, _, err = nightmill("add", "nightly", *ADD)

    assert code == 9
    assert "there is a schedule nightly already" in err


def test_a_file_is_applied_after_its_differences_were_shown(nightmill: Run, tmp_path: Path) -> None:
    nightmill("add", "by-hand", *ADD)
    file = tmp_path / "schedules.toml"
    file.write_text(
        '[schedules.nightly]\ncron = "30 2 * * *"\ninput = "in/*.parquet"\ndataset = "other"\nmodel = "model"\n'
    )

    shown = nightmill("apply", str(file), "--dry-run")
    refused = nightmill("apply", str(file))
    applied = nightmill("apply", str(file), "--yes")
    again = nightmill("apply", str(file), "--yes")

    assert shown[1].splitlines()[:2] == ["schedule nightly is added", "  + catch_up: latest"]
    assert "dry run: nothing was changed" in shown[2]
    assert refused[0] == 2
    assert "nobody can be asked here, so nothing was changed" in refused[2]
    assert (applied[0], applied[1]) == (0, shown[1])
    assert "left alone, since the file does not name them: by-hand" in applied[2]
    assert "nothing to change" in again[2]


def test_a_backfill_is_shown_before_it_is_queued(nightmill: Run) -> None:
    nightmill("add", "nightly", *ADD)
    dates = ("--from", "2026-01-01", "--to", "2026-01-03")

    dry = nightmill("backfill", "nightly", *dates, "--dry-run", "--order", "backwards")
    queued = nightmill("backfill", "nightly", *dates)
    again = nightmill("backfill", "nightly", *dates)

    assert [line["label"] for line in lines(dry[1])] == ["2026-01-03", "2026-01-02", "2026-01-01"]
    assert "dry run: 3 of 3 dates would run" in dry[2]
    assert "3 of 3 dates of schedule nightly are queued" in queued[2]
    assert "0 of 3 dates of schedule nightly are queued" in again[2]
    [shown] = lines(nightmill("show", "nightly")[1])
    newest = shown["runs"][0]
    assert (newest["label"], newest["state"], newest["cause"]) == ("2026-01-03", "queued", "backfill")


def test_a_terminal_gets_tables(nightmill: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    nightmill("add", "nightly", *ADD)
    nightmill("run", "nightly", "--date", "2026-01-01")
    monkeypatch.setattr(terminal, "is_terminal", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")

    assert "2026-01-01" in nightmill("list")[1]
    shown = nightmill("show", "nightly")[1]
    assert "failed_gates" in shown
    assert "30 2 * * *" in shown


def test_a_run_of_a_date_is_queued_once(nightmill: Run, tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "in" / "2026-01-01.parquet")
    nightmill("add", "nightly", *ADD)

    first = nightmill("run", "nightly", "--date", "2026-01-01")
    second = nightmill("run", "nightly", "--date", "2026-01-01")

    assert first[0] == 0
    assert "run 2026-01-01 of schedule nightly is queued" in first[2]
    assert (second[0], "it is at work" in second[2]) == (9, True)
