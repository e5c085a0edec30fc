"""A schedule: seeded moves of the scheduler over simulated processes, then calm, then the laws (C1, C6, C8).

Every move may be a crash, a pause beyond the lease, a drain, a lost, doubled or reordered hint, a lost answer, a
request that outlives its process, a way to SQL that is cut, a cancel, or a jump of the database's clock.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from storage.states import JOB_FINAL, QUARANTINE_CRASHES, JobState, Outcome, RowStatus, ShardState
from tests.faults.processes import Worker
from tests.faults.reconcilers import Reconciler
from tests.faults.world import LEASE, MAX_ATTEMPTS, ROTTEN, World

NUM_WORKERS, NUM_RECONCILERS = 2, 2
MOVES = (20, 150)
CALM_ROUNDS = 60  # until then a job without faults has ended, whatever it went through before


Fault = Callable[["Schedule"], None]


class Schedule:
    """The moves of one seed. `run` raises AssertionError, with the seed and what happened, when a law is broken."""

    def __init__(self, world: World, seed: int, kinds: Sequence[Fault] = (), rate: float = 0.16) -> None:
        """`kinds` of faults, or all, that happen so often."""
        self.world = world
        self.seed = seed
        self.kinds = kinds or FAULTS
        self.rate = rate
        self.faults = Counter[str]()
        world.begin(seed)
        self.workers = [Worker(world, f"w{i}") for i in range(NUM_WORKERS)]
        self.reconcilers = [Reconciler(world, f"r{i}") for i in range(NUM_RECONCILERS)]

    def run(self) -> Counter[str]:
        """The faults that happened, by name."""
        try:
            for _ in range(self.world.random.randint(*MOVES)):
                self._move()
            self._calm()
            check(self.world)
        except Exception as error:
            log = "\n".join(self.world.log)
            raise AssertionError(f"seed {self.seed}: {type(error).__name__}: {error}\n{log}") from error
        return self.faults

    # --- moves ------------------------------------------------------------------------------------------------
    def _move(self) -> None:
        random, clock = self.world.random, self.world.clock
        clock.advance(random.random())
        if random.random() < self.rate:
            fault = random.choice(self.kinds)
            self.faults[fault.__name__] += 1
            self.world.log.append(fault.__name__)
            fault(self)
            return
        awake = [one for one in (*self.workers, *self.reconcilers) if one.wakes_at <= clock.steady]
        if not awake:
            return
        process = random.choice(awake)
        for _ in range(random.randint(1, 6)):
            if isinstance(process, Worker):
                random.choice((process.step, process.step, process.step, process.beat, process.take_hint))()
            else:
                process.step()

    def crash_worker(self) -> None:
        i = self.world.random.randrange(NUM_WORKERS)
        name = self.world.random.choice((f"w{i}", f"w{i}-again"))  # the old name takes over, a new one waits
        self._outlive(self.workers[i])
        self.workers[i] = Worker(self.world, name)

    def crash_reconciler(self) -> None:
        i = self.world.random.randrange(NUM_RECONCILERS)
        self.reconcilers[i] = Reconciler(self.world, f"r{i}")

    def _outlive(self, worker: Worker) -> None:
        """Requests that the dead process had sent are executed later, or never."""
        for steps in worker.running.values():
            if self.world.random.random() < 0.5:
                self.world.late.append(lambda steps=steps: next(steps, None))
        worker.network.down = False

    def late_request(self) -> None:
        if self.world.late:
            self.world.late.pop(self.world.random.randrange(len(self.world.late)))()

    def pause(self) -> None:
        process = self.world.random.choice((*self.workers, *self.reconcilers))
        process.wakes_at = self.world.clock.steady + self.world.random.choice((2.0, LEASE + 1, 2 * LEASE))

    def drain(self) -> None:
        self.world.random.choice(self.workers).draining = True

    def cut(self) -> None:
        process = self.world.random.choice((*self.workers, *self.reconcilers))
        process.network.down = not process.network.down

    def lose_answer(self) -> None:
        process = self.world.random.choice((*self.workers, *self.reconcilers))
        process.network.loses_answers += self.world.random.randint(1, 2)

    def double_hints(self) -> None:
        self.world.queue.extend(self.world.queue[:3])

    def reorder_hints(self) -> None:
        self.world.random.shuffle(self.world.queue)

    def lose_hints(self) -> None:
        del self.world.queue[self.world.random.randrange(len(self.world.queue) + 1) :]

    def jump(self) -> None:
        """Of the database's clock alone: nobody's heartbeat came in time, or every lease is far too long."""
        self.world.clock.database += self.world.random.choice((LEASE + 1, LEASE + 1, -LEASE, 3 * LEASE))

    def wait(self) -> None:
        self.world.clock.advance(LEASE + 1)

    def death(self) -> None:
        """A crash that is noticed, so that shards are split."""
        self.crash_worker()
        self.wait()
        for reconciler in self.reconcilers:
            for _ in range(12):
                reconciler.step()

    def rot(self) -> None:
        """A file is lost, or not what was written."""
        world = self.world
        whole = sorted(world.files.keys() - world.rotten)
        split = [shard for shard in world.repository.shards(world.job_id) if shard.state is ShardState.SPLIT]
        keys = [each.key for shard in split for each in world.repository.segments(shard.id)]
        if whole:
            world.rotten.add(world.random.choice(keys or whole))

    def cancel(self) -> None:
        if self.world.random.random() < 0.2:
            self.world.repository.request_cancel(self.world.job_id)

    # --- calm -------------------------------------------------------------------------------------------------
    def _calm(self) -> None:
        """C8: without faults the job ends."""
        world = self.world
        while world.late:
            self.late_request()
        for process in (*self.workers, *self.reconcilers):
            process.network.down, process.network.loses_answers, process.wakes_at = False, 0, 0.0
        for i, worker in enumerate(self.workers):
            if worker.draining:
                self.workers[i] = Worker(world, worker.name)
        for _ in range(CALM_ROUNDS):
            if world.repository.get_job(world.job_id).state in JOB_FINAL:
                return
            world.clock.advance(0.3 * LEASE)  # never just a lease: the databases differ in their last digits
            for worker in self.workers:
                worker.beat()
                worker.take_hint()
                for _ in range(12):
                    worker.step()
            for reconciler in self.reconcilers:
                for _ in range(8):
                    reconciler.step()
        raise AssertionError("the job does not end although nothing is wrong any more")


FAULTS = (
    *(Schedule.crash_worker, Schedule.crash_worker, Schedule.crash_reconciler, Schedule.late_request),
    *(Schedule.pause, Schedule.pause, Schedule.drain, Schedule.cut, Schedule.lose_answer, Schedule.lose_answer),
    *(Schedule.double_hints, Schedule.reorder_hints, Schedule.lose_hints, Schedule.jump, Schedule.wait),
    *(Schedule.cancel, Schedule.rot),
)
DEATHS_AND_ROT = (
    *(Schedule.death, Schedule.death, Schedule.death),
    *(Schedule.rot, Schedule.lose_answer, Schedule.late_request),
)


def check(world: World) -> None:
    """C1 and C6, and what the repository says of itself."""
    repository, job_id = world.repository, world.job_id
    repository.check_integrity()
    job = repository.get_job(job_id)
    _check_shards(world)
    if job.error == ROTTEN:
        assert job.state is JobState.FAILED, f"a job whose files are rotten is {job.state}"
        assert world.rotten, "nothing was rotten"
        return
    rows = {row for shard in world.shards for row in range(shard.row_lo, shard.row_hi)}
    assert world.manifest is not None, "nothing was published"
    assert world.manifest.keys() == rows, "rows were lost or made up"
    counts = Counter(world.manifest.values())
    assert counts[RowStatus.SUCCEEDED] == job.rows_succeeded, "succeeded rows differ from their count"
    assert counts[RowStatus.ERRORED] == job.rows_errored, "errored rows differ from their count"
    assert counts[RowStatus.CANCELED] == job.rows_canceled, "canceled rows differ from their count"
    assert not counts[RowStatus.CANCELED] or job.state in (JobState.CANCELLED, JobState.FAILED)


def _check_shards(world: World) -> None:
    assert len(world.claims) == len(set(world.claims.values())), "an epoch was given twice"
    claimed = Counter(shard_id for shard_id, _ in world.claims.values())
    outcomes = world.outcomes(world.job_id)
    for shard in world.repository.shards(world.job_id):
        sealed = [row for segment in world.repository.segments(shard.id) for row in world.files[segment.key]]
        assert len(sealed) == len(set(sealed)), f"a row of shard {shard.id} was sealed twice"
        ends = outcomes.get(shard.id, {})
        commits = [epoch for epoch, outcome in ends.items() if outcome == Outcome.COMMITTED]
        assert commits == ([shard.epoch] if shard.state is ShardState.DONE else []), f"{shard}: commits {commits}"
        assert shard.state is not ShardState.DONE or str(shard.out_key).endswith(f".e{shard.epoch}.parquet"), shard
        assert claimed[shard.id] <= shard.epoch, "a claim that SQL does not know"
        assert shard.crashes <= QUARANTINE_CRASHES + 1, shard
        assert shard.parent_id is None or shard.crashes <= 1, shard
        assert shard.failures <= MAX_ATTEMPTS, shard
