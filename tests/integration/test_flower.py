"""The real Flower, a real Valkey and a real Celery worker: what an operator sees, and what nobody may do."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pytest

from jobs.app import make_app
from jobs.tasks import publish_hint
from storage.records import Hint, JobId, ShardId

pytestmark = pytest.mark.integration

ROOT = Path(__file__).parents[2]
MODEL = "gemma3-270m"
MODEL_KEY = "k1"
DONE_SHARD, FAILING_SHARD = 7, 13
DEADLINE = 60.0
T = TypeVar("T")


@contextmanager
def process(*command: str, **options: Any) -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(command, cwd=ROOT, text=True, **options)
    try:
        yield child
    finally:
        child.terminate()
        try:
            child.wait(10)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def until(look: Callable[[], T | None], what: str) -> T:
    """Look until there is something. Fails after DEADLINE."""
    give_up = time.monotonic() + DEADLINE
    while time.monotonic() < give_up:
        if (found := look()) is not None:
            return found
        time.sleep(0.2)
    raise AssertionError(f"not seen within {DEADLINE} s: {what}")


@pytest.fixture(scope="module")
def flower(broker: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a running `nightmill flower` that has seen one done and one failed shard."""
    folder = tmp_path_factory.mktemp("flower")
    environment = {
        **os.environ,
        "NIGHTMILL_BROKER_URL": broker,
        "NIGHTMILL_DATABASE_URL": f"sqlite:///{folder}/none.db",
        "FLOWER_UNAUTHENTICATED_API": "true",  # opens the control calls as far as they can be opened
        "PYTHONPATH": str(ROOT),
        # A module of this name that cannot be imported: Flower has to do without torch.
    }
    blocker = folder / "blocked"
    blocker.mkdir()
    (blocker / "torch.py").write_text("raise ImportError('the monitor must not need torch')")
    environment["PYTHONPATH"] = f"{blocker}:{ROOT}"
    with (
        process(
            sys.executable,
            "-c",
            "from jobs.cli import main; main()",
            "flower",
            "--port",
            "0",
            env=environment,
            stderr=subprocess.PIPE,
        ) as server,
        process(
            sys.executable,
            str(Path(__file__).with_name("flower_worker.py")),
            broker,
            MODEL_KEY,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ),
    ):
        address = first_address(server)
        until(lambda: get_or_none(f"{address}/healthcheck"), "Flower's health check")
        until(lambda: online(address), "the worker in Flower")
        app = make_app(broker)
        for shard in (DONE_SHARD, FAILING_SHARD):
            publish_hint(app, hint(shard))
        yield address


def hint(shard: int) -> Hint:
    return Hint(job_id=JobId(42), shard_id=ShardId(shard), dispatch_seq=1, model_key=MODEL_KEY, model_source=MODEL)


def first_address(server: subprocess.Popen[str]) -> str:
    assert server.stderr is not None
    for line in server.stderr:
        if match := re.search(r"http://[0-9.]+:[0-9]+", line):
            return match.group()
    raise AssertionError("Flower ended without telling its address")


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return str(answer.read().decode())


def get_or_none(url: str) -> str | None:
    try:
        return get(url)
    except OSError:
        return None


def online(address: str) -> str | None:
    page = get(f"{address}/workers?json=1")
    return page if "gpu0@test" in page else None


def tasks(address: str, search: str = "") -> list[dict[str, Any]]:
    """Rows of the tasks page, asked for as its script asks."""
    query = {
        "draw": 1,
        "start": 0,
        "length": 50,
        "search[value]": search,
        "order[0][column]": 0,
        "order[0][dir]": "asc",
        "columns[0][data]": "name",
    }
    found: list[dict[str, Any]] = json.loads(get(f"{address}/tasks/datatable?{urllib.parse.urlencode(query)}"))["data"]
    return found


def ended(address: str, shard: int) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        return next(
            (
                task
                for task in tasks(address)
                if task["uuid"] == f"{shard}.1" and task["state"] in ("SUCCESS", "FAILURE")
            ),
            None,
        )

    return until(look, f"the end of shard {shard}")


def test_flower_listens_on_the_loopback_address_only(flower: str) -> None:
    assert flower.startswith("http://127.0.0.1:")


def test_a_done_shard_shows_job_shard_model_and_its_result_line(flower: str) -> None:
    task = ended(flower, DONE_SHARD)

    assert task["state"] == "SUCCESS"
    assert task["name"] == "run_shard"
    assert task["kwargs"] == f"job 42 · shard {DONE_SHARD} · {MODEL}"
    assert task["result"] == "rows=256 cached=81% tok/s=412"
    assert task["worker"] == "gpu0@test"


def test_a_failed_attempt_shows_as_failure_with_its_reason(flower: str) -> None:
    task = ended(flower, FAILING_SHARD)

    assert task["state"] == "FAILURE"
    assert "the engine is dead" in task["exception"]


@pytest.mark.parametrize("search", [f"kwargs:{MODEL}", "kwargs:\"'job_id': 42\"", "name:run_shard", "gemma3"])
def test_job_and_model_are_searchable(flower: str, search: str) -> None:
    ended(flower, DONE_SHARD), ended(flower, FAILING_SHARD)

    assert {task["uuid"] for task in tasks(flower, search)} == {f"{DONE_SHARD}.1", f"{FAILING_SHARD}.1"}


def test_a_search_for_failures_finds_only_them(flower: str) -> None:
    ended(flower, DONE_SHARD), ended(flower, FAILING_SHARD)

    assert [task["uuid"] for task in tasks(flower, "state:FAILURE")] == [f"{FAILING_SHARD}.1"]
    assert tasks(flower, "kwargs:no-such-model") == []


def test_the_tasks_page_has_our_columns(flower: str) -> None:
    columns = re.findall(r'data-column="(\w+)"', get(f"{flower}/tasks"))

    assert columns[:5] == ["name", "kwargs", "state", "result", "exception"]


@pytest.mark.parametrize(
    "call",
    [
        "worker/shutdown/gpu0@test",
        "worker/pool/grow/gpu0@test",
        "worker/queue/add-consumer/gpu0@test",
        f"task/revoke/{DONE_SHARD}.1",
        "task/send-task/nightmill.run_shard",
        "task/async-apply/nightmill.run_shard",
    ],
)
def test_every_control_call_is_forbidden(flower: str, call: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refusal:
        urllib.request.urlopen(urllib.request.Request(f"{flower}/api/{call}", data=b"{}", method="POST"), timeout=10)

    assert refusal.value.code == 403
    refusal.value.close()
