from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from jobs.prompts import PromptEncoder
from jobs.template import ChatTemplate, TemplateRefused
from storage.errors import InputInvalid
from tests.unit.jobs.tiny_model import BOS, END, EOS, make_model

CHECKOUT = Path(__file__).parents[3]
USER = [{"role": "user", "content": "hé 🎉"}]


def ids_of(encoder: PromptEncoder, text: str, *, special: bool) -> list[int]:
    return encoder.encode_batch([text], add_special_tokens=special).to_pylist()[0]


def test_submit_imports_neither_torch_nor_transformers() -> None:
    check = "import sys, jobs.submit; print([m for m in ('torch', 'transformers') if m in sys.modules])"

    run = subprocess.run([sys.executable, "-c", check], cwd=CHECKOUT, capture_output=True, text=True, timeout=120)

    assert run.stdout.strip() == "[]", run.stderr


def test_a_batch_keeps_the_order_and_the_borders_of_its_texts(tmp_path: Path) -> None:
    encoder = PromptEncoder.open(make_model(tmp_path))

    encoded = encoder.encode_batch(["the", "", "é"], add_special_tokens=False).to_pylist()

    assert [encoder.decode(ids) for ids in encoded] == ["the", "", "é"]
    assert encoder.encode_batch([], add_special_tokens=True).to_pylist() == []


def test_a_raw_prompt_gets_the_special_tokens_that_the_tokenizer_adds(tmp_path: Path) -> None:
    encoder = PromptEncoder.open(make_model(tmp_path))
    bos = encoder.tokenizer.token_to_id(BOS)

    assert ids_of(encoder, "a", special=True) == [bos, *ids_of(encoder, "a", special=False)]


@pytest.mark.parametrize("bos", [True, False])
def test_the_configuration_decides_about_bos_and_eos(tmp_path: Path, bos: bool) -> None:
    encoder = PromptEncoder.open(make_model(tmp_path, add_bos_token=bos, add_eos_token=True))
    around = [encoder.tokenizer.token_to_id(token) for token in (BOS, EOS)]

    ids = ids_of(encoder, "a", special=True)

    assert ids == [*around[: int(bos)], *ids_of(encoder, "a", special=False), around[1]]


def test_a_template_brings_its_own_bos_and_ends_where_the_assistant_speaks(tmp_path: Path) -> None:
    encoder = PromptEncoder.open(make_model(tmp_path))

    text = encoder.render(USER)

    assert text == f"{BOS}<|start|>user\nhé 🎉<|end|>\n<|start|>assistant\n"
    bos = encoder.tokenizer.token_to_id(BOS)
    assert ids_of(encoder, text, special=False).count(bos) == 1


def test_limits_and_end_tokens_come_from_the_configuration(tmp_path: Path) -> None:
    folder = make_model(tmp_path, context=77)
    assert PromptEncoder.open(folder).eos_token_ids == {1}

    (folder / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    encoder = PromptEncoder.open(folder)

    assert encoder.eos_token_ids == {1, 7}
    assert encoder.max_model_len == 77


@pytest.mark.parametrize(
    "config",
    ['{"chat_template": "T {{ eos_token }}"}', '{"chat_template": [{"name": "default", "template": "T </s>"}]}'],
)
def test_a_template_may_be_in_the_tokenizer_configuration(tmp_path: Path, config: str) -> None:
    folder = make_model(tmp_path, template=None)
    (folder / "tokenizer_config.json").write_text(config[:-1] + ', "eos_token": "</s>"}')

    assert PromptEncoder.open(folder).render(USER) == "T </s>"


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_model_with_a_damaged_file_is_refused_by_the_name_of_the_file(tmp_path: Path, name: str) -> None:
    folder = make_model(tmp_path)
    (folder / name).write_text("{% {")

    with pytest.raises(InputInvalid, match=Path(name).stem.replace("_", ".")) as caught:
        PromptEncoder.open(folder)

    assert caught.value.code == "model"


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% set ns = namespace() %}{% set ns.__class__ = 1 %}",
        "{{ messages.append({}) }}",
        "{% for i in range(10**9) %}x{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages[0]['content'] + 1 }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
    ],
)
def test_a_template_that_misbehaves_refuses_its_row_and_nothing_else(source: str) -> None:
    template = ChatTemplate(source, {})

    with pytest.raises(TemplateRefused, match="refused"):
        template.render(USER)


def test_a_template_that_does_not_compile_is_refused() -> None:
    with pytest.raises(TemplateRefused, match="compile"):
        ChatTemplate("{% if %}", {})


def test_a_stop_that_is_a_special_token_becomes_its_id(tmp_path: Path) -> None:
    encoder = PromptEncoder.open(make_model(tmp_path / "model"))

    texts, token_ids = encoder.split_stops(("the", END, "\n"))

    assert texts == ("the", "\n")
    assert token_ids == (encoder.tokenizer.token_to_id(END),)


def test_a_lower_limit_than_the_model_s_own_is_kept_and_a_higher_one_refused(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model", context=77)

    encoder = PromptEncoder.open(model, 50)

    assert encoder.max_model_len == 50
    with pytest.raises(InputInvalid, match=r"NIGHTMILL_MAX_MODEL_LEN is 78, but .* takes 77 tokens"):
        PromptEncoder.open(model, 78)
