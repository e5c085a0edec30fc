"""A broker that dies, and messages that are doubled, forged or nonsense."""

from __future__ import annotations

import json

import pytest
import redis

from jobs.app import make_app, queue_name
from jobs.broker import PrivateBroker
from jobs.tasks import RUN_SHARD, publish_hint
from storage.records import Hint, JobId, ShardId
from storage.states import JobState, ShardState
from tests.faults.harness import Harness, wait_for

pytestmark = pytest.mark.integration

PROMPTS = [f"prompt number {i}" for i in range(96)]
KEYS = {(i, 0) for i in range(96)}
SLOW = {"FAKE_ENGINE_ROWS_PER_SECOND": "30"}


def test_09_without_a_broker_no_new_shard_starts_and_with_it_the_job_goes_on(harness: Harness) -> None:
    worker = harness.start_worker("w0", **SLOW)
    job = harness.submit(PROMPTS, shard_rows=16)
    harness.wait_for_rows(job.id, 8)

    harness.broker.stop()
    wait_for(lambda: _running(harness, job.id) == 0, "what had begun is finished without the broker")
    started = sum(shard.attempts for shard in harness.repository.shards(job.id))
    done = harness.job(job.id).shards_done

    assert harness.job(job.id).state is JobState.IN_PROGRESS
    assert done < 6
    for _ in range(10):
        harness.repository.dispatch(None, 100, 0.0)
        assert sum(shard.attempts for shard in harness.repository.shards(job.id)) == started

    harness.broker = PrivateBroker(harness.settings.home)
    harness.broker.start()

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, KEYS)
    assert worker.process.poll() is None


def test_15_a_hint_sent_many_times_is_claimed_once(harness: Harness) -> None:
    harness.stop_reconciler()
    job = harness.submit(PROMPTS, shard_rows=16)
    hints = harness.repository.dispatch(None, 100, 1000.0)
    app = make_app(harness.broker.url, prefix=harness.settings.redis_prefix)
    for _ in range(100):
        for hint in hints:
            publish_hint(app, hint)

    for number in range(4):
        harness.start_worker(f"w{number}")
    harness.start_reconciler()

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, KEYS)
    assert [shard.attempts for shard in harness.repository.shards(job.id)] == [1] * len(hints)


def test_16_garbage_in_the_queue_does_not_stop_the_worker(harness: Harness) -> None:
    worker = harness.start_worker("w0")
    wait_for(lambda: bool(harness.repository.workers(2.0)), "the worker lives")
    key = harness.repository.workers(2.0)[0].model_key
    app = make_app(harness.broker.url, prefix=harness.settings.redis_prefix)
    client = redis.Redis(unix_socket_path=str(harness.broker.socket))
    forged = Hint(
        job_id=JobId(999), shard_id=ShardId(999), dispatch_seq=1, model_key=key, model_source="../../etc/passwd"
    )

    publish_hint(app, forged)
    app.send_task("no.such.task", queue=queue_name(key))
    app.send_task(RUN_SHARD, kwargs={"job_id": 1, "shard_id": "one'; DROP TABLE jobs"}, queue=queue_name(key))
    app.send_task(RUN_SHARD, args=[1, 2, 3, 4], queue=queue_name(key))
    message = {
        "body": "bm90IGpzb24=",
        "content-type": "application/json",
        "content-encoding": "utf-8",
        "headers": {"task": RUN_SHARD, "id": "x"},
        "properties": {"body_encoding": "base64", "delivery_tag": "t1", "delivery_info": {}},
    }
    client.lpush(harness.settings.redis_prefix + queue_name(key), json.dumps(message))
    client.close()
    job = harness.submit(PROMPTS, shard_rows=32)

    assert harness.wait_for_end(job.id).state is JobState.COMPLETED
    harness.check(job.id, KEYS)
    assert worker.process.poll() is None


FORGETFUL = """
import sys
from jobs.app import make_app
from jobs.settings import Settings
settings = Settings()
app = make_app(settings.broker_url.get_secret_value(), prefix=settings.redis_prefix)
del app.tasks["nightmill.run_shard"]
app.worker_main(["worker", "-P", "solo", "-Q", sys.argv[1], "-n", "old@a", "--without-gossip", "--without-mingle"])
"""


def test_17_a_worker_of_another_version_eats_hints_and_they_are_sent_again(harness: Harness) -> None:
    job = harness.submit(PROMPTS[:32], shard_rows=8)
    old = harness.start_program("old", ["-c", FORGETFUL, queue_name(job.model.key)])
    wait_for(lambda: old.text.count("unregistered task") >= 4, "the old worker has eaten every hint")
    old.kill()

    harness.start_worker("w0")

    harness.done(job.id, 32)
    assert [shard.attempts for shard in harness.shards(job.id)] == [1] * 4


def test_17_a_worker_refuses_a_database_of_another_version(harness: Harness) -> None:
    with harness.repository._db.write() as conn:
        conn.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")

    worker = harness.start_worker("w0")

    assert worker.process.wait(30) == 8
    assert "schema" in worker.text


def _running(harness: Harness, job_id: JobId) -> int:
    return sum(shard.state is ShardState.RUNNING for shard in harness.repository.shards(job_id))
