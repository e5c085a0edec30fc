"""What the engine gets and what it gives back: requests of token ids in, completions of token ids out.

The engine knows no text: a stop string reaches it as a predicate on token ids (`StopCheck`).
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

GREEDY_BELOW = 1e-5
"""Lower temperatures are greedy: such a distribution has all its weight on one token, and dividing logits by a number
near zero overflows."""

StopCheck = Callable[[int], bool]
"""Called with every new token id of one sequence, in order; True ends the sequence with this token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """How tokens of one request are chosen. Defaults are neutral: greedy, nothing penalised."""

    max_tokens: int = 256
    temperature: float = 0.0  # below GREEDY_BELOW means greedy
    top_k: int = 0  # 0 means off
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    seed: int = 0
    num_samples: int = 1

    @property
    def is_greedy(self) -> bool:
        """True when the most likely token is taken and nothing is drawn."""
        return self.temperature < GREEDY_BELOW

    def problem(self) -> str | None:
        """The first option whose value has no meaning, with it; None when all have one."""
        laws = {
            "temperature": self.temperature >= 0,
            "top_k": self.top_k >= 0,
            "top_p": 0 < self.top_p <= 1,
            "min_p": 0 <= self.min_p <= 1,
            "repetition_penalty": self.repetition_penalty > 0,
            "presence_penalty": True,
            "frequency_penalty": True,
        }
        for name, holds in laws.items():
            value = getattr(self, name)
            if not holds or not abs(value) <= sys.float_info.max:  # this is how a number that is none compares
                return f"{name} is {value!r}, which has no meaning"
        return None


@dataclass(frozen=True, slots=True)
class Junction:
    """Where a prompt parts from later prompts of its plan: `num_users` of them start after these `length` tokens."""

    length: int
    num_users: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt with its sampling parameters; `num_samples` sequences come out of it.

    `request_id` is unique among the requests now in the engine. `job` tags it for the statistics.
    `make_stop` builds a fresh predicate for each sequence, or is None when there are no stop strings.
    `junctions` and `planned_tokens` are what is known in advance of the requests of one feed: at which lengths of this
    prompt later ones start, and after how many of its tokens this one does itself. They never change what comes out.
    """

    request_id: str
    job: str
    prompt: Sequence[int]
    sampling: SamplingParams
    make_stop: Callable[[], StopCheck] | None = None
    junctions: tuple[Junction, ...] = ()  # shortest first; none beyond the prompt
    planned_tokens: int = 0  # fewer than the prompt has


Limits = tuple[tuple[str, int], ...]
"""What kept prompt tokens from being cached, by name: (the layer kind or the rule, tokens), in order of the names."""


def add_limits(*all_limits: Limits) -> Limits:
    total: Counter[str] = Counter()
    for limits in all_limits:
        total.update(dict(limits))
    return tuple(sorted(total.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupCounters:
    """What one sequence did to the blocks of one layer group."""

    allocated: int = 0  # blocks taken fresh from the pool
    shared: int = 0  # blocks taken from the cache: instead of computing them, or for an equal one just computed
    copied: int = 0  # blocks filled by a copy: a partial block that goes on in two ways, a state that is kept
    evicted: int = 0  # cached blocks that lost their content to this sequence's allocations
    evicted_unused: int = 0  # of these, the ones that nobody had taken from the cache

    def __add__(self, other: GroupCounters) -> GroupCounters:
        return GroupCounters(
            allocated=self.allocated + other.allocated,
            shared=self.shared + other.shared,
            copied=self.copied + other.copied,
            evicted=self.evicted + other.evicted,
            evicted_unused=self.evicted_unused + other.evicted_unused,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What one completion cost. Additive: the sum over a job's completions is the job's total.

    A prompt counts once per request, on sample 0: prompt = cached + computed. The prompt tokens that further
    samples had to compute are `forked`; tokens computed again after a preemption are `recomputed`.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    computed_tokens: int = 0
    completion_tokens: int = 0
    forked_tokens: int = 0
    recomputed_tokens: int = 0
    preemptions: int = 0
    planned_tokens: int = 0  # prompt tokens that the plan expected to be cached; counts where the prompt does
    limited_by: Limits = ()
    engine_seconds: float = 0.0  # this sequence's share of the steps that it was part of
    groups: tuple[GroupCounters, ...] = ()

    def __add__(self, other: Counters) -> Counters:
        """The sum, group by group; one side may have no groups."""
        return Counters(
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            cached_tokens=self.cached_tokens + other.cached_tokens,
            computed_tokens=self.computed_tokens + other.computed_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            forked_tokens=self.forked_tokens + other.forked_tokens,
            recomputed_tokens=self.recomputed_tokens + other.recomputed_tokens,
            preemptions=self.preemptions + other.preemptions,
            planned_tokens=self.planned_tokens + other.planned_tokens,
            limited_by=add_limits(self.limited_by, other.limited_by),
            engine_seconds=self.engine_seconds + other.engine_seconds,
            groups=tuple(a + b for a, b in zip_longest(self.groups, other.groups, fillvalue=GroupCounters())),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """The end of one sequence. `finish_reason` is stop, length, abort or error."""

    request_id: str
    job: str
    sample_index: int
    token_ids: tuple[int, ...]
    finish_reason: str
    stop_token_id: int | None = None  # the EOS or stop token that ended it; not among token_ids
    cumulative_logprob: float = 0.0
    error_code: str | None = None
    error_message: str | None = None
    counters: Counters = field(default_factory=Counters)
