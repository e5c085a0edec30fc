"""Random numbers as a pure function of (seed, sample index, token position): nothing is drawn, everything is looked up.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"): the seed is the key, sample index and
position are the counter. A row's numbers therefore do not depend on its neighbours, its shard or its attempt.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Words = NDArray[np.uint64]  # 32-bit words in 64-bit lanes, so that a product keeps its high half

_MASK = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (np.uint64(0x9E3779B9), np.uint64(0xBB67AE85))
_ROUNDS = 10


def philox(counter: tuple[Words, Words, Words, Words], key: tuple[Words, Words]) -> tuple[Words, Words, Words, Words]:
    """Four random 32-bit words for each lane of the counter."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        left, right = _MULTIPLIERS[0] * c0, _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (right >> _SHIFT) ^ c1 ^ k0, right & _MASK, (left >> _SHIFT) ^ c3 ^ k1, left & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniforms(seeds: Sequence[int], sample_indices: Sequence[int], positions: Sequence[int]) -> NDArray[np.float64]:
    """One number in [0, 1) with 53 random bits for each (seed, sample index, position)."""
    seed = np.array([value & 0xFFFFFFFFFFFFFFFF for value in seeds], dtype=np.uint64)
    sample = np.array(sample_indices, dtype=np.uint64)
    position = np.array(positions, dtype=np.uint64)
    zero = np.zeros_like(seed)
    high, low, _, _ = philox(
        (position & _MASK, position >> _SHIFT, sample & _MASK, zero), (seed & _MASK, seed >> _SHIFT)
    )
    bits = ((high << _SHIFT) | low) >> np.uint64(11)
    return bits.astype(np.float64) * 2.0**-53
