"""The demo models on programming problems behind one long few-shot prefix equal `generate`."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from engine.build import build_engine
from engine.config import EngineConfig
from engine.request import Request, SamplingParams
from tests.equivalence import tiny

MODELS = Path(__file__).parents[2] / ".cache" / "models"
NEW_TOKENS = 12
TIMEOUT_S = 120

_EXAMPLE = '''def {name}(numbers: list[int], limit: int = {limit}) -> list[int]:
    """Keep the numbers that are {word} than limit, in their order.

    >>> {name}([1, 5, 9], 4)
    """
    return [number for number in numbers if number {sign} limit]


'''
_PREFIX = "".join(
    _EXAMPLE.format(name=f"keep_{word}_{limit}", limit=limit, word=word, sign=sign)
    for limit in range(4)
    for word, sign in (("smaller", "<"), ("larger", ">"))
)
_PROBLEMS = (
    'def fibonacci(n: int) -> int:\n    """Return the n-th Fibonacci number."""\n',
    'def is_palindrome(text: str) -> bool:\n    """Check whether text reads the same backwards."""\n',
    'def count_vowels(text: str) -> int:\n    """Count the vowels in text, whatever their case."""\n',
)


@pytest.mark.models
@pytest.mark.parametrize("name", ["gemma3-270m", "smollm2-135m"])
def test_problems_behind_a_shared_prefix_equal_generate(name: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
    prompts = [tuple(tokenizer(_PREFIX + problem).input_ids) for problem in _PROBLEMS]
    assert min(len(prompt) for prompt in prompts) > 512, "the prefix must be longer than the sliding window"
    expected = tiny.generate(MODELS / name, prompts, NEW_TOKENS)

    engine = build_engine(MODELS / name, EngineConfig(cache_bytes=1 << 28))
    engine.start()
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    rows = [Request(request_id=str(i), job="job", prompt=p, sampling=sampling) for i, p in enumerate(prompts)]
    completions = []
    with engine.feed(rows) as feed:
        while not feed.done:
            arrived = feed.poll(TIMEOUT_S)
            assert arrived or feed.done, "the engine stands still"
            completions += arrived
    engine.stop()

    for completion in completions:
        problem = expected[int(completion.request_id)].explain_difference(completion.token_ids)
        assert problem is None, f"{_PROBLEMS[int(completion.request_id)]}: {problem}"
    assert sum(completion.counters.cached_tokens > 500 for completion in completions) == len(prompts) - 1
