"""The limit counts what must be computed and read, once, and nothing else."""

from __future__ import annotations

import itertools
import random

import pytest

from ops.bench.limit import (
    Contexts,
    ModelShape,
    Product,
    Rates,
    Segment,
    contexts,
    limit,
    segments,
    shape_of,
    shared_lengths,
)
from ops.bench.work import Work

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 2,
    "vocab_size": 100,
}
PREFIX = [1, 2, 3]
PROMPTS = [[*PREFIX, 4, 5], [*PREFIX, 6], [9, 9]]


def counted(work: Work, window: int | None) -> Contexts:
    """The same by looking at every pair of tokens."""
    wide = window or 10**6
    rows = [(prompt, sample) for prompt in work.prompts for sample in range(work.num_samples)]
    nodes = {tuple(prompt[:end]) for prompt in work.prompts for end in range(1, len(prompt) + 1)}
    users = {node: sum(tuple(prompt[: len(node)]) == node for prompt, _ in rows) for node in nodes}
    shared = own = reads = 0
    for step in range(work.new_tokens - 1):
        seen: set[object] = set()
        for (prompt, sample), position in itertools.product(rows, range(1000)):
            at = len(prompt) + step
            if not at - wide < position <= at:
                continue
            if position < len(prompt):
                node = tuple(prompt[: position + 1])
                shared, own = (shared + 1, own) if users[node] > 1 else (shared, own + 1)
                seen.add(node)
            else:
                own += 1
                seen.add((tuple(prompt), sample, position))
        reads += len(seen)
    prefill = sum(min(len(node), wide) for node in nodes)
    return Contexts(prefill=prefill, shared=shared, own=own, reads=reads)


def flat_rates(**changes: object) -> Rates:
    shapes = [(8, 16), (8, 8), (8, 32), (16, 8), (8, 100)]
    rates: dict[str, object] = {"products": {shape: {1: 1.0} for shape in shapes}}
    rates |= {"prefill": 1.0, "shared": 1.0, "own": 1.0, "bandwidth": 1e9}
    return Rates(**(rates | changes))  # type: ignore[arg-type]


def test_a_shared_prefix_is_one_segment_of_the_tree():
    assert segments(PROMPTS) == [
        Segment(0, 2, users=1, shortest=2),
        Segment(0, 3, users=2, shortest=4),
        Segment(3, 4, users=1, shortest=4),
        Segment(3, 5, users=1, shortest=5),
    ]


def test_a_prompt_within_another_and_one_that_comes_twice_are_computed_once():
    tree = segments([[1, 2], [1, 2, 3], [1, 2, 3]])

    assert tree == [Segment(0, 2, users=3, shortest=2), Segment(2, 3, users=2, shortest=3)]
    assert shared_lengths(Work(prompts=[[1, 2], [1, 2, 3], [1, 2, 3]], new_tokens=2)) == [2, 3, 3]


@pytest.mark.parametrize("window", [None, 1, 3, 5])
@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_contexts_are_those_of_counting_every_pair(window: int | None, num_samples: int, seed: int):
    drawn = random.Random(seed)
    prompts = [[drawn.randrange(2) for _ in range(drawn.randrange(1, 7))] for _ in range(6)]
    work = Work(prompts=list(map(list, set(map(tuple, prompts)))), new_tokens=5, num_samples=num_samples)

    assert contexts(work, segments(work.prompts), window) == counted(work, window)


def test_the_shape_joins_projections_of_one_input_and_counts_layers_by_window():
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]

    shape = shape_of(CONFIG | {"layer_types": kinds, "sliding_window": 7})

    assert shape.products == (Product(8, 16, 3), Product(8, 8, 3), Product(8, 32, 3), Product(16, 8, 3))
    assert shape.head == Product(8, 100)
    assert shape.windows == ((7, 2), (None, 1))


def test_a_kind_of_layer_that_is_not_known_has_no_limit():
    with pytest.raises(ValueError, match="linear_attention"):
        shape_of(CONFIG | {"layer_types": ["linear_attention"]})


def test_the_best_batch_that_the_workload_allows_decides():
    rates = flat_rates(products={(8, 8): {8: 5.0, 64: 9.0, 128: 7.0, 512: 20.0}})

    found = [rates.product(Product(8, 8), most_rows) for most_rows in (1, 8, 20, 100, 129, 9999)]

    assert found == [5.0, 5.0, 9.0, 9.0, 20.0, 20.0]


def test_products_take_their_flops_for_each_token_that_runs():
    work = Work(prompts=PROMPTS, new_tokens=3)
    shape = shape_of(CONFIG)

    parts = limit(shape, work, flat_rates())

    per_token = 2 * 3 * (8 * 16 + 8 * 8 + 8 * 32 + 16 * 8)
    unread = 2 * (8 * 8 + 8 * 8 + 8 * 32 + 16 * 8)  # of five prompt tokens the last layer has keys and values only
    assert parts["prefill_products"] == pytest.approx((8 * per_token - 5 * unread) / 1e9)
    assert parts["decode_products"] == pytest.approx(3 * 2 * per_token / 1e9)
    assert parts["head"] == pytest.approx((3 + 3 * 2) * 2 * 8 * 100 / 1e9)


def test_weights_that_are_read_slowly_decide_instead():
    work = Work(prompts=PROMPTS, new_tokens=3)

    parts = limit(shape_of(CONFIG), work, flat_rates(bandwidth=1e-3))

    assert parts["head"] == pytest.approx(3 * 4 * 8 * 100 / 1e6)  # once for the prompts, once for each of two steps


def test_attention_takes_the_rate_of_its_kind():
    work = Work(prompts=PROMPTS, new_tokens=3)
    shape: ModelShape = shape_of(CONFIG)
    seen = contexts(work, segments(PROMPTS), None)

    parts = limit(shape, work, flat_rates(prefill=2.0, shared=4.0, own=8.0))

    pair = 4 * 4 * 2 * 3 / 1e9  # FLOPs of all layers
    assert parts["prefill_attention"] == pytest.approx(pair * seen.prefill / 2)
    assert parts["decode_attention"] == pytest.approx(pair * (seen.shared / 4 + seen.own / 8))


def test_samples_of_one_prompt_cost_its_prefill_once():
    once, often = (Work(prompts=PROMPTS, new_tokens=3, num_samples=number) for number in (1, 8))

    few, many = (limit(shape_of(CONFIG), work, flat_rates()) for work in (once, often))

    assert many["prefill_products"] == few["prefill_products"]
    assert many["decode_products"] == pytest.approx(8 * few["decode_products"])
