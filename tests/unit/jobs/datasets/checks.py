"""What users write as checks of their own, good and bad."""

from __future__ import annotations

import sys

import pyarrow.dataset as ds


def fine(run: ds.Dataset) -> None:
    assert run.count_rows() > 0


def has_prompts(run: ds.Dataset) -> bool:
    return "prompt" in run.schema.names


def no_refusals(run: ds.Dataset) -> str | None:
    refused = sum("sorry" in (text or "") for batch in run.to_batches() for text in batch["output_text"].to_pylist())
    return f"{refused} texts say sorry" if refused else None


def never(run: ds.Dataset) -> bool:
    return False


def broken(run: ds.Dataset) -> None:
    raise KeyError("no_such_column")


def leaves(run: ds.Dataset) -> None:
    sys.exit(3)
