"""What a runner allocates for good: the blocks and slots that the sizes say, and nothing beside them."""

from __future__ import annotations

import gc
from dataclasses import replace

import pytest
import torch

from engine.loop import Engine
from engine.model.runner import ModelRunner
from engine.model.states import slot_bytes
from tests.equivalence.subjects import CONFIG, SubjectOf, complete, requests

NUM_BLOCKS, NUM_SLOTS = 200, 11


def tensors() -> list[torch.Tensor]:
    """All that live, each storage once. Who holds the list keeps their addresses from being used again."""
    gc.collect()
    found = [each for each in gc.get_objects() if issubclass(type(each), torch.Tensor) and each.layout is torch.strided]
    return list({each.untyped_storage().data_ptr(): each for each in found}.values())


def new_bytes(before: list[torch.Tensor]) -> int:
    known = {each.untyped_storage().data_ptr() for each in before}
    storages = [each.untyped_storage() for each in tensors()]
    return sum(storage.nbytes() for storage in storages if storage.data_ptr() not in known)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt_oss", "qwen3_next", "lfm3", "mamba2"])
def test_a_runner_allocates_its_blocks_and_slots_and_no_more(
    family: str, dtype: torch.dtype, subject: SubjectOf
) -> None:
    loaded = replace(subject(family).loaded, num_blocks=NUM_BLOCKS, dtype=dtype)
    loaded = replace(loaded, num_slots=NUM_SLOTS if loaded.states else 0)
    blocks = NUM_BLOCKS * sum(group.block_bytes(dtype.itemsize) for group in loaded.paged_groups)
    before = tensors()

    runner = ModelRunner(loaded, loaded.resolve(CONFIG))

    assert new_bytes(before) == blocks + loaded.num_slots * slot_bytes(loaded.states)
    del runner


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen3_next", "lfm3", "mamba2"])
def test_steps_leave_nothing_behind_but_indices_of_the_last_one(family: str, subject: SubjectOf) -> None:
    prompts = [answer.prompt for answer in subject(family).expected]
    loaded = replace(subject(family).loaded, num_blocks=NUM_BLOCKS)
    config = loaded.resolve(CONFIG)
    runner = ModelRunner(loaded, config)
    engine = Engine(runner, loaded.groups, config, loaded.eos_token_ids, loaded.max_model_len)
    before = tensors()
    engine.start()

    complete(engine, requests(prompts, num_samples=2))
    engine.stop()

    assert new_bytes(before) <= 8 * CONFIG.max_batch_tokens
