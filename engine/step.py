"""What the scheduler hands to the runner, and what comes back: one step, as plain numbers.

A step is one forward pass: some prefill chunks and some decodes together. A decode is a chunk of one token.
Neither side of this seam knows the other: the scheduler makes no tensors, the runner frees no blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.request import SamplingParams

NULL_BLOCK = 0
"""Block 0, or state slot 0, of every group: never allocated, stands for "not needed here"."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The tokens of one sequence that run in this step.

    |  0 .. start  | start .. start+length |  not yet  |
    |   computed   |     computed now      |           |
    """

    sequence_id: int
    token_ids: Sequence[int]  # prompt + generated so far; read-only, longer than start + length is allowed
    start: int
    length: int
    tables: tuple[Sequence[int], ...]  # per group: block id by absolute block position, NULL_BLOCK where not needed;
    # in a linear group only the state slot, which counts as zeros for a chunk that starts at 0
    sample_indices: tuple[int, ...]  # one token is drawn from the last row for each; none if the chunk ends before the
    # end of token_ids, several where a prompt ends whose samples fork there
    sampling: SamplingParams
    prompt_len: int


@dataclass(frozen=True, slots=True)
class BlockCopy:
    """All that one block holds, in all layers of its group, into another; in a linear group, a state slot."""

    group: int
    source: int
    target: int


@dataclass(frozen=True, slots=True)
class Step:
    """One forward pass, after these copies, which are made as if one after the other."""

    chunks: tuple[Chunk, ...]
    copies: tuple[BlockCopy, ...] = ()

    @property
    def num_tokens(self) -> int:
        return sum(chunk.length for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Sampled:
    """What the runner says of one sample of a chunk: a token, or why there is none. In order of chunks and samples."""

    sequence_id: int
    token_id: int
    logprob: float
    error: str | None = None  # set when no token can be chosen; token_id is then meaningless
    error_code: str = "non_finite_logits"
