"""Rows 1, 3, 32 and 41 with the real engine: whatever died, each row's tokens are those of a run that nobody disturbed.

In strict mode, which promises the same bits beside any neighbours.
"""

from __future__ import annotations

import json
import signal
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from jobs.options import SubmitOptions
from jobs.sampling import Sampling
from jobs.submit import submit
from storage.records import JobId
from storage.states import JobState
from tests.faults.checker import check_job
from tests.faults.harness import Harness, WorkerProcess, keys, wait_for

pytestmark = pytest.mark.integration

ROWS = 12
ROOT = Path(__file__).parents[2]
REAL = {
    "NIGHTMILL_ENGINE_FACTORY": "tests.faults.engine:traced_real_engine",
    "NIGHTMILL_STRICT": "true",
    "NIGHTMILL_CACHE_BYTES": str(64 << 20),
    "NIGHTMILL_THREADS": "1",
    "REAL_ENGINE_PACE": "0.06",
}
WORDS = ("night", "mill", "row", "shard", "seal", "lease")


@dataclass(slots=True)
class Real:
    """A harness whose workers have a real model."""

    harness: Harness
    max_tokens: int

    def worker(self, name: str) -> WorkerProcess:
        return self.harness.start_worker(name, **REAL)

    def submit(self, name: str) -> JobId:
        """The same rows each time, half of them with drawn tokens: seeds depend on specification and input alone."""
        prompts = [f"Tell me of the {WORDS[i % 6]} and the {WORDS[i // 3]}, number {i}." for i in range(ROWS)]
        options = SubmitOptions(
            inputs=(str(self.harness.write_input(prompts)),),
            output=self.harness.folder / name,
            model=str(self.harness.model),
            sampling=Sampling().overridden({"max_tokens": self.max_tokens, "temperature": 0.8, "ignore_eos": True}),
            shard_rows=6,
            seed=7,
        )
        return submit(options, self.harness.repository, self.harness.settings).job.id

    def check(self, job_id: JobId) -> pa.Table:
        return check_job(self.harness.repository, job_id, keys(ROWS))

    def tokens(self) -> dict[int, dict[int, set[str]]]:
        """What any attempt has generated for each row, by job."""
        job_of = {
            shard.id: job.id
            for job in self.harness.repository.list_jobs()
            for shard in self.harness.repository.shards(job.id)
        }
        found: dict[int, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
        for line in self.harness.trace.read_text().splitlines():
            name, _, ids = line.split(" ", 2)
            shard, _, row = name.split(".")
            assert len(json.loads(ids)) == self.max_tokens
            found[job_of[int(shard)]][int(row)].add(ids)  # type: ignore[index]
        return found


@pytest.fixture(params=["tiny", pytest.param("smollm2-135m", marks=pytest.mark.slow)])
def real(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Real]:
    with Harness.create(tmp_path, max_sequences=4) as harness:
        if request.param == "tiny":
            make_tiny_model(harness.model)
            yield Real(harness, max_tokens=16)
        else:
            harness.model = ROOT / ".cache" / "models" / request.param
            yield Real(harness, max_tokens=12)


def make_tiny_model(folder: Path) -> None:
    """Sliding and full attention, random weights; the tokenizer of the fake model is kept."""
    import torch
    from transformers import AutoModelForCausalLM, Gemma3TextConfig

    torch.manual_seed(3)
    config = Gemma3TextConfig(
        vocab_size=257,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=32,
        sliding_window_pattern=2,
        max_position_embeddings=512,
        eos_token_id=256,
    )
    (folder / "model.safetensors").unlink()
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)


def kill(real: Real, worker: WorkerProcess) -> None:
    worker.kill()
    real.worker("w1")


def stop(real: Real, worker: WorkerProcess) -> None:
    assert worker.terminate() == 0
    real.worker("w1")


def sleep(real: Real, worker: WorkerProcess) -> None:
    real.worker("w1")
    wait_for(lambda: len(real.harness.repository.workers(2.0)) == 2, "both workers live")
    real.harness.put_to_sleep(worker)
    shards = real.harness.repository.list_jobs()[0].id
    wait_for(
        lambda: any(shard.epoch > 1 for shard in real.harness.shards(shards)), "a shard is claimed again", seconds=120
    )
    worker.process.send_signal(signal.SIGCONT)


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param(kill, id="01-killed"),
        pytest.param(sleep, id="03-asleep", marks=pytest.mark.slow),
        pytest.param(stop, id="32-stopped", marks=pytest.mark.slow),
    ],
)
def test_tokens_are_those_of_an_undisturbed_run(real: Real, fault: Callable[[Real, WorkerProcess], None]) -> None:
    worker = real.worker("w0")
    disturbed = real.submit("disturbed")
    real.harness.wait_for_rows(disturbed, 1, seconds=240)  # it loads a real model first

    fault(real, worker)
    real.harness.wait_for_end(disturbed, seconds=240)
    undisturbed = real.submit("undisturbed")
    real.harness.wait_for_end(undisturbed, seconds=240)

    texts = [real.check(job_id)["output_text"].to_pylist() for job_id in (disturbed, undisturbed)]
    assert texts[0] == texts[1]
    tokens = real.tokens()
    assert tokens[disturbed] == tokens[undisturbed]
    assert Counter(map(len, tokens[disturbed].values())) == {1: ROWS}
    assert sum(shard.attempts for shard in real.harness.shards(disturbed)) > 2


@pytest.mark.slow
def test_41_what_a_cancelled_job_has_is_what_an_undisturbed_run_has(real: Real) -> None:
    real.worker("w0")
    cancelled = real.submit("cancelled")
    real.harness.wait_for_rows(cancelled, 4, seconds=240)

    real.harness.repository.request_cancel(cancelled, at_once=True)
    ended = real.harness.wait_for_end(cancelled, seconds=240)
    whole = real.submit("whole")
    real.harness.wait_for_end(whole, seconds=240)

    assert ended.state is JobState.CANCELLED
    part, all_rows = real.check(cancelled), real.check(whole)
    done = pc.equal(part["status"].cast(pa.string()), "succeeded")
    assert 4 <= pc.sum(done).as_py() < ROWS
    assert part.filter(done)["output_text"].to_pylist() == all_rows.filter(done)["output_text"].to_pylist()
    tokens = real.tokens()
    assert all(tokens[whole][row] == ids for row, ids in tokens[cancelled].items())
