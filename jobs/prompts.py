"""Prompts to token ids and back, as transformers' AutoTokenizer does it, without importing torch or transformers.

Everything comes from the files of a local model directory: tokenizer.json, tokenizer_config.json, chat_template.jinja,
config.json, generation_config.json.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from jobs.template import ChatTemplate, Message, TemplateRefused
from storage.errors import InputInvalid
from storage.parquet.schema import TOKENS


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptEncoder:
    """A model's tokenizer with its chat template and the limits that its prompts must keep.

    `max_model_len` counts prompt and generated tokens together, None when the model names no limit.
    """

    tokenizer: Tokenizer
    template: ChatTemplate | None
    template_sha256: str | None
    tokenizer_sha256: str
    vocab_size: int
    max_model_len: int | None
    eos_token_ids: frozenset[int]

    @staticmethod
    def open(model_dir: Path, max_model_len: int | None = None) -> PromptEncoder:
        """`max_model_len`: a lower limit than the model's own. Raises InputInvalid (`model`) when it is a higher one,
        or when the directory has no usable tokenizer or configuration."""
        # Without this, tokenizers warns in each forked child that it goes on in one thread.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
        config = _read_json(model_dir / "config.json")
        text_config = {**config, **config.get("text_config", {})}
        tokenizer_config = _read_json(model_dir / "tokenizer_config.json", optional=True)
        generation = _read_json(model_dir / "generation_config.json", optional=True)
        special_tokens = _special_tokens(tokenizer_config)
        source = _template_source(model_dir, tokenizer_config)
        tokenizer = _load_tokenizer(model_dir, tokenizer_config, special_tokens)
        eos = generation.get("eos_token_id", text_config.get("eos_token_id"))
        return PromptEncoder(
            tokenizer=tokenizer,
            template=None if source is None else _compile(model_dir, source, special_tokens),
            template_sha256=None if source is None else hashlib.sha256(source.encode()).hexdigest(),
            tokenizer_sha256=hashlib.sha256((model_dir / "tokenizer.json").read_bytes()).hexdigest(),
            vocab_size=int(text_config.get("vocab_size") or tokenizer.get_vocab_size()),
            max_model_len=_limit(model_dir, text_config.get("max_position_embeddings"), max_model_len),
            eos_token_ids=frozenset([eos] if isinstance(eos, int) else eos or ()),
        )

    def render(self, messages: Sequence[Message]) -> str:
        """A conversation as the text that the model was trained on. Raises TemplateRefused."""
        assert self.template is not None, "a model without a chat template was asked to render messages"
        return self.template.render(messages)

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool) -> pa.ListArray:
        """Token ids of each text, list<int32>. A rendered conversation brings its own special tokens: pass False."""
        encodings = self.tokenizer.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        rows = [encoding.ids for encoding in encodings]
        offsets = np.zeros(len(rows) + 1, dtype=np.int32)
        np.cumsum([len(ids) for ids in rows], out=offsets[1:])
        values: npt.NDArray[np.int32] = np.fromiter(chain.from_iterable(rows), dtype=np.int32, count=int(offsets[-1]))
        return pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)).cast(TOKENS)

    def split_stops(self, stops: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]]:
        """Stop strings that are text, and the ids of those that are one special token: text never shows these."""
        added = self.tokenizer.get_added_tokens_decoder().items()
        special = {token.content: token_id for token_id, token in added if token.special}
        return tuple(s for s in stops if s not in special), tuple(special[s] for s in stops if s in special)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of these ids, special tokens left out."""
        text: str = self.tokenizer.decode(list(token_ids), skip_special_tokens=True)
        return text


def _limit(model_dir: Path, own: int | None, wanted: int | None) -> int | None:
    if wanted is not None and own is not None and wanted > own:
        raise InputInvalid(
            "model",
            f"NIGHTMILL_MAX_MODEL_LEN is {wanted}, but {model_dir} takes {own} tokens; set it to {own} at most, or do "
            "without it",
        )
    return own if wanted is None else wanted


def _load_tokenizer(model_dir: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> Tokenizer:
    path = model_dir / "tokenizer.json"
    if not path.is_file():
        raise InputInvalid("model", f"{model_dir} has no tokenizer.json; a model needs one to be served")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:
        raise InputInvalid("model", f"{path} cannot be read: {error}") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    if "add_bos_token" in config or "add_eos_token" in config or tokenizer.post_processor is None:
        tokenizer.post_processor = _bos_and_eos(tokenizer, config, special_tokens)
    return tokenizer


def _bos_and_eos(tokenizer: Tokenizer, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> Any:
    """What transformers puts around a raw prompt when the configuration says so."""
    before, after = (
        special_tokens.get(f"{end}_token") if config.get(f"add_{end}_token") else None for end in ("bos", "eos")
    )
    return TemplateProcessing(
        single=[*([before] if before else []), "$A", *([after] if after else [])],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (before, after) if token],
    )


def _compile(model_dir: Path, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    try:
        return ChatTemplate(source, special_tokens)
    except TemplateRefused as error:
        raise InputInvalid("model", f"{model_dir}: {error}") from error


def _template_source(model_dir: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    path = model_dir / "chat_template.jinja"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    source = tokenizer_config.get("chat_template")
    if source is None:
        source = _read_json(model_dir / "chat_template.json", optional=True).get("chat_template")
    if isinstance(source, list):  # several named templates
        named = {entry["name"]: entry["template"] for entry in source}
        source = named.get("default")
    return source


def _special_tokens(tokenizer_config: Mapping[str, Any]) -> dict[str, str]:
    """`bos_token` and its like; each is a string or an object with the string as `content`."""
    found = {}
    for name, value in tokenizer_config.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found


def _read_json(path: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputInvalid("model", f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise InputInvalid("model", f"{path} is not a JSON object")
    return content
