"""Random numbers are looked up, not drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from engine.random import philox, uniforms


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_authors_known_answers(counter: list[int], key: list[int], expected: list[int]) -> None:
    lanes = [np.array([word], dtype=np.uint64) for word in counter + key]

    words = philox((lanes[0], lanes[1], lanes[2], lanes[3]), (lanes[4], lanes[5]))

    assert [int(word[0]) for word in words] == expected


def test_a_number_depends_on_its_own_seed_sample_and_position_only() -> None:
    together = uniforms([1, 1, 1, 2, -5], [0, 0, 1, 0, 3], [7, 8, 7, 7, 1 << 40])

    alone = [uniforms([s], [i], [p])[0] for s, i, p in [(1, 0, 7), (1, 0, 8), (1, 1, 7), (2, 0, 7), (-5, 3, 1 << 40)]]

    assert together.tolist() == alone
    assert len(set(alone)) == len(alone)


@pytest.mark.parametrize("varied", ["seed", "sample", "position"])
def test_numbers_are_uniform_along_every_argument(varied: str) -> None:
    count = 20_000
    fixed = [3] * count
    seeds, samples, positions = (range(count) if varied == name else fixed for name in ("seed", "sample", "position"))

    numbers = uniforms(seeds, samples, positions)

    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert stats.kstest(numbers, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 0.03
