"""Copies made at once have the effect of copies made one after the other."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.model.copies import CopyBatch, copy_batches
from engine.step import NULL_BLOCK, BlockCopy

Memory = dict[tuple[int, int], str]

# Few blocks, so that chains, circles and targets that are written twice are common.
COPIES = st.lists(st.builds(BlockCopy, group=st.integers(0, 2), source=st.integers(1, 5), target=st.integers(1, 5)))


def in_group(*pairs: tuple[int, int], group: int = 0) -> list[BlockCopy]:
    return [BlockCopy(group, source, target) for source, target in pairs]


def full_memory() -> Memory:
    return {(group, block): f"group {group}, block {block}" for group in range(3) for block in range(1, 6)}


def after_copies(copies: Sequence[BlockCopy]) -> Memory:
    memory = full_memory()
    for copy in copies:
        memory[copy.group, copy.target] = memory[copy.group, copy.source]
    return memory


def after_batches(batches: Sequence[CopyBatch]) -> Memory:
    memory = full_memory()
    for batch in batches:
        read = [memory[batch.group, source] for source in batch.sources]
        for target, content in zip(batch.targets, read, strict=True):
            memory[batch.group, target] = content
    return memory


@given(COPIES)
def test_the_batches_have_the_effect_of_the_copies_in_order(copies: list[BlockCopy]) -> None:
    batches = copy_batches(copies)

    assert after_batches(batches) == after_copies(copies)


@given(COPIES)
def test_a_group_has_one_batch_and_only_if_something_in_it_changes(copies: list[BlockCopy]) -> None:
    before, after = full_memory(), after_copies(copies)
    changed = sorted(key for key in after if after[key] != before[key])

    batches = copy_batches(copies)

    assert [batch.group for batch in batches] == sorted({group for group, _ in changed})
    assert sorted((batch.group, target) for batch in batches for target in batch.targets) == changed


def test_a_chain_carries_the_first_block_to_the_end() -> None:
    assert copy_batches(in_group((1, 2), (2, 3))) == (CopyBatch(0, (1, 1), (2, 3)),)


def test_a_source_that_a_later_copy_overwrites_is_read_as_it_was() -> None:
    assert copy_batches(in_group((2, 3), (1, 2))) == (CopyBatch(0, (2, 1), (3, 2)),)


def test_the_last_copy_to_a_target_wins() -> None:
    assert copy_batches(in_group((1, 3), (2, 3))) == (CopyBatch(0, (2,), (3,)),)


def test_copies_of_one_block_to_many_are_one_batch() -> None:
    assert copy_batches(in_group((1, 2), (1, 3), (1, 4))) == (CopyBatch(0, (1, 1, 1), (2, 3, 4)),)


def test_groups_do_not_meet() -> None:
    copies = in_group((1, 2), group=1) + in_group((2, 3), group=0)

    assert copy_batches(copies) == (CopyBatch(0, (2,), (3,)), CopyBatch(1, (1,), (2,)))


def test_no_copies_are_no_batch() -> None:
    assert copy_batches(()) == ()


@pytest.mark.parametrize("pair", [(NULL_BLOCK, 1), (1, NULL_BLOCK)])
def test_a_copy_from_or_to_null_is_a_bug(pair: tuple[int, int]) -> None:
    with pytest.raises(AssertionError, match="from or to block 0"):
        copy_batches(in_group(pair))
