"""A user's check says yes or no, or it is stopped or found dead; whatever it does, it does not do it to us."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.datasets.checks import CheckRules, why_not
from jobs.datasets.terms import DatasetTerms
from jobs.settings import Settings
from tests.faults.harness import alive

ROOT = Path(__file__).parents[4]
CHECKS = "tests.unit.jobs.datasets.checks"


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """A run in two parts."""
    for name, texts in (("0", ["fine", None]), ("1", ["sorry!"])):
        pq.write_table(pa.table({"prompt": ["p"] * len(texts), "output_text": texts}), tmp_path / f"{name}.parquet")
    return [tmp_path / "0.parquet", tmp_path / "1.parquet"]


def said(check: str, parts: list[Path], seconds: float = 60.0, secret: str | None = None) -> str:
    name = f"{CHECKS}:{check}"
    return why_not(name, parts, CheckRules(allowed={name}, seconds=seconds, secret=secret))


@pytest.mark.parametrize("check", ["fine", "has_prompts", "goes_first"])
def test_a_check_passes_when_it_returns_nothing_or_true(parts: list[Path], check: str) -> None:
    why = said(check, parts)

    assert why == ""


@pytest.mark.parametrize(
    ("check", "why"),
    [
        ("no_refusals", "1 texts say sorry"),
        ("never", "returned False"),
        ("broken", "raised KeyError: 'no_such_column'"),
        ("leaves", "raised SystemExit: 3"),
        ("absent", "raised AttributeError"),
        ("mumbles", "half a ? sign, and a \N{REPLACEMENT CHARACTER}"),
    ],
)
def test_a_check_that_says_no_or_raises_has_not_passed_and_says_why(parts: list[Path], check: str, why: str) -> None:
    answer = said(check, parts)

    assert why in answer


def test_a_check_that_is_not_on_the_list_is_never_called(parts: list[Path]) -> None:
    settings = Settings(dataset_checks=f"{CHECKS}:fine, {CHECKS}:never,", dataset_check_seconds=5)
    rules = CheckRules.of(settings, DatasetTerms())

    why = why_not("os:abort", parts, rules)

    assert rules == CheckRules(allowed={f"{CHECKS}:fine", f"{CHECKS}:never"}, seconds=5)
    assert CheckRules.of(settings, DatasetTerms(check_seconds=1)).seconds == 1
    assert "NIGHTMILL_DATASET_CHECKS does not allow os:abort" in why


def test_a_check_that_hangs_is_stopped_with_all_that_it_has_started(parts: list[Path]) -> None:
    pids = parts[0].with_name("pids")
    for seconds in (2, 30, 120):  # on a busy machine it may not come to hang at once
        why = said("hangs", parts, seconds=seconds)
        if pids.exists():
            break

    assert why == f"{CHECKS}:hangs ran for more than {seconds} s (check_seconds) and was stopped"
    for pid in map(int, pids.read_text().split()):
        assert not alive(pid)


LEAVES = """
import sys, threading, time
from pathlib import Path
from jobs.datasets.checks import CheckRules, why_not
name, part = sys.argv[1], Path(sys.argv[2])
rules = CheckRules(allowed={name}, seconds=600.0)
threading.Thread(target=why_not, args=(name, [part], rules), daemon=True).start()
while not part.with_name("pids").exists():
    time.sleep(0.01)
"""


def test_a_check_that_hangs_ends_with_the_process_that_settles(parts: list[Path]) -> None:
    subprocess.run([sys.executable, "-c", LEAVES, f"{CHECKS}:hangs", str(parts[0])], check=True, cwd=ROOT)

    for pid in map(int, parts[0].with_name("pids").read_text().split()):
        assert not alive(pid)


@pytest.mark.parametrize(
    ("check", "end"), [("exits", "ended its process with code 3"), ("is_killed", "was killed by SIGKILL")]
)
def test_a_check_that_dies_is_named_with_its_end(parts: list[Path], check: str, end: str) -> None:
    with pytest.raises(ChildProcessError, match=f"the check {CHECKS}:{check} {end} before it answered"):
        said(check, parts)


def test_what_a_check_prints_is_no_answer(parts: list[Path], capfd: pytest.CaptureFixture[str]) -> None:
    why = said("prints", parts)

    printed = capfd.readouterr()
    assert (why, printed.out) == ("", "")
    assert sorted(printed.err.splitlines()) == ['{"why": "printed"}', '{"why": "written"}']


def test_a_check_that_writes_rubbish_where_answers_go_has_not_passed(parts: list[Path]) -> None:
    why = said("writes_everywhere", parts)

    assert "writes_everywhere gave no answer that can be read, but b'rubbish" in why


def test_a_check_is_given_no_secret_of_ours(parts: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOOK_SECRET", "NIGHTMILL_DATABASE_URL", "PGPASSWORD", "KEPT"):
        monkeypatch.setenv(name, "x")

    why = said("sees_no_secrets", parts, secret="HOOK_SECRET")

    assert why == ""
