"""Which rows stay under suspicion when a worker dies, and how many deaths it takes to find one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from jobs import quarantine
from jobs.quarantine import WAVES, cut_waves, divide_crashed, pieces
from storage.errors import DatabaseDown, FileDamaged
from storage.records import Piece
from storage.states import QUARANTINE_CRASHES
from tests.unit.jobs.conftest import MakeJob, MakeShard


def ones(*rows: int, size: int) -> np.ndarray:
    counts = np.zeros(size, dtype=np.int64)
    counts[list(rows)] = 1
    return counts


@pytest.mark.parametrize("num_rows", [0, 1, 2, 7, 8, 9, 64, 65, 256, 1000])
def test_waves_hold_every_row_once_in_order(num_rows: int) -> None:
    waves = cut_waves(num_rows)

    assert [row for part in waves for row in range(num_rows)[part]] == list(range(num_rows))
    assert len(waves) <= WAVES


def test_the_first_wave_with_a_row_that_is_not_sealed_was_in_the_engine() -> None:
    at_start = np.ones(16, dtype=np.int64)
    left = np.array([0, 0, 0, 0, 0, 1, *[1] * 10])

    found = pieces(at_start, left, 100)

    assert found == [Piece(row_lo=105, row_hi=106, num_outputs=1), Piece(row_lo=106, row_hi=116, num_outputs=10)]


def test_rows_that_were_sealed_before_the_attempt_make_no_waves() -> None:
    at_start = ones(1, 3, 9, size=10)

    found = pieces(at_start, ones(3, 9, size=10), 0)

    assert found == [Piece(row_lo=3, row_hi=4, num_outputs=1), Piece(row_lo=9, row_hi=10, num_outputs=1)]


def test_a_piece_counts_the_samples_that_are_missing() -> None:
    at_start, left = np.array([4, 4, 4]), np.array([0, 3, 4])

    assert [piece.num_outputs for piece in pieces(at_start, left, 0)] == [3, 4]


def test_a_worker_that_died_after_the_last_row_was_sealed_leaves_nothing_suspected() -> None:
    assert pieces(np.ones(5, dtype=np.int64), np.zeros(5, dtype=np.int64), 0) == []


@pytest.mark.parametrize("num_rows", [4, 5, 7, 16, 100, 256, 4096])
def test_a_guilty_row_is_found_in_as_many_deaths_as_halving_takes_wherever_it_is(num_rows: int) -> None:
    for guilty in {0, 1, num_rows // 2, num_rows - 2, num_rows - 1}:
        open_rows = np.ones(num_rows, dtype=np.int64)
        deaths = QUARANTINE_CRASHES

        while True:
            deaths += 1
            if open_rows.sum() == 1:
                break
            rows = np.flatnonzero(open_rows)
            left = open_rows.copy()
            for part in cut_waves(len(rows)):  # the waves before the guilty one are sealed
                if guilty in rows[part]:
                    break
                left[rows[part]] = 0
            piece = next(each for each in pieces(open_rows, left, 0) if each.row_lo <= guilty < each.row_hi)
            open_rows = ones(*range(piece.row_lo, piece.row_hi), size=num_rows)

        assert np.flatnonzero(open_rows).tolist() == [guilty]
        assert deaths <= 2 + math.log2(num_rows)


class FakeSql:
    """Two jobs with a shard each that must be divided; `answers` of the first one's split are raised."""

    def __init__(self, make_job: MakeJob, make_shard: MakeShard, error: Exception) -> None:
        self.jobs = {number: make_job(id=number) for number in (1, 2)}
        self.crashed = [make_shard(id=10 * number, job_id=number) for number in (1, 2)]
        self.error = error
        self.asked: list[str] = []

    def crashed_shards(self) -> list[object]:
        return list(self.crashed)

    def get_job(self, job_id: int) -> object:
        return self.jobs[job_id]

    def split_shard(self, shard_id: int, epoch: int, found: object) -> bool:
        if shard_id == 10:
            raise self.error
        self.asked.append(f"split {shard_id}")
        return True

    def fail_job(self, job_id: int, epoch: None, why: str) -> None:
        self.asked.append(f"fail {job_id}: {why}")


@pytest.mark.parametrize("error", [FileDamaged("plan is missing"), OSError(5, "bad disk"), AssertionError("a bug")])
def test_a_job_that_cannot_be_divided_fails_and_the_others_go_on(
    make_job: MakeJob, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    sql = FakeSql(make_job, make_shard, error)
    monkeypatch.setattr(quarantine, "_suspected", lambda repository, job, shard: [])

    assert divide_crashed(sql) == 1  # type: ignore[arg-type]

    failed, divided = sql.asked
    assert failed.startswith("fail 1: shard ")
    assert str(error) in failed
    assert divided == "split 20"


def test_an_answer_of_sql_that_does_not_come_fails_no_job(
    make_job: MakeJob, make_shard: MakeShard, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unanswered(*_: object) -> list[Piece]:
        raise DatabaseDown("no answer")

    sql = FakeSql(make_job, make_shard, AssertionError())
    monkeypatch.setattr(quarantine, "_suspected", unanswered)

    with pytest.raises(DatabaseDown):
        divide_crashed(sql)  # type: ignore[arg-type]

    assert sql.asked == []
