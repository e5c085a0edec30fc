from __future__ import annotations

import subprocess
import sys

from jobs.app import make_app, queue_name
from jobs.tasks import RUN_SHARD


def test_the_settings_keep_messages_hints() -> None:
    conf = make_app("redis://localhost/0", prefix="x:", slots=5).conf

    assert conf.task_acks_late is False
    assert conf.worker_disable_prefetch is True
    assert conf.broker_channel_error_retry is True
    assert conf.result_backend is None
    assert conf.accept_content == ["json"]
    assert conf.worker_pool == "jobs.pool:ShardPool"
    assert conf.worker_concurrency == 5
    assert conf.broker_transport_options["global_keyprefix"] == "x:"
    assert conf.broker_transport_options["socket_timeout"] == 15


def test_the_only_task_is_run_shard() -> None:
    tasks = [name for name in make_app("redis://localhost/0").tasks if not name.startswith("celery.")]

    assert tasks == [RUN_SHARD]


def test_a_unix_socket_reaches_the_connection_with_prefix_and_timeouts() -> None:
    app = make_app("redis+socket:///run/nightmill/valkey.sock", prefix="x:")

    with app.connection_for_read() as connection:
        channel = connection.transport.Channel
        parameters = connection.info()
    assert parameters["transport_options"]["global_keyprefix"] == "x:"
    assert parameters["transport"] == "redis"
    assert "global_keyprefix" in channel.from_transport_options
    assert connection.as_uri() == "redis+socket:///run/nightmill/valkey.sock"


def test_every_model_has_its_own_queue() -> None:
    assert queue_name("abc123") == "m.abc123"


def test_nothing_that_a_worker_imports_before_it_is_pinned_imports_torch() -> None:
    modules = "jobs.app, jobs.tasks, jobs.pool, jobs.worker, jobs.launcher, jobs.reconciler, jobs.embedded, jobs.models"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
