"""The tiny families as engines, and how tests drive them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.config import EngineConfig
from engine.loop import Engine
from engine.model.load import LoadedModel, load_model
from engine.model.runner import ModelRunner
from engine.request import Completion, Request, SamplingParams
from tests.equivalence import tiny

NEW_TOKENS = 24
SHARED = 29  # more than twice the window of 12, and not a multiple of the block size of 4
LENGTHS = (30, 33, 41, 58, 35, 47)
SHORT = (2, 3, 4, 5, 6, 7)  # shorter than the window: even a sequence of sliding layers alone grows past what is free
TIMEOUT_S = 60
CONFIG = EngineConfig(block_size=4, max_batch_tokens=24, max_sequences=4, num_blocks=200)
SHARING_MODES = {
    "prefix sharing": CONFIG,
    "block sharing": replace(CONFIG, use_prefix_sharing=False),
    "no sharing": replace(CONFIG, use_prefix_sharing=False, allow_block_sharing=False),
}


@dataclass(frozen=True, slots=True)
class Subject:
    """One family, loaded once, with the answers to hold it to."""

    source: Path
    loaded: LoadedModel
    expected: list[tiny.Expected]
    short: list[tiny.Expected]

    @classmethod
    def of(cls, source: Path) -> Subject:
        expected = tiny.generate(source, tiny.prompts(LENGTHS, SHARED), NEW_TOKENS)
        short = tiny.generate(source, tiny.prompts(SHORT), NEW_TOKENS)
        return cls(source, load_model(source, CONFIG), expected, short)

    def engine(self, config: EngineConfig) -> Engine:
        assert config.num_blocks is not None
        slots = config.num_state_slots or self.loaded.num_slots
        loaded = replace(self.loaded, num_blocks=config.num_blocks, num_slots=slots)
        resolved = loaded.resolve(config)
        runner = ModelRunner(loaded, resolved)
        return Engine(runner, loaded.groups, resolved, loaded.eos_token_ids, loaded.max_model_len)


SubjectOf = Callable[[str], Subject]


def requests(prompts: Sequence[Sequence[int]], **options: object) -> list[Request]:
    sampling = SamplingParams(max_tokens=NEW_TOKENS, ignore_eos=True)
    return [
        Request(request_id=str(i), job="job", prompt=prompt, sampling=replace(sampling, **options))  # type: ignore[arg-type]
        for i, prompt in enumerate(prompts)
    ]


def complete(engine: Engine, wanted: Sequence[Request]) -> list[Completion]:
    """All completions in the order of the requests."""
    done: list[Completion] = []
    with engine.feed(wanted) as feed:
        while not feed.done:
            arrived = feed.poll(TIMEOUT_S)
            assert arrived or feed.done, "the engine stands still"
            done += arrived
    engine.check_integrity()
    return sorted(done, key=lambda completion: (int(completion.request_id), completion.sample_index))


def assert_expected(expected: Sequence[tiny.Expected], completions: Sequence[Completion]) -> None:
    for answer, completion in zip(expected, completions, strict=True):
        assert completion.finish_reason == "length", completion.error_message
        problem = answer.explain_difference(completion.token_ids)
        assert problem is None, f"row {completion.request_id}: {problem}"
