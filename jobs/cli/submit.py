"""`nightmill submit`: plan a job, put it in the queue, and wait for it where this machine runs everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from jobs.exits import UsageError

INPUT, SAMPLING, PLAN, ENGINE, CONTROL = "Input", "Sampling", "Plan", "Engine (embedded mode)", "Control"


def add_to(app: typer.Typer) -> None:
    app.command()(submit)


def flag(*names: str, help: str, panel: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


# The parameters are the flags, so there are many; what they mean is settled in jobs.options and jobs.sampling.
def submit(
    inputs: Annotated[list[str], typer.Argument(metavar="IN...", help="Parquet files, directories or globs.")],
    output: Annotated[Path, flag("--output", "-o", help="Output directory; new, or of the same job.", panel=INPUT)],
    model: Annotated[str, flag("--model", "-m", help="Hub id, local directory or GGUF file.", panel=INPUT)],
    model_revision: Annotated[str | None, flag(help="Branch, tag or commit on the Hub.", panel=INPUT)] = None,
    prompt_column: Annotated[str | None, flag(help="Column of prompts (prompt).", panel=INPUT)] = None,
    messages_column: Annotated[str | None, flag(help="Column of chats (messages).", panel=INPUT)] = None,
    id_column: Annotated[str | None, flag(help="Column of unique row names (custom_id).", panel=INPUT)] = None,
    system_prompt: Annotated[str | None, flag(help="Put before every chat.", panel=INPUT)] = None,
    raw_prompt: Annotated[bool, flag("--raw-prompt", help="Apply no chat template.", panel=INPUT)] = False,
    limit: Annotated[int | None, flag(help="Only the first rows.", panel=INPUT)] = None,
    only_new: Annotated[Path | None, flag(help="Without the rows that this data set has.", panel=INPUT)] = None,
    keep_columns: Annotated[
        list[str] | None, flag("--keep-column", help="Pass only this column through; may be repeated.", panel=INPUT)
    ] = None,
    on_too_long: Annotated[
        Literal["error", "truncate-left", "truncate-right"],
        flag(help="What to do with a prompt beyond the context.", panel=INPUT),
    ] = "error",
    max_tokens: Annotated[int | None, flag(help="New tokens per row (256).", panel=SAMPLING)] = None,
    temperature: Annotated[float | None, flag(help="0 is greedy (0).", panel=SAMPLING)] = None,
    top_p: Annotated[float | None, flag(help="Sample from so much probability (1).", panel=SAMPLING)] = None,
    top_k: Annotated[int | None, flag(help="Sample from so many tokens; 0 is all (0).", panel=SAMPLING)] = None,
    min_p: Annotated[float | None, flag(help="Drop tokens below this share of the best (0).", panel=SAMPLING)] = None,
    repetition_penalty: Annotated[float | None, flag(help="Above 1 avoids what was seen (1).", panel=SAMPLING)] = None,
    presence_penalty: Annotated[
        float | None, flag(help="Subtracted once from new text's tokens (0).", panel=SAMPLING)
    ] = None,
    frequency_penalty: Annotated[
        float | None, flag(help="Subtracted for each use in new text (0).", panel=SAMPLING)
    ] = None,
    stop: Annotated[list[str] | None, flag(help="End at this text; may be repeated.", panel=SAMPLING)] = None,
    stop_token_ids: Annotated[
        list[int] | None, flag("--stop-token-id", help="End at this token; may be repeated.", panel=SAMPLING)
    ] = None,
    ignore_eos: Annotated[bool, flag("--ignore-eos", help="Go on to --max-tokens.", panel=SAMPLING)] = False,
    n: Annotated[int | None, flag("--n", help="Samples per row (1).", panel=SAMPLING)] = None,
    seed: Annotated[int | None, flag(help="Of the job (derived from input and options).", panel=SAMPLING)] = None,
    order: Annotated[
        Literal["longest-branch", "prefix", "input", "longest"], flag(help="Of work, not of results.", panel=PLAN)
    ] = "longest-branch",
    shard_tokens: Annotated[int | None, flag(help="Tokens per shard.", panel=PLAN)] = None,
    dry_run: Annotated[bool, flag("--dry-run", help="Check and plan everything, submit nothing.", panel=PLAN)] = False,
    device: Annotated[str | None, flag(help="cpu or cuda (NIGHTMILL_DEVICE).", panel=ENGINE)] = None,
    max_sequences: Annotated[int | None, flag(help="Sequences at once.", panel=ENGINE)] = None,
    max_batch_tokens: Annotated[int | None, flag(help="Tokens of one step.", panel=ENGINE)] = None,
    no_block_sharing: Annotated[
        bool, flag("--no-block-sharing", help="No block serves two sequences.", panel=ENGINE)
    ] = False,
    no_prefix_sharing: Annotated[bool, flag("--no-prefix-sharing", help="Skip no prefill.", panel=ENGINE)] = False,
    strict: Annotated[bool, flag("--strict", help="A row's bits depend on that row alone.", panel=ENGINE)] = False,
    name: Annotated[str | None, flag(help="A name for lists.", panel=CONTROL)] = None,
    tag: Annotated[list[str] | None, flag(help="KEY=VALUE, kept with the job; may be repeated.", panel=CONTROL)] = None,
    resume: Annotated[
        Literal["if_possible", "always", "never"],
        flag(help="Whether to take up the job of this output directory.", panel=CONTROL),
    ] = "if_possible",
    deadline: Annotated[str | None, flag(help="Expire after 24h, or at 2026-12-01T06:00Z.", panel=CONTROL)] = None,
    max_error_rate: Annotated[
        float | None, flag(help="Fail early when a larger share of the rows fails, 0 to 1.", panel=CONTROL)
    ] = None,
    idempotency_key: Annotated[
        str | None, flag(help="The same key is the same job, or refused.", panel=CONTROL)
    ] = None,
    wait: Annotated[bool, flag("--wait", help="Wait for the end (embedded mode always does).", panel=CONTROL)] = False,
    wait_timeout: Annotated[float | None, flag(help="Wait so many seconds at most (exit 124).", panel=CONTROL)] = None,
) -> None:
    """Submit a job: Parquet in, Parquet out. The same command again resumes or attaches.

    The plan is printed on stderr, the job id on stdout.
    """
    from jobs import client
    from jobs.cli import submission
    from jobs.options import SubmitOptions
    from jobs.sampling import Sampling, check_overrides

    _check_local({"output": output, "data set": only_new})
    sampling = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "stop": stop or None,
        "stop_token_ids": stop_token_ids or None,
        "ignore_eos": ignore_eos or None,
        "n": n,
    }
    engine = {"device": device, "max_sequences": max_sequences, "max_batch_tokens": max_batch_tokens}
    given = _engine(engine | {"strict": strict or None}, no_block_sharing, no_prefix_sharing)
    try:
        options = SubmitOptions(
            inputs=tuple(inputs),
            output=output,
            model=model,
            model_revision=model_revision,
            prompt_column=prompt_column,
            messages_column=messages_column,
            id_column=id_column,
            system_prompt=system_prompt,
            raw_prompt=raw_prompt,
            sampling=Sampling().overridden(check_overrides(sampling)),
            seed=seed,
            limit=limit,
            only_new=only_new,
            keep_columns=tuple(keep_columns) if keep_columns else None,
            on_too_long=on_too_long,
            order=order,
            shard_tokens=shard_tokens,
            name=name,
            tags=_tags(tag or []),
            resume=resume,
            deadline=deadline,
            max_error_rate=max_error_rate,
            idempotency_key=idempotency_key,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    if dry_run:
        submission.show_plan(options, client.place_for(given))
        return
    waits = wait or wait_timeout is not None
    raise typer.Exit(submission.run(options, client.place_for(given), waits=waits, timeout=wait_timeout))


def _tags(given: Sequence[str]) -> dict[str, str]:
    """KEY=VALUE pairs. Raises ValueError."""
    for pair in given:
        if not pair.partition("=")[0] or "=" not in pair:
            raise ValueError(f"--tag is {pair!r}; write it as KEY=VALUE")
    return {key: value for key, _, value in (pair.partition("=") for pair in given)}


def _check_local(paths: Mapping[str, Path | None]) -> None:
    from storage.layout import is_remote

    for what, path in paths.items():
        if is_remote(str(path)):
            raise UsageError(
                f"the {what} {path} is no local directory; s3:// and other object storage are not supported yet"
            )


def _engine(options: Mapping[str, Any], no_block_sharing: bool, no_prefix_sharing: bool) -> dict[str, Any]:
    """The settings of the engine that were given."""
    given = {name: value for name, value in options.items() if value is not None}
    given |= {"block_sharing": False} if no_block_sharing else {}
    return given | ({"prefix_sharing": False} if no_prefix_sharing else {})
