"""How many blocks each job has in use: a block that k jobs use is charged 1/k to each. Kept up incrementally."""

from __future__ import annotations

from engine.stats import BlockUse

_IDLE_JOBS = 1024  # of the jobs without blocks, so many are remembered: figures are read soon after the last row


class _JobUse:
    """One job's charge in one group, now and over the steps in which it had any."""

    __slots__ = ("now", "num_blocks", "num_steps", "peak", "total")

    def __init__(self) -> None:
        self.num_blocks = 0  # that it has in use now, shared or not
        self.now = 0.0
        self.peak = 0.0
        self.total = 0.0  # blocks x steps
        self.num_steps = 0


class GroupUse:
    """The charges of one group."""

    __slots__ = ("_active", "_idle", "_jobs", "_users")

    def __init__(self, num_blocks: int) -> None:
        self._jobs: dict[str, _JobUse] = {}  # active and idle; one dictionary, which other threads may look into
        self._active: dict[str, _JobUse] = {}  # with blocks in use
        self._idle: dict[str, None] = {}  # without any; who has been so for longest is first, and is forgotten first
        # Per block: the job that has the only reference, or references by job. What nobody shares has no object.
        self._users: list[str | dict[str, int] | None] = [None] * num_blocks

    def add(self, block: int, job: str) -> None:
        users = self._users[block]
        if users is None:
            self._users[block] = job
            self._take(job, 1.0)
            return
        if isinstance(users, str):
            users = self._users[block] = {users: 1}
        if job in users:
            users[job] += 1
            return
        self._recharge(users, -1.0)
        users[job] = 1
        self._take(job, 0.0)
        self._recharge(users, 1.0)

    def remove(self, block: int, job: str) -> None:
        users = self._users[block]
        if isinstance(users, dict):
            if users[job] > 1:
                users[job] -= 1
                return
            self._recharge(users, -1.0)
            del users[job]
            self._recharge(users, 1.0)
            self._users[block] = users or None
            self._give_back(job, 0.0)
            return
        assert users == job, f"block {block} is not charged to job {job}"
        self._users[block] = None
        self._give_back(job, 1.0)

    def _take(self, job: str, charge: float) -> None:
        """One more block of the job's."""
        if job not in self._active:
            self._active[job] = self._jobs.setdefault(job, _JobUse())
            self._idle.pop(job, None)
        use = self._active[job]
        use.num_blocks += 1
        use.now += charge

    def _give_back(self, job: str, charge: float) -> None:
        use = self._active[job]
        use.num_blocks -= 1
        use.now -= charge
        if not use.num_blocks:
            self._rest(job)

    def _rest(self, job: str) -> None:
        """The job has given back its last block; its record stays for a while, to be read."""
        self._active.pop(job).now = 0.0  # drops what rounding left over
        self._idle[job] = None
        if len(self._idle) > _IDLE_JOBS:
            oldest = next(iter(self._idle))
            del self._idle[oldest], self._jobs[oldest]

    def _recharge(self, users: dict[str, int], sign: float) -> None:
        for job in users:
            self._active[job].now += sign / len(users)

    def record_step(self) -> None:
        """Note the charges of this moment: once per step, with its blocks allocated."""
        for use in self._active.values():
            use.peak = max(use.peak, use.now)
            use.total += use.now
            use.num_steps += 1

    def of(self, job: str) -> BlockUse:
        use = self._jobs.get(job)
        if use is None or not use.num_steps:
            return BlockUse()
        return BlockUse(peak=use.peak, mean=use.total / use.num_steps)

    def check_integrity(self, ref: list[int]) -> None:
        by_job = [{users: 1} if isinstance(users, str) else users or {} for users in self._users]
        for block, users in enumerate(by_job):
            assert sum(users.values()) == ref[block], f"block {block} is charged to the wrong number of users"
        in_use = sum(1 for users in by_job if users)
        charged = sum(use.now for use in self._active.values())
        assert abs(in_use - charged) < 1e-6, "the jobs' charges do not add up to the blocks in use"
        jobs = {job for users in by_job for job in users}
        assert self._active.keys() == jobs, "a job with blocks does not count as active, or one without does"
        assert self._jobs.keys() == self._active.keys() | self._idle.keys(), "a job's record is lost or left over"
