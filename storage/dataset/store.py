"""The owner of a data set's files: whoever changes `current.json` or the card goes through here, one at a time.

Each move can be repeated after a crash and by several processes; who comes later finds what was done and goes on.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pyarrow.parquet as pq
from filelock import FileLock, Timeout

from storage import failpoints, layout
from storage.dataset import names
from storage.dataset.card import MARK
from storage.dataset.current import Current, CurrentRun, read_current
from storage.dataset.links import first_link, refuse_links
from storage.dataset.retention import Retention
from storage.dataset.verdicts import DamagedVerdict, Verdict, read_verdict, verdicts
from storage.durable import create_exclusive, make_folder, remove_temporaries, sha256_file, sync_folder, write_atomic
from storage.errors import DatasetBusy, FileDamaged, NoSuchDataset
from storage.parquet.generations import Generation, listed_file
from storage.parquet.manifest import newest_generation

log = logging.getLogger(__name__)

LOCK_SECONDS = 60.0  # what is done under the lock are a few small files


class DatasetStore:
    """One data set. Its methods raise DatasetBusy when somebody else holds the lock for too long, FileDamaged,
    FileUnreadable. A verdict that is damaged is in nobody's way but its own run's."""

    def __init__(self, folder: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self.folder = folder
        self._lock_seconds = lock_seconds
        self._lock = FileLock(folder / names.LOCK, timeout=lock_seconds)  # this thread may take it again

    def run_folder(self, label: str, run: str) -> Path:
        assert names.is_name(label), f"no label can be called {label!r}"
        assert names.is_name(run), f"no run can be called {run!r}"
        refuse_links(self.folder, label, run)
        return self.folder / names.run_folder(label, run)

    def current(self) -> Current:
        """What is current; nothing in a new data set."""
        try:
            return read_current(self.folder)
        except NoSuchDataset:
            return Current()

    def settle(
        self, label: str, run: str, generation: int, decide: Callable[[Current, Verdict | None], Verdict], now: datetime
    ) -> Verdict:
        """Decide on a run with nobody else at it, and take it in if it is accepted; the verdict that stands. `decide`
        is given what is recorded already, of which it may refuse what was accepted and has not come in."""
        with self._locked():
            current = self.current()
            found = read_verdict(self.run_folder(label, run), generation)
            verdict = decide(current, found)
            if found is None:
                verdict = self.judge(verdict)
            elif verdict is not found:
                assert not verdict.accepted, f"the verdict on {label}/{run} stands"
                assert not current.is_past(label, found.order, found.generation), f"{label}/{run} has come in"
                write_atomic(self.run_folder(label, run) / names.verdict(generation), verdict.as_bytes())
            if verdict.accepted:
                self.take(verdict, now)
            return verdict

    def judge(self, verdict: Verdict) -> Verdict:
        """Record the verdict, unless there is one on this generation: the first one stands, and is returned."""
        folder = self.run_folder(verdict.label, verdict.run)
        with self._locked():
            found = read_verdict(folder, verdict.generation)
            if found is not None:
                return found
            taken = self.current().of(verdict.label)
            orders = [each.order for each in verdicts(self.folder, verdict.label) if isinstance(each, Verdict)]
            ordered = replace(verdict, order=1 + max([*orders, taken.order if taken else 0], default=0))
            failpoints.reach("settle.before_verdict")
            create_exclusive(folder / names.verdict(verdict.generation), ordered.as_bytes())
            failpoints.reach("settle.after_verdict")
            return ordered

    def take(self, verdict: Verdict, now: datetime) -> bool:
        """Make an accepted run current for its label; False if a run is that was judged later."""
        assert verdict.accepted, f"{verdict.label}/{verdict.run} was not accepted"
        out = self.run_folder(verdict.label, verdict.run)
        published = Generation.load(out, verdict.generation, verdict.manifest_sha256)
        new = CurrentRun(
            label=verdict.label,
            run=verdict.run,
            order=verdict.order,
            generation=verdict.generation,
            rows=published.manifest["rows"],
            manifest_sha256=verdict.manifest_sha256,
            files=tuple(
                f"{names.run_folder(verdict.label, verdict.run)}/{part['path']}" for part in published.manifest["parts"]
            ),
            since=now,
        )
        with self._locked():
            current = self._replace(lambda current: current.taking(new))
        taken = current.of(verdict.label)
        return taken is not None and taken.run == verdict.run

    def write_card(self, make: Callable[[Current, Sequence[Verdict | DamagedVerdict]], bytes]) -> None:
        """Write README.md from what is current and known of all runs, if that changes it."""
        with self._locked():
            found = list(verdicts(self.folder))
            for verdict in found:
                if isinstance(verdict, DamagedVerdict):
                    log.warning("%s; the card says so, and the run is kept", verdict.why)
            content = make(self.current(), found)
            path = self.folder / names.README
            before = path.read_bytes() if path.exists() else None
            if before is not None and MARK.encode() not in before:
                log.warning("%s is no card of ours and stays as it is", path)
            elif before != content:
                write_atomic(path, content)
            remove_temporaries(self.folder)  # of processes that were killed
        failpoints.reach("settle.after_card")

    def retain(self, rule: Retention, now: datetime) -> list[tuple[str, str]]:
        """Delete the run folders that the rule lets go; their (label, run)."""
        with self._locked():
            known = [verdict for verdict in verdicts(self.folder) if isinstance(verdict, Verdict)]
            gone = rule.removable(self.current(), known, now)
            gone = [each for each in gone if not _at_work(self.run_folder(*each))]
            for label, run in gone:
                self._put_away(label, run)
            failpoints.reach("settle.after_move")
            self._replace(self._without_gone)
        shutil.rmtree(self.folder / names.REMOVED, ignore_errors=True)  # also what a crash has left
        failpoints.reach("settle.after_retention")
        return gone

    def check_integrity(self) -> None:
        """Raise FileDamaged unless each label's run is there as it was taken in, and none of them is a replaced one."""
        current = self.current()
        labels = [run.label for run in current.runs]
        problems = [] if labels == sorted(set(labels)) else ["labels are not in order, or come twice"]
        gone = {(run.label, run.run) for run in current.replaced}
        for run in current.runs:
            problems += _problems(self.folder, run)
            if (run.label, run.run) in gone:
                problems.append(f"{run.folder} is current and replaced")
        if problems:
            raise FileDamaged(f"{self.folder / names.CURRENT}: {'; '.join(problems)}")

    def _put_away(self, label: str, run: str) -> None:
        """Move the folder where no reader looks, in one step: it is whole until it is gone."""
        aside = self.folder / names.REMOVED
        if aside.is_symlink():
            raise FileDamaged(f"{aside} is a link; remove it")
        make_folder(aside)
        source = self.run_folder(label, run)
        os.rename(source, aside / f"{label}.{run}.{uuid.uuid4().hex[:8]}")
        sync_folder(source.parent)

    def _without_gone(self, current: Current) -> Current:
        pairs = [(run.label, run.run) for run in current.replaced]
        kept = (pair for pair in pairs if first_link(self.folder, *pair) is None)
        return current.without(frozenset(pair for pair in kept if not self.run_folder(*pair).exists()))

    def _replace(self, move: Callable[[Current], Current]) -> Current:
        """Write what `move` makes of the present content, if it is another; the caller holds the lock."""
        path = self.folder / names.CURRENT
        before = path.read_bytes() if path.exists() else None
        current = self.current()
        moved = move(current)
        if moved is current:
            return current
        failpoints.reach("settle.before_current")
        if (path.read_bytes() if path.exists() else None) != before:
            raise DatasetBusy(f"{path} was changed by somebody who does not hold {names.LOCK}; try again")
        write_atomic(path, moved.as_bytes())
        failpoints.reach("settle.after_current")
        return moved

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.folder)
        try:
            with self._lock:
                yield
        except Timeout:
            raise DatasetBusy(
                f"{self.folder} is being changed by another process for more than {self._lock_seconds:g} s; try again"
            ) from None


def _at_work(out: Path) -> bool:
    """Do rows of this run's job run again?"""
    return any(out.glob(f"{layout.INPROGRESS}*"))


def _problems(dataset: Path, run: CurrentRun) -> Iterator[str]:
    """If its rows ran again, the newest generation counts: it has the same parts with the same rows."""
    out, generation = dataset / run.folder, max(run.generation, newest_generation(dataset / run.folder))
    manifest = out / layout.manifest_generation(generation)
    is_another = generation == run.generation and manifest.is_file() and sha256_file(manifest) != run.manifest_sha256
    if not manifest.is_file() or is_another:
        yield f"{manifest} is missing or is not what was taken in"
        return
    parts = json.loads(manifest.read_bytes())["parts"]
    if [f"{run.folder}/{part['path']}" for part in parts] != list(run.files):
        yield f"{run.folder} lists other files than its manifest"
    if sum(part["rows"] for part in parts) != run.rows:
        yield f"{run.folder} counts {run.rows} rows, its manifest another number"
    for part in parts:
        path = listed_file(out, generation, part["path"])
        if not path.is_file():
            yield f"{path} is missing"
        elif pq.read_metadata(path).num_rows != part["rows"]:
            yield f"{path} has not the {part['rows']} rows of its manifest"
