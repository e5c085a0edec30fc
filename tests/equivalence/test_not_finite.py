"""A token whose numbers are not finite fails the rows that contain it, and no row that shares the tokens before it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from engine.loop import Engine
from engine.model.load import load_model
from tests.equivalence.subjects import CONFIG, Subject, complete, requests

BAD = 100
SHARED = [3 + i for i in range(18)]
SPOILED = [*SHARED, BAD, *(50 + i for i in range(20))]  # no token is sampled in the chunk in which the bad one is read
SOUND = [*SHARED, 160, 161, 162]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def subject_with_bad_token(
    request: pytest.FixtureRequest, tiny_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Subject:
    model = AutoModelForCausalLM.from_pretrained(tiny_model(request.param), dtype=torch.float32)
    folder = tmp_path_factory.mktemp("bad")
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.detach().clone())
    model.get_input_embeddings().weight.data[BAD] = float("nan")
    model.save_pretrained(folder)
    return Subject(folder, load_model(folder, CONFIG), expected=[], short=[])


@contextmanager
def running(engine: Engine) -> Iterator[Engine]:
    engine.start()
    yield engine
    engine.stop()


@pytest.mark.parametrize(
    "options", [{}, {"native_attention": False}, {"strict": True}], ids=["native", "torch", "strict"]
)
def test_a_bad_token_fails_its_own_row_alone(subject_with_bad_token: Subject, options: dict[str, bool]) -> None:
    config = replace(CONFIG, max_sequences=1, **options)  # type: ignore[arg-type]
    with running(subject_with_bad_token.engine(config)) as engine:
        (alone,) = complete(engine, requests([SOUND]))
    with running(subject_with_bad_token.engine(config)) as engine:
        spoiled, sound = complete(engine, requests([SPOILED, SOUND]))

    assert (spoiled.finish_reason, spoiled.error_code) == ("error", "non_finite_logits")
    assert (sound.finish_reason, sound.token_ids) == ("length", alone.token_ids)
    assert sound.counters.cached_tokens > 0
