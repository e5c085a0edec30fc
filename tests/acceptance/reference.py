"""What transformers' own `generate` says about a prompt, greedily, in float32: the specification of our output."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

TIE = 1e-4
"""Two logits closer than this are a tie: another order of summing may choose the other token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """Another token that is as good as the chosen one."""

    begin: str  # the text up to and including that token
    follow: Callable[[], Expected]  # what `generate` gives after it


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """One greedy generation, and the branches at its ties."""

    text: str
    num_tokens: int  # without the end token
    ended: bool  # by an end token, not by the limit
    branches: tuple[Branch, ...] = ()

    def agrees_with(self, text: str, num_tokens: int, ended: bool) -> bool:
        """True for this generation, and for one that leaves it at a tie and is what `generate` gives from there."""
        if (text, num_tokens, ended) == (self.text, self.num_tokens, self.ended):
            return True
        return any(
            text.startswith(branch.begin) and branch.follow().agrees_with(text, num_tokens, ended)
            for branch in self.branches
        )


class Reference:
    """One model, loaded as transformers loads it. What it was asked once it knows."""

    def __init__(self, folder: Path, tie: float = TIE) -> None:
        self._known: dict[tuple[int, tuple[int, ...], tuple[int, ...]], Expected] = {}
        self._tie = tie
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._chat = AutoTokenizer.from_pretrained(folder)
        ends = self._model.generation_config.eos_token_id
        self._ends = set(ends) if isinstance(ends, list) else {ends}

    def raw(self, prompt: str, max_tokens: int) -> Expected:
        """The continuation of a prompt as it is."""
        return self._ask(self._tokenizer.encode(prompt).ids, max_tokens)

    def chat(self, prompt: str, max_tokens: int) -> Expected:
        """The answer to a prompt as one user message in the model's chat template."""
        text = self._chat.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return self._ask(self._tokenizer.encode(text, add_special_tokens=False).ids, max_tokens)

    def _ask(self, ids: list[int], max_tokens: int, taken: tuple[int, ...] = ()) -> Expected:
        """The generation whose first tokens are `taken`."""
        key = (max_tokens, tuple(ids), taken)
        if key not in self._known:
            self._known[key] = self._generate(ids, max_tokens, taken)
        return self._known[key]

    def _generate(self, ids: list[int], max_tokens: int, taken: tuple[int, ...]) -> Expected:
        if len(taken) == max_tokens or (taken and taken[-1] in self._ends):
            return self._expected(taken)
        prompt = [*ids, *taken]
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=max_tokens - len(taken),
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        new = out.sequences[0, len(ids) :].tolist()
        branches = []
        for step, logits in enumerate(out.logits, len(taken)):
            near = (logits[0] > logits[0].max() - self._tie).nonzero().flatten().tolist()
            for other in near:
                if other != new[step]:
                    chosen = (*new[:step], other)
                    begin = self._decode(chosen).rstrip("\ufffd")  # a character may end in a later token
                    branches.append(Branch(begin=begin, follow=partial(self._ask, ids, max_tokens, chosen)))
        return self._expected(new, tuple(branches))

    def _expected(self, new: Sequence[int], branches: tuple[Branch, ...] = ()) -> Expected:
        ended = new[-1] in self._ends
        kept = new[:-1] if ended else new
        return Expected(text=self._decode(kept), num_tokens=len(kept), ended=ended, branches=branches)

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)
