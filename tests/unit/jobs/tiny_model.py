"""A model directory for tests that need a tokenizer and no weights: 256 byte tokens, a few merges, special tokens."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.pre_tokenizers import ByteLevel

BOS, EOS, START, END = "<s>", "</s>", "<|start|>", "<|end|>"

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "<|start|>{{ message['role'] }}\n{{ message['content'] }}<|end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)


def byte_level_tokenizer() -> Tokenizer:
    """Every token is one or more bytes; "th", "the" and two halves of characters are merged."""
    letters = sorted(ByteLevel.alphabet())
    merges = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("Ã", "©"), ("ð", "Ł")]
    vocab = {letter: index for index, letter in enumerate([*letters, *(a + b for a, b in merges)])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    _add_specials(tokenizer)
    return tokenizer


def byte_fallback_tokenizer() -> Tokenizer:
    """SentencePiece's manner: words with a mark for the blank, and a token for each byte that no word has."""
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *"abcdefgh", "▁a", "bc", "é", "日"]
    merges = [("▁", "a"), ("b", "c")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=merges,
            unk_token="<unk>",
            byte_fallback=True,
            fuse_unk=True,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split("\n", "isolated")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    _add_specials(tokenizer)
    return tokenizer


def make_model(folder: Path, *, template: str | None = TEMPLATE, context: int = 64, **tokenizer_config: Any) -> Path:
    """A directory that `PromptEncoder.open` and `resolve_model` take for a model; its weights are empty."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = byte_level_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"max_position_embeddings": context, "vocab_size": tokenizer.get_vocab_size(), "eos_token_id": 1}
    (folder / "config.json").write_text(json.dumps(config))
    named = {"bos_token": BOS, "eos_token": {"__type": "AddedToken", "content": EOS, "special": True}}
    (folder / "tokenizer_config.json").write_text(json.dumps(named | tokenizer_config))
    (folder / "model.safetensors").write_bytes(b"")
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    return folder


def _add_specials(tokenizer: Tokenizer) -> None:
    tokenizer.add_special_tokens([AddedToken(token, normalized=False) for token in (BOS, EOS, START, END)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[BOS, "$A"], special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
