"""Our prompts are those of transformers' own tokenizer, id for id, on both demo models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from jobs.prompts import PromptEncoder
from jobs.template import ChatTemplate
from tests.unit.jobs.tiny_model import make_model

MODELS = Path(__file__).parents[2] / ".cache/models"
TEXTS = [
    "Hello, world!",
    " leading and trailing ",
    "tabs\tand\n\nlines  double  blanks",
    "naïve café, ß, Ünïcödé, e\u0301",
    "日本語のテキスト、한국어, العربية, हिन्दी",
    "emoji 🎉👩‍👩‍👧 𐍈 \u200b",
    "<bos>special <|im_start|>tokens<eos> in the text",
    "def f(x):\n    return x ** 2  # comment",
    "0123456789 3.14159",
]
CHATS = [
    [{"role": "user", "content": "Hi there é🎉"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "  Why?\n"}],
    [
        {"role": "user", "content": "1+1"},
        {"role": "assistant", "content": "2", "reasoning": "easy"},
        {"role": "user", "content": "<|im_end|>{{ 7 }}"},
    ],
]
CONSTRUCTS = [
    "{%- for m in messages %}\n    {%- if loop.first %}{% continue %}{% endif %}\n{{ m | tojson }}\n{%- endfor %}",
    "{{ messages | tojson(indent=2) }}{{ bos_token }}{{ eos_token }}{{ unk_token is defined }}",
    "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
    "{% for m in messages %}{% generation %}{% set x = 1 %}{{ m.content }}{% endgeneration %}{{ x }}\n{% endfor %}",
    "{{ strftime_now('%Y') }}{% if tools %}T{% endif %}{{ add_generation_prompt }}{{ messages[-1].reasoning_content }}",
    "{{ dict(a=1) }}{{ '<&>' }}{{ {'é': '<'} | tojson }}",
]


@pytest.mark.models
@pytest.mark.parametrize("name", ["gemma3-270m", "smollm2-135m"])
def test_raw_prompts_have_the_ids_of_the_tokenizer_called(name: str) -> None:
    theirs = AutoTokenizer.from_pretrained(MODELS / name)

    ours = PromptEncoder.open(MODELS / name).encode_batch(TEXTS, add_special_tokens=True).to_pylist()

    assert ours == [theirs(text).input_ids for text in TEXTS]


@pytest.mark.models
@pytest.mark.parametrize("name", ["gemma3-270m", "smollm2-135m"])
def test_decoded_text_is_that_of_the_tokenizer(name: str) -> None:
    theirs = AutoTokenizer.from_pretrained(MODELS / name)
    encoder = PromptEncoder.open(MODELS / name)

    for ids in encoder.encode_batch(TEXTS, add_special_tokens=True).to_pylist():
        assert encoder.decode(ids) == theirs.decode(ids, skip_special_tokens=True)


@pytest.mark.models
@pytest.mark.parametrize("chat", CHATS, ids=["user", "system", "turns"])
def test_chats_have_the_text_and_ids_of_apply_chat_template(chat: list[dict[str, Any]]) -> None:
    theirs = AutoTokenizer.from_pretrained(MODELS / "smollm2-135m")
    encoder = PromptEncoder.open(MODELS / "smollm2-135m")

    text = encoder.render(chat)
    (ids,) = encoder.encode_batch([text], add_special_tokens=False).to_pylist()

    assert text == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert ids == theirs.apply_chat_template(chat, add_generation_prompt=True)["input_ids"]


@pytest.mark.parametrize("source", CONSTRUCTS)
@pytest.mark.parametrize("chat", CHATS, ids=["user", "system", "turns"])
def test_a_template_renders_as_in_transformers(tmp_path: Path, source: str, chat: list[dict[str, Any]]) -> None:
    folder = make_model(tmp_path, template=source)
    theirs = AutoTokenizer.from_pretrained(folder)

    ours = ChatTemplate(source, {"bos_token": "<s>", "eos_token": "</s>"}).render(chat)

    assert ours == theirs.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
