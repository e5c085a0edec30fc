"""Products by the C kernel: right for every shape, and the same bits for a row in every batch."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from engine.attention.pick import Best, pick_in_torch
from engine.model.native_linear import NativeLinears

Activation = Callable[[torch.Tensor], torch.Tensor]


def gelu_tanh(x: torch.Tensor) -> torch.Tensor:
    return functional.gelu(x, approximate="tanh")


INPUTS = (1, 3, 4, 31, 64, 130)
OUTPUTS = (1, 15, 16, 32, 33, 95, 200)


@pytest.fixture(scope="module")
def make() -> NativeLinears:
    return NativeLinears()


@pytest.mark.parametrize("inputs", INPUTS)
@pytest.mark.parametrize("outputs", OUTPUTS)
@pytest.mark.parametrize("has_bias", [False, True])
def test_equals_the_plain_product(make: NativeLinears, inputs: int, outputs: int, has_bias: bool) -> None:
    torch.manual_seed(inputs * outputs)
    weight, bias = torch.randn(outputs, inputs), torch.randn(outputs) if has_bias else None
    linear = make(weight, bias)
    for count in (0, 1, 2, 5, 6, 7, 8, 9, 17, 40, 300):
        rows = torch.randn(count, inputs)
        expected = functional.linear(rows.double(), weight.double(), None if bias is None else bias.double())

        torch.testing.assert_close(linear(rows).double(), expected, rtol=1e-5, atol=1e-5 * inputs**0.5)


def test_a_layer_without_outputs_gives_rows_of_nothing(make: NativeLinears) -> None:
    assert make(torch.zeros(0, 8), None)(torch.zeros(3, 8)).shape == (3, 0)


def test_the_last_dimension_is_the_row_wherever_it_lies(make: NativeLinears) -> None:
    weight = torch.randn(40, 24)
    linear = make(weight, None)
    wide, turned = torch.randn(2, 5, 100)[:, :, 10:34], torch.randn(24, 7).t()

    assert linear(wide).shape == (2, 5, 40)
    torch.testing.assert_close(linear(wide), wide @ weight.t())
    torch.testing.assert_close(linear(turned), turned @ weight.t())
    torch.testing.assert_close(linear(torch.randn(24)[None])[0].shape, torch.Size([40]))


@pytest.mark.parametrize("threads", [1, 2, 3, 4, 16])
def test_a_row_has_the_same_bits_in_every_batch_and_with_any_number_of_threads(
    make: NativeLinears, threads: int
) -> None:
    torch.manual_seed(1)
    linear = make(torch.randn(200, 70), torch.randn(200))
    rows = torch.randn(530, 70)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    alone = torch.cat([linear(row[None]) for row in rows])
    torch.set_num_threads(threads)
    try:
        for count in (1, 2, 3, 7, 8, 9, 15, 64, 255, 256, 257, 530):
            assert torch.equal(linear(rows[-count:]), alone[-count:])
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("inner", [1, 8, 16, 24, 100])
@pytest.mark.parametrize("has_bias", [(False, False), (True, True), (False, True)])
@pytest.mark.parametrize(("activation", "act"), [(0, functional.silu), (1, gelu_tanh)])
def test_gate_up_and_activation_are_one_product(
    make: NativeLinears, inner: int, has_bias: tuple[bool, bool], activation: int, act: Activation
) -> None:
    torch.manual_seed(inner)
    gate, up = (nn.Linear(24, inner, bias=bias).requires_grad_(False) for bias in has_bias)
    product = make.gate(gate, up, activation)
    for count in (1, 3, 8, 9, 50):
        rows = torch.randn(count, 24)

        torch.testing.assert_close(product(rows), act(gate(rows)) * up(rows))


def test_other_rows_than_the_layer_takes_are_refused(make: NativeLinears) -> None:
    linear = make(torch.randn(8, 4), None)

    with pytest.raises(TypeError, match=r"4 float32 inputs was given torch\.float64"):
        linear(torch.randn(2, 4, dtype=torch.float64))
    with pytest.raises(TypeError, match=r"given torch\.float32 \(2, 5\)"):
        linear(torch.randn(2, 5))


@pytest.mark.parametrize("outputs", [1, 31, 32, 300, 1000])
@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_best_output_is_picked_while_it_is_multiplied(make: NativeLinears, outputs: int, threads: int) -> None:
    torch.manual_seed(outputs)
    weight = torch.randn(outputs, 24)
    weight[outputs // 2] = weight[-1]  # the first of equal ones wins
    linear, before = make(weight, torch.zeros(outputs)), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for count in (1, 9, 300):
            rows = torch.randn(count, 24)
            best, expected = (Best.start(count, rows.device) for _ in range(2))
            for first_column in (0, outputs):
                linear.pick(rows, first_column, best)
                pick_in_torch(linear(rows), first_column, expected)

            assert torch.equal(best.token, expected.token)
            assert torch.equal(best.logit, expected.logit)
            torch.testing.assert_close(best.total, expected.total)
    finally:
        torch.set_num_threads(before)


def test_what_is_no_number_shows_in_the_picked_row_alone(make: NativeLinears) -> None:
    linear, rows = make(torch.randn(400, 24), None), torch.randn(5, 24)
    rows[3, 2] = torch.nan
    best = Best.start(5, rows.device)

    linear.pick(rows, 0, best)

    assert best.logprob().isfinite().tolist() == [True, True, True, False, True]


def test_outputs_of_minus_infinity_have_no_weight_wherever_they_lie(make: NativeLinears) -> None:
    rows, bias = torch.randn(3, 24), torch.zeros(1000)
    bias[:300] = bias[400:990] = -torch.inf  # whole groups, and parts of them
    linear, best = make(torch.randn(1000, 24), bias), Best.start(3, rows.device)

    linear.pick(rows, 0, best)

    logits = linear(rows)
    assert torch.equal(best.token, logits.argmax(dim=1))
    torch.testing.assert_close(best.logprob(), torch.log_softmax(logits, dim=1).amax(dim=1))


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_a_picked_row_has_the_same_bits_in_every_batch_and_with_any_number_of_threads(
    make: NativeLinears, threads: int
) -> None:
    linear, rows = make(torch.randn(1000, 24), None), torch.randn(300, 24)
    whole, before = Best.start(300, rows.device), torch.get_num_threads()
    torch.set_num_threads(1)
    linear.pick(rows, 0, whole)
    torch.set_num_threads(threads)
    try:
        for count in (1, 2, 7, 8, 9, 256, 300):
            part = Best.start(count, rows.device)
            linear.pick(rows[-count:], 0, part)

            assert torch.equal(part.logprob(), whole.logprob()[-count:])
            assert torch.equal(part.token, whole.token[-count:])
    finally:
        torch.set_num_threads(before)
