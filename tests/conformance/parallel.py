"""Laws of several threads on one database; they hold for processes too, since no law rests on shared memory."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor

from storage.records import ShardId
from storage.repository import Repository
from storage.states import ShardState
from tests.conformance.samples import LEASE, finish, queued_job


def test_eight_threads_claim_two_hundred_shards_each_exactly_once(repository: Repository) -> None:
    job = queued_job(repository, num_shards=200, rows=1)
    ids = [shard.id for shard in repository.shards(job.id)]

    def claim_some(worker: int) -> list[tuple[ShardId, str]]:
        wanted = (ids + ids)[worker * 25 : worker * 25 + 75]  # each shard is wanted by three threads
        return [(i, f"w{worker}") for i in wanted if repository.claim_shard(i, f"w{worker}", LEASE) is not None]

    with ThreadPoolExecutor(8) as threads:
        won = [claim for claims in threads.map(claim_some, range(8)) for claim in claims]

    assert sorted(shard_id for shard_id, _ in won) == sorted(ids)
    owners = {shard.id: shard.lease_owner for shard in repository.shards(job.id)}
    assert owners == dict(won)
    repository.check_integrity()


def test_dispatchers_in_parallel_share_one_window(repository: Repository) -> None:
    queued_job(repository, num_shards=100, rows=1)

    with ThreadPoolExecutor(4) as threads:
        hints = [
            hint for found in threads.map(lambda _: repository.dispatch(None, 20, LEASE), range(8)) for hint in found
        ]

    assert len(hints) == len({hint.shard_id for hint in hints}) == 20


def test_workers_and_a_cancel_in_parallel_never_wait_for_each_other(repository: Repository) -> None:
    job = queued_job(repository, num_shards=40)
    shards = repository.shards(job.id)

    def work(shard_id: ShardId) -> None:
        if claim := repository.claim_shard(shard_id, "gpu0@a", LEASE):
            finish(repository, claim.shard)

    with ThreadPoolExecutor(4) as threads:
        done = [threads.submit(work, shard.id) for shard in shards]
        done.insert(20, threads.submit(lambda: repository.request_cancel(job.id) and None))
        for future in done:
            future.result(timeout=60)

    states = Counter(shard.state for shard in repository.shards(job.id))
    assert states[ShardState.DONE] + states[ShardState.CANCELLED] == 40
    assert repository.get_job(job.id).rows_succeeded == 10 * states[ShardState.DONE]
    repository.check_integrity()
