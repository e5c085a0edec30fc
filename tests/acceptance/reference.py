"""What transformers' own `generate` says about a prompt, greedily, in float32: the specification of our output."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

TIE = 1e-4
"""Two logits closer than this are a tie: another order of summing may choose the other token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """The text of one greedy generation. `certain` is what stands before its first tie, if it has one."""

    text: str
    certain: str
    num_tokens: int  # without the end token
    ended: bool  # by an end token, not by the limit

    def agrees_with(self, text: str) -> bool:
        return text == self.text or (self.certain != self.text and text.startswith(self.certain))


class Reference:
    """One model, loaded as transformers loads it. What it was asked once it knows."""

    def __init__(self, folder: Path) -> None:
        self._known: dict[tuple[int, ...], Expected] = {}
        self._model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._chat = AutoTokenizer.from_pretrained(folder)

    def raw(self, prompt: str, max_tokens: int) -> Expected:
        """The continuation of a prompt as it is."""
        return self._ask(self._tokenizer.encode(prompt).ids, max_tokens)

    def chat(self, prompt: str, max_tokens: int) -> Expected:
        """The answer to a prompt as one user message in the model's chat template."""
        text = self._chat.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        return self._ask(self._tokenizer.encode(text, add_special_tokens=False).ids, max_tokens)

    def _ask(self, ids: list[int], max_tokens: int) -> Expected:
        key = (max_tokens, *ids)
        if key not in self._known:
            self._known[key] = self._generate(ids, max_tokens)
        return self._known[key]

    def _generate(self, ids: list[int], max_tokens: int) -> Expected:
        with torch.inference_mode():
            out = self._model.generate(
                torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=max_tokens,
                do_sample=False,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        ends = self._model.generation_config.eos_token_id
        ends = set(ends) if isinstance(ends, list) else {ends}
        new = out.sequences[0, len(ids) :].tolist()
        ended = new[-1] in ends
        best_two = torch.stack([logits[0].topk(2).values for logits in out.logits])
        ties = (best_two[:, 0] - best_two[:, 1] < TIE).nonzero().flatten().tolist()
        new = new[:-1] if ended else new
        return Expected(
            text=self._decode(new),
            certain=self._decode(new[: ties[0]] if ties else new),
            num_tokens=len(new),
            ended=ended,
        )

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)
