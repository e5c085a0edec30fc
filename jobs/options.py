"""What a submission asks for, as one frozen value, and which part of it decides the results."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

from jobs.deadline import parse_deadline
from jobs.sampling import SEED_LIMIT, Sampling

Order = Literal["longest-branch", "prefix", "input", "longest"]
OnTooLong = Literal["error", "truncate-left", "truncate-right"]
Resume = Literal["if_possible", "always", "never"]

# About five minutes of a small model on a few CPU cores (some 200 tokens/s), less than a minute lost when a worker
# dies on a fast GPU. Fast workers may want more: a shard costs a message, a claim and a commit, well below a second.
SHARD_TOKENS = 65_536
SHARD_ROWS = 4096
# A plan's footer and the memory of whoever reads it grow with the number of shards: a huge job gets larger ones.
MOST_SHARDS = 2048
ONLY_NEW = "only_new"


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """One submission. Rows may override `sampling`; `seed=None` derives the job's seed from specification and input.

    `keep_columns=None` passes every input column through. `shard_tokens` counts computed prompt tokens plus the most
    tokens that may be generated; None takes the default, larger for a huge job. `resume`: attach to the job of this
    output folder if there is one, only if there is one, or never. `deadline`: see `jobs.deadline`. With an
    `idempotency_key` the job is known by it, whatever its output folder. `only_new` is a data set: rows that a current
    run of it has generated are left out when the job is planned, and `limit` counts the others.
    """

    inputs: tuple[str, ...]
    output: Path
    model: str
    model_revision: str | None = None
    prompt_column: str | None = None
    messages_column: str | None = None
    id_column: str | None = None
    system_prompt: str | None = None
    raw_prompt: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    seed: int | None = None
    limit: int | None = None
    on_too_long: OnTooLong = "error"
    keep_columns: tuple[str, ...] | None = None
    order: Order = "longest-branch"
    shard_tokens: int | None = None
    shard_rows: int | None = None
    name: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    resume: Resume = "if_possible"
    deadline: str | None = None
    max_error_rate: float | None = None
    idempotency_key: str | None = None
    only_new: Path | None = None

    def __post_init__(self) -> None:
        """Raises ValueError for a value that cannot be honoured. Types are looked at too: not all come from flags."""
        for flag, given, allowed in (
            ("--order", self.order, get_args(Order)),
            ("--on-too-long", self.on_too_long, get_args(OnTooLong)),
            ("--resume", self.resume, get_args(Resume)),
        ):
            if given not in allowed:
                raise ValueError(f"{flag} is {given!r}; it must be {' or '.join(allowed)}")
        if not isinstance(self.raw_prompt, bool):
            raise ValueError(f"--raw-prompt is {self.raw_prompt!r}; it must be true or false")
        if not self.inputs:
            raise ValueError("no input is named; give at least one Parquet file, directory or glob")
        if self.prompt_column and self.messages_column:
            raise ValueError("--prompt-column and --messages-column exclude each other; a row has one prompt")
        if self.system_prompt and self.raw_prompt:
            raise ValueError("--system-prompt needs the chat template that --raw-prompt turns off; use one of them")
        if self.seed is not None and not 0 <= self.seed < SEED_LIMIT:
            raise ValueError(f"--seed is {self.seed}; it must be from 0 to {SEED_LIMIT - 1}")
        if self.deadline is not None:
            parse_deadline(self.deadline)
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"--max-error-rate is {self.max_error_rate}; it must be from 0 to 1")
        if self.idempotency_key is not None and not self.idempotency_key.strip():
            raise ValueError("--idempotency-key is empty; give any text that names this run and no other")
        for flag, value in (
            ("--limit", self.limit),
            ("--shard-tokens", self.shard_tokens),
            ("--shard-rows", self.shard_rows),
        ):
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{flag} is {value!r}; it must be a whole number of at least 1")

    def spec(self, model_key: str) -> dict[str, Any]:
        """Everything here that changes results, JSON-ready. Order, shards, names and engine options do not. What is
        not in the specification of older versions is there only if it was asked for, so that theirs stay the same."""
        return {
            "model": self.model,
            "model_revision": self.model_revision,
            "model_key": model_key,
            "prompt_column": self.prompt_column,
            "messages_column": self.messages_column,
            "id_column": self.id_column,
            "system_prompt": self.system_prompt,
            "raw_prompt": self.raw_prompt,
            "sampling": self.sampling.as_spec(),
            "seed": self.seed,
            "limit": self.limit,
            "on_too_long": self.on_too_long,
            "keep_columns": None if self.keep_columns is None else sorted(self.keep_columns),
            **({} if self.only_new is None else {ONLY_NEW: os.path.abspath(self.only_new)}),
        }

    def frozen(self) -> dict[str, Any]:
        """Everything that planning needs, JSON-ready, with paths that mean the same to every process."""
        return self.spec("") | {
            "inputs": [os.path.abspath(path) for path in self.inputs],
            "output": os.path.abspath(self.output),
            "keep_columns": None if self.keep_columns is None else list(self.keep_columns),
            "order": self.order,
            "shard_tokens": self.shard_tokens,
            "shard_rows": self.shard_rows,
        }

    @staticmethod
    def thawed(frozen: Mapping[str, Any]) -> SubmitOptions:
        """The inverse of `frozen`, for whoever plans the job. Names, tags and the like are in the job's record."""
        fields = {name: value for name, value in frozen.items() if name != "model_key"}
        keep = fields["keep_columns"]
        return SubmitOptions(
            **fields
            | {
                "inputs": tuple(fields["inputs"]),
                "output": Path(fields["output"]),
                "sampling": Sampling.from_spec(fields["sampling"]),
                "keep_columns": None if keep is None else tuple(keep),
                ONLY_NEW: Path(fields[ONLY_NEW]) if ONLY_NEW in fields else None,
            }
        )


def hash_spec(spec: Mapping[str, Any]) -> str:
    """sha256 of the canonical JSON of a specification."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What a new specification says otherwise than an old one, as `key: old -> new`, sampling options one by one."""
    changes = []
    dropped = {ONLY_NEW: None} if ONLY_NEW in old else {}
    for key, after in sorted({**dropped, **new}.items()):
        before = old.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            changes += changed_keys(before, after)
        elif before != after:
            changes.append(f"{key}: {before!r} -> {after!r}")
    return changes


def derive_seed(*parts: object) -> int:
    """A seed (63 bits) that is a pure function of the parts: equal on every machine and in every order of rows."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
