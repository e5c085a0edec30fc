"""The terms of a data set: what is asked is honoured or refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from jobs.datasets.terms import DatasetTerms


def test_terms_survive_their_way_through_json() -> None:
    terms = DatasetTerms(
        min_success_rate=0.9,
        max_mean_tokens=400,
        checks=("checks.words:no_refusals",),
        keep_runs=3,
        webhook_url="https://example.com/hook",
        webhook_secret_env="HOOK_SECRET",
    )

    again = DatasetTerms.from_dict(json.loads(json.dumps(terms.as_dict())))

    assert again == terms


def test_an_unknown_option_is_refused_by_its_name() -> None:
    given = {"min_sucess_rate": 0.9}

    with pytest.raises(ValueError, match=r"'min_sucess_rate'.*min_success_rate"):
        DatasetTerms.from_dict(given)


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"min_success_rate": 1.5}, "min_success_rate"),
        ({"max_cut_share": -0.1}, "max_cut_share"),
        ({"max_duplicate_share": "0.1"}, "max_duplicate_share"),
        ({"min_mean_tokens": True}, "min_mean_tokens"),
        ({"min_mean_characters": float("inf")}, "min_mean_characters"),
        ({"min_mean_tokens": 9, "max_mean_tokens": 8}, "no run can keep both"),
        ({"keep_runs": 1.5}, "keep_runs"),
        ({"keep_days": -1}, "keep_days"),
        ({"keep_failed_days": None}, "keep_failed_days"),
        ({"grace_hours": float("nan")}, "grace_hours"),
        ({"checks": "checks:words"}, "must be a list"),
        ({"checks": ["checks.words"]}, "package.module:function"),
        ({"checks": ["__import__('os'):system"]}, "package.module:function"),
        ({"check_seconds": 0}, "check_seconds is 0"),
        ({"webhook_url": "ftp://example.com", "webhook_secret_env": "S"}, "http://"),
        ({"webhook_url": "https://example.com/n\u00e4chtlich", "webhook_secret_env": "S"}, "percent-encoded"),
        ({"webhook_url": "https://me:secret@example.com", "webhook_secret_env": "S"}, "user or password"),
        ({"webhook_url": "https://example.com"}, "webhook_secret_env"),
        ({"webhook_url": "https://example.com", "webhook_secret_env": "not a name"}, "webhook_secret_env"),
        ({"webhook_secret_env": "S"}, "without webhook_url"),
    ],
)
def test_an_option_that_cannot_be_honoured_is_refused(given: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DatasetTerms.from_dict(given)
