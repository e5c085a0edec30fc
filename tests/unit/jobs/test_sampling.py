from __future__ import annotations

import json
from typing import Any

import pytest

from engine.request import SamplingParams
from jobs.sampling import Sampling, SamplingInvalid, check_overrides, dump_overrides


def test_overrides_replace_only_what_they_name() -> None:
    defaults = Sampling(params=SamplingParams(max_tokens=9, temperature=0.5), stop=("x",))

    changed = defaults.overridden(check_overrides({"top_k": 3, "n": 2, "stop": "y", "temperature": None}))

    assert changed.params == SamplingParams(max_tokens=9, temperature=0.5, top_k=3, num_samples=2)
    assert changed.stop == ("y",)


def test_a_specification_is_json_and_comes_back_equal() -> None:
    sampling = Sampling(params=SamplingParams(top_p=0.5, stop_token_ids=(3, 4), num_samples=2), stop=("a", "b"))

    assert Sampling.from_spec(json.loads(json.dumps(sampling.as_spec()))) == sampling


def test_whole_floats_count_as_integers() -> None:
    assert check_overrides({"max_tokens": 12.0}) == {"max_tokens": 12}


def test_nothing_to_override_is_null() -> None:
    assert dump_overrides(check_overrides({"top_p": None})) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 0),
        ("max_tokens", 1.5),
        ("max_tokens", True),
        ("max_tokens", float("nan")),
        ("temperature", -0.1),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        pytest.param("temperature", 10**400, id="temperature that no float can hold"),
        ("top_p", 0),
        ("top_p", float("nan")),
        ("min_p", float("nan")),
        pytest.param("min_p", -(10**400), id="min_p that no float can hold"),
        ("repetition_penalty", float("nan")),
        ("repetition_penalty", float("inf")),
        pytest.param("repetition_penalty", 10**400, id="repetition_penalty that no float can hold"),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("-inf")),
        pytest.param("top_k", 10**400, id="top_k that no float can hold"),
        ("top_p", 1.1),
        ("top_k", -1),
        ("min_p", 2),
        ("repetition_penalty", 0),
        ("presence_penalty", 3),
        ("frequency_penalty", -3),
        ("stop", ""),
        ("stop", ["a", ""]),
        ("stop", 3),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", "3"),
        ("stop_token_ids", [100]),
        ("seed", -1),
        ("seed", 2**63),
        ("n", 0),
        ("ignore_eos", 1),
        ("best_of", 2),
    ],
)
def test_a_value_that_cannot_be_honoured_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(SamplingInvalid, match=name):
        check_overrides({name: value}, vocab_size=100)
