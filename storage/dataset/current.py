"""`current.json`: one run folder for each label, and which folders were replaced of late. Values and pure moves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from storage import layout
from storage.dataset import names
from storage.durable import read_bytes
from storage.errors import FileDamaged, NoSuchDataset, NotLocal

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class CurrentRun:
    """The run that is read for its label. `files` are its data parts, relative to the data set."""

    label: str
    run: str
    order: int  # of its verdict among those of the label: of two runs the later judged one is current
    generation: int
    rows: int
    manifest_sha256: str
    files: tuple[str, ...]
    since: datetime

    @property
    def folder(self) -> str:
        return names.run_folder(self.label, self.run)

    def as_json(self) -> dict[str, Any]:
        return {
            "run": self.run,
            "order": self.order,
            "generation": self.generation,
            "rows": self.rows,
            "manifest_sha256": self.manifest_sha256,
            "files": list(self.files),
            "since": self.since.isoformat(),
        }

    @staticmethod
    def from_json(label: str, fields: Mapping[str, Any]) -> CurrentRun:
        """Raises ValueError for what leads out of the run's folder, and as `Current.from_bytes` does."""
        since, files = datetime.fromisoformat(fields["since"]), tuple(fields["files"])
        run = CurrentRun(**{**fields, "label": label, "since": since, "files": files})
        if not (names.is_name(label) and names.is_name(run.run)):
            raise ValueError(f"{label!r} of run {run.run!r} is no name")
        if not all(isinstance(each, int) for each in (run.order, run.generation, run.rows)):
            raise ValueError(f"the run of {label} holds text where a number is meant")
        for file in files:
            if not layout.is_safe_key(file) or not file.startswith(f"{run.folder}/"):
                raise ValueError(f"the file {file!r} is not in {run.folder}")
        return run


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """A run folder that was current until `at`; readers may still be at it."""

    label: str
    run: str
    at: datetime

    @staticmethod
    def from_json(fields: Mapping[str, Any]) -> Replaced:
        left = Replaced(**{**fields, "at": datetime.fromisoformat(fields["at"])})
        if not (names.is_name(left.label) and names.is_name(left.run)):
            raise ValueError(f"{left.label!r} of run {left.run!r} is no name")
        return left


@dataclass(frozen=True, slots=True)
class Current:
    """What `current.json` says. `runs` by label, one for each; a replaced run is none of them."""

    revision: int = 0  # how often it was changed
    runs: tuple[CurrentRun, ...] = ()
    replaced: tuple[Replaced, ...] = ()

    def of(self, label: str) -> CurrentRun | None:
        return next((run for run in self.runs if run.label == label), None)

    def is_past(self, label: str, order: int, generation: int) -> bool:
        """Was what was judged so taken before, or a run that was judged later?"""
        taken = self.of(label)
        return taken is not None and (taken.order, taken.generation) >= (order, generation)

    def taking(self, new: CurrentRun) -> Current:
        """With `new` for its label; itself if it is past that."""
        old = self.of(new.label)
        if self.is_past(new.label, new.order, new.generation):
            return self
        left = [run for run in self.replaced if (run.label, run.run) != (new.label, new.run)]
        if old is not None and old.run != new.run:
            left.append(Replaced(label=old.label, run=old.run, at=new.since))
        runs = [*(run for run in self.runs if run.label != new.label), new]
        return Current(self.revision + 1, tuple(sorted(runs, key=lambda run: run.label)), tuple(left))

    def without(self, gone: frozenset[tuple[str, str]]) -> Current:
        """Without the replaced (label, run) of which nothing is left."""
        left = tuple(run for run in self.replaced if (run.label, run.run) not in gone)
        return self if left == self.replaced else replace(self, revision=self.revision + 1, replaced=left)

    def as_bytes(self) -> bytes:
        content = {
            "schema_version": SCHEMA_VERSION,
            "revision": self.revision,
            "labels": {run.label: run.as_json() for run in self.runs},
            "files": [file for run in self.runs for file in run.files],  # for whoever reads with three lines
            "replaced": [{"label": run.label, "run": run.run, "at": run.at.isoformat()} for run in self.replaced],
        }
        return (json.dumps(content, indent=2) + "\n").encode()

    @staticmethod
    def from_bytes(content: bytes) -> Current:
        """Raises ValueError, KeyError, TypeError, AttributeError for what is none."""
        fields = json.loads(content)
        if fields["schema_version"] != SCHEMA_VERSION:
            raise ValueError(f"its schema_version is {fields['schema_version']}; this program reads {SCHEMA_VERSION}")
        return Current(
            int(fields["revision"]),
            tuple(CurrentRun.from_json(label, run) for label, run in fields["labels"].items()),
            tuple(Replaced.from_json(run) for run in fields["replaced"]),
        )


def read_current(dataset: Path) -> Current:
    """What is current now, from one read of one file. Raises NoSuchDataset when nothing ever was, FileDamaged,
    FileUnreadable, NotLocal."""
    if layout.is_remote(str(dataset)):
        raise NotLocal(
            f"the data set {dataset} is no local directory; s3:// and other object storage are not supported yet"
        )
    path = dataset / names.CURRENT
    try:
        content = read_bytes(path)
    except (FileNotFoundError, NotADirectoryError):
        raise NoSuchDataset(f"{dataset} has no current run yet: {path} does not exist") from None
    try:
        return Current.from_bytes(content)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FileDamaged(f"{path} cannot be read: {error}") from error
