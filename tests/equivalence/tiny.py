"""Tiny random-weight models of `families`, and what transformers' `generate` says of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tests.equivalence.families import FAMILIES, VOCAB_SIZE

TIE = 1e-4
"""Two tokens whose logits differ by less than this are equally good: random weights produce near ties."""


def make_model(family: str, folder: Path) -> Path:
    """Write a seeded model of `family` to `folder` as safetensors."""
    torch.manual_seed(20)
    model = AutoModelForCausalLM.from_config(FAMILIES[family](), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if name.endswith("sinks"):
            torch.nn.init.normal_(weight, std=1.0)
    model.save_pretrained(folder)
    return folder


@dataclass(frozen=True, slots=True)
class Expected:
    """What `generate` gives greedily for one prompt: tokens, and the logits that each was chosen from."""

    source: Path  # the model
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    logits: torch.Tensor  # [len(tokens), vocabulary]

    def explain_difference(self, got: Sequence[int]) -> str | None:
        """None when `got` equals the expected tokens, or leaves them at a tie and then equals what `generate` gives
        after that choice; else what is wrong."""
        for step, (want, have) in enumerate(zip(self.tokens, got, strict=False)):
            if want == have:
                continue
            gap = float(self.logits[step, want] - self.logits[step, have])
            if not gap < TIE:
                return f"token {step} is {have}, expected {want}; it is worse by {gap:.3g} in logit"
            taken = step + 1
            if taken == len(self.tokens):
                break
            (after,) = generate(self.source, [(*self.prompt, *got[:taken])], len(self.tokens) - taken)
            problem = after.explain_difference(got[taken:])
            return None if problem is None else f"after the tie at token {step}: {problem}"
        if len(got) != len(self.tokens):
            return f"{len(got)} tokens, expected {len(self.tokens)}"
        return None


def generate(source: Path, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[Expected]:
    """transformers' own greedy answer, one prompt at a time, EOS ignored."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    answers = []
    for prompt in prompts:
        out = model.generate(
            torch.tensor([list(prompt)]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            max_new_tokens=new_tokens,
            do_sample=False,
            output_logits=True,
            return_dict_in_generate=True,
        )
        tokens = tuple(out.sequences[0, len(prompt) :].tolist())
        answers.append(Expected(source, tuple(prompt), tokens, torch.cat(out.logits)))
    return answers


def prompts(lengths: Sequence[int], shared: int = 0) -> list[tuple[int, ...]]:
    """Random prompts of the given lengths whose first `shared` tokens are the same."""
    generator = torch.Generator().manual_seed(7)
    prefix = torch.randint(3, VOCAB_SIZE, (shared,), generator=generator).tolist()
    tails = [torch.randint(3, VOCAB_SIZE, (length - shared,), generator=generator).tolist() for length in lengths]
    return [tuple(prefix + tail) for tail in tails]
