"""Every flag of submit reaches the part that honours it."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from jobs.cli import submission
from jobs.cli.frame import main
from jobs.exits import Exit
from jobs.options import SubmitOptions
from jobs.place import Place


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What submit would have run."""
    caught: dict[str, Any] = {}

    def run(options: SubmitOptions, place: Place, *, waits: bool, timeout: float | None) -> Exit:
        caught.update(options=options, settings=place.settings, waits=waits, timeout=timeout)
        return Exit.DONE

    monkeypatch.setattr(submission, "run", run)
    monkeypatch.setenv("NIGHTMILL_HOME", str(tmp_path))
    monkeypatch.delenv("NIGHTMILL_BROKER_URL", raising=False)
    monkeypatch.delenv("NIGHTMILL_DATABASE_URL", raising=False)
    return caught


def submit(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["submit", "in.parquet", "-o", "OUT", "--model", "m", *arguments])
    return int(ended.value.code or 0)


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--model-revision", "main"], "model_revision", "main"),
        (["--prompt-column", "q"], "prompt_column", "q"),
        (["--messages-column", "chat"], "messages_column", "chat"),
        (["--id-column", "key"], "id_column", "key"),
        (["--system-prompt", "be brief"], "system_prompt", "be brief"),
        (["--raw-prompt"], "raw_prompt", True),
        (["--limit", "3"], "limit", 3),
        (["--keep-column", "a", "--keep-column", "b"], "keep_columns", ("a", "b")),
        (["--on-too-long", "truncate-left"], "on_too_long", "truncate-left"),
        (["--seed", "5"], "seed", 5),
        (["--order", "longest"], "order", "longest"),
        (["--shard-tokens", "100"], "shard_tokens", 100),
        (["--name", "night"], "name", "night"),
        (["--tag", "a=b=c"], "tags", {"a": "b=c"}),
        (["--resume", "never"], "resume", "never"),
    ],
)
def test_a_flag_sets_its_option(seen: dict[str, Any], flags: list[str], field: str, value: object) -> None:
    assert submit(*flags) == 0
    assert getattr(seen["options"], field) == value


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (["--max-tokens", "7"], "max_tokens", 7),
        (["--temperature", "0.5"], "temperature", 0.5),
        (["--top-p", "0.9"], "top_p", 0.9),
        (["--top-k", "4"], "top_k", 4),
        (["--min-p", "0.1"], "min_p", 0.1),
        (["--repetition-penalty", "1.1"], "repetition_penalty", 1.1),
        (["--presence-penalty", "0.2"], "presence_penalty", 0.2),
        (["--frequency-penalty", "0.3"], "frequency_penalty", 0.3),
        (["--stop-token-id", "1", "--stop-token-id", "2"], "stop_token_ids", (1, 2)),
        (["--ignore-eos"], "ignore_eos", True),
        (["--n", "3"], "num_samples", 3),
    ],
)
def test_a_sampling_flag_sets_its_parameter(seen: dict[str, Any], flags: list[str], field: str, value: object) -> None:
    assert submit(*flags) == 0
    assert getattr(seen["options"].sampling.params, field) == value


def test_stop_strings_add_up(seen: dict[str, Any]) -> None:
    submit("--stop", "a", "--stop", "\n\n")

    assert seen["options"].sampling.stop == ("a", "\n\n")


@pytest.mark.parametrize(
    ("flags", "setting", "value"),
    [
        (["--device", "cuda"], "device", "cuda"),
        (["--max-sequences", "8"], "max_sequences", 8),
        (["--max-batch-tokens", "256"], "max_batch_tokens", 256),
        (["--no-block-sharing"], "block_sharing", False),
        (["--no-prefix-sharing"], "prefix_sharing", False),
        (["--strict"], "strict", True),
    ],
)
def test_an_engine_flag_sets_its_setting(seen: dict[str, Any], flags: list[str], setting: str, value: object) -> None:
    assert submit(*flags) == 0
    assert getattr(seen["settings"], setting) == value


def test_without_flags_every_option_has_its_own_default(seen: dict[str, Any]) -> None:
    submit()

    expected = SubmitOptions(inputs=("in.parquet",), output=Path("OUT"), model="m")
    assert {f.name: getattr(seen["options"], f.name) for f in fields(SubmitOptions)} == {
        f.name: getattr(expected, f.name) for f in fields(SubmitOptions)
    }
    assert (seen["waits"], seen["timeout"]) == (False, None)


@pytest.mark.parametrize(("flags", "timeout"), [(["--wait"], None), (["--wait-timeout", "3"], 3.0)])
def test_both_wait_flags_wait(seen: dict[str, Any], flags: list[str], timeout: float | None) -> None:
    submit(*flags)

    assert (seen["waits"], seen["timeout"]) == (True, timeout)


@pytest.mark.parametrize("flags", [["--tag", "ab"], ["--temperature", "-1"], ["--seed", "-1"], ["--no-such-flag"]])
def test_what_cannot_be_honoured_is_a_usage_error(
    seen: dict[str, Any], flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert submit(*flags) == 2
    assert seen == {}
    assert flags[0].lstrip("-") in capsys.readouterr().err


@pytest.mark.parametrize(
    "command",
    [
        ["submit", "in.parquet", "-o", "OUT", "--model", "m", "--only-new", "s3://bucket/x"],
        ["submit", "in.parquet", "-o", "s3://bucket/x", "--model", "m"],
        ["results", "--dataset", "s3://bucket/x"],
    ],
)
def test_object_storage_is_refused_by_name(
    command: list[str], seen: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(command)

    assert ended.value.code == Exit.USAGE
    assert "s3:/bucket/x is no local directory; s3:// and other object storage are" in capsys.readouterr().err
    assert seen == {}
