from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.request import SamplingParams
from jobs.options import SubmitOptions, changed_keys, derive_seed, hash_spec
from jobs.sampling import Sampling


def options(**changes: Any) -> SubmitOptions:
    fields: dict[str, Any] = {"inputs": ("in.parquet",), "output": Path("out"), "model": "m"}
    return SubmitOptions(**(fields | changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"order": "input"},
        {"shard_tokens": 5},
        {"shard_rows": 5},
        {"name": "other"},
        {"tags": {"a": "b"}},
        {"output": Path("elsewhere")},
        {"resume": "always"},
    ],
)
def test_what_leaves_the_results_alone_leaves_the_specification_alone(changes: dict[str, Any]) -> None:
    assert hash_spec(options(**changes).spec("k")) == hash_spec(options().spec("k"))


@pytest.mark.parametrize(
    "changes",
    [
        {"model_revision": "v2"},
        {"prompt_column": "text"},
        {"id_column": "key"},
        {"system_prompt": "be brief"},
        {"raw_prompt": True},
        {"sampling": Sampling(params=SamplingParams(top_k=2))},
        {"sampling": Sampling(stop=("x",))},
        {"seed": 0},
        {"limit": 3},
        {"on_too_long": "truncate-left"},
        {"keep_columns": ()},
    ],
)
def test_what_changes_the_results_changes_the_specification(changes: dict[str, Any]) -> None:
    assert hash_spec(options(**changes).spec("k")) != hash_spec(options().spec("k"))


def test_changes_are_named_option_by_option() -> None:
    old = options(sampling=Sampling(params=SamplingParams(top_k=2))).spec("k")

    assert changed_keys(old, options(limit=1).spec("k")) == ["limit: None -> 1", "top_k: 2 -> 0"]


@pytest.mark.parametrize(
    ("flag", "changes"),
    [
        ("--prompt-column", {"prompt_column": "a", "messages_column": "b"}),
        ("--system-prompt", {"system_prompt": "a", "raw_prompt": True}),
        ("--seed", {"seed": -1}),
        ("--limit", {"limit": 0}),
        ("--shard-tokens", {"shard_tokens": 0}),
        ("input", {"inputs": ()}),
        ("--order", {"order": "random"}),
        ("--on-too-long", {"on_too_long": "cut"}),
        ("--raw-prompt", {"raw_prompt": "False"}),
        ("--limit", {"limit": "10"}),
    ],
)
def test_options_that_cannot_be_honoured_are_refused_by_name(flag: str, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=flag):
        options(**changes)


def test_seeds_are_pure_and_fit_into_63_bits() -> None:
    seeds = {derive_seed(7, f"row{i}") for i in range(1000)}

    assert len(seeds) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(7, "row0") == 2275059208173276906


def test_frozen_options_are_json_and_thaw_to_what_plans_the_same() -> None:
    asked = options(
        inputs=("a/*.parquet", "b"),
        sampling=Sampling().overridden({"max_tokens": 7, "stop": ["x"], "n": 2}),
        keep_columns=("z", "a"),
        order="longest",
        shard_tokens=9,
        seed=3,
    )

    thawed = SubmitOptions.thawed(json.loads(json.dumps(asked.frozen())))

    assert thawed.inputs == (str(Path.cwd() / "a/*.parquet"), str(Path.cwd() / "b"))
    assert thawed == replace(asked, inputs=thawed.inputs, output=thawed.output)
    assert thawed.spec("k") == asked.spec("k")
