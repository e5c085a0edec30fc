"""One worker in this process: real files, a real SQLite database, a fake engine."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from engine.feed import Feed
from engine.request import Request
from jobs.gate import Gate
from jobs.leases import LeaseKeeper
from jobs.options import SubmitOptions
from jobs.outcome import Outcome
from jobs.prompts import PromptEncoder
from jobs.sampling import Sampling
from jobs.settings import Settings
from jobs.shard import Tools, run_shard
from jobs.submit import submit
from storage import migrate
from storage.records import Job, Shard, ShardId, WorkerRecord
from storage.repository import Repository
from tests.fakes import FakeEngine, make_fake_model

ROWS = 24


@dataclass
class Bench:
    """One worker's tools and one job of one shard."""

    tools: Tools
    job: Job
    engine: FakeEngine

    @property
    def shard(self) -> Shard:
        return self.tools.repository.shards(self.job.id)[0]

    def run(self, shard_id: ShardId | None = None) -> Outcome:
        return run_shard(self.tools, shard_id or self.shard.id, threading.Event())

    def sealed(self) -> int:
        return sum(segment.rows for segment in self.tools.repository.segments(self.shard.id))

    def watch_requests(self) -> list[Request]:
        """What the engine pulls from now on."""
        seen: list[Request] = []
        real = self.engine.feed

        def feed(requests: Iterable[Request]) -> Feed:
            return real(seen.append(each) or each for each in requests)  # type: ignore[func-returns-value]

        self.engine.feed = feed  # type: ignore[method-assign]
        return seen

    def take_engine(self, **options: object) -> None:
        self.engine.stop()
        self.engine = FakeEngine(**options)  # type: ignore[arg-type]
        self.engine.start()
        self.tools = replace(self.tools, engine=self.engine, stopping=threading.Event())


@contextmanager
def make_bench(tmp_path: Path) -> Iterator[Bench]:
    url = f"sqlite:///{tmp_path}/test.db"
    migrate.upgrade(url)
    repository = Repository(url)
    model = make_fake_model(tmp_path / "model")
    prompts = [*(f"prompt {i}" for i in range(ROWS - 1)), None]
    pq.write_table(pa.table({"prompt": prompts}), tmp_path / "in.parquet")
    settings = Settings(home=tmp_path / "home", segment_rows=4, segment_seconds=60, max_sequences=8)
    options = SubmitOptions(
        inputs=(str(tmp_path / "in.parquet"),),
        output=tmp_path / "out",
        model=str(model),
        sampling=Sampling().overridden({"max_tokens": 6}),
    )
    job = submit(options, repository, settings).job
    engine = FakeEngine()
    engine.start()
    tools = Tools(
        repository=repository,
        engine=engine,
        encoder=PromptEncoder.open(model),
        leases=LeaseKeeper(repository, "w0", "boot", lease_seconds=60, heartbeat_seconds=10),
        gate=Gate(slots=4, target=16),
        settings=settings,
        stopping=threading.Event(),
    )
    repository.register_worker(
        WorkerRecord(
            id="w0",
            boot_id="boot",
            model_key=job.model.key,
            model_source="m",
            device="cpu",
            state="ready",
            heartbeat_age=0,
        )
    )
    made = Bench(tools, job, engine)
    yield made
    made.engine.stop()
    repository.close()


@contextmanager
def beating(bench: Bench) -> Iterator[None]:
    """Heartbeats in quick succession while the block runs."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(0.02):
            bench.tools.leases.beat()

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def wait_for_rows(bench: Bench, rows: int) -> None:
    while bench.sealed() < rows:
        threading.Event().wait(0.01)
