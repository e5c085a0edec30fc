"""The greedy choice over tiles equals argmax and log-softmax over the whole row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from engine.attention.base import AttentionBackend
from engine.attention.cpu import NativeAttention
from engine.attention.pick import Best
from engine.attention.plain import PlainAttention

BACKENDS: dict[str, Callable[[], AttentionBackend]] = {
    "plain": lambda: PlainAttention(torch.device("cpu")),
    "native": NativeAttention,
}


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest) -> AttentionBackend:
    return BACKENDS[request.param]()


def pick(backend: AttentionBackend, logits: torch.Tensor, width: int) -> Best:
    best = Best.start(len(logits), logits.device)
    for begin in range(0, logits.shape[1], width):
        backend.pick(logits[:, begin : begin + width].clone(), begin, best)
    return best


@pytest.mark.parametrize("width", [1, 13, 64, 1000])
def test_token_and_log_probability_equal_those_of_the_whole_row(backend: AttentionBackend, width: int) -> None:
    logits = torch.randn(5, 333, generator=torch.Generator().manual_seed(1)) * 8

    best = pick(backend, logits, width)

    assert torch.equal(best.token, logits.argmax(dim=1))
    expected = torch.log_softmax(logits, dim=1).gather(1, best.token[:, None])[:, 0]
    torch.testing.assert_close(best.logprob(), expected, rtol=1e-5, atol=1e-5)


def test_the_first_of_equal_logits_wins_within_a_tile_and_across_tiles(backend: AttentionBackend) -> None:
    logits = torch.zeros(1, 40)
    logits[0, [11, 12, 30]] = 4.0

    assert pick(backend, logits, 16).token.tolist() == [11]


@pytest.mark.parametrize("column", [3, 17, 38])
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other(
    backend: AttentionBackend, poison: float, column: int
) -> None:
    logits = torch.randn(3, 39, generator=torch.Generator().manual_seed(1))
    expected = pick(backend, logits, 16).token
    logits[1, column] = poison

    best = pick(backend, logits, 16)

    assert torch.isfinite(best.logprob()).tolist() == [True, False, True]
    assert best.token[[0, 2]].tolist() == expected[[0, 2]].tolist()


def test_logits_of_minus_infinity_have_no_weight_even_as_a_whole_tile(backend: AttentionBackend) -> None:
    logits = torch.randn(2, 60, generator=torch.Generator().manual_seed(1))
    logits[0, :33] = logits[1] = -torch.inf

    best = pick(backend, logits, 16)

    assert best.token[0] == logits[0].argmax()
    torch.testing.assert_close(best.logprob()[0], torch.log_softmax(logits[0], dim=0).max())
    assert not best.logprob()[1].isfinite()
