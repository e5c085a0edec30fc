"""The output directory as a whole: which job owns it, giving it back, and sweeping what only a running job needs."""

from __future__ import annotations

import json
import shutil
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from storage import layout
from storage.durable import TEMPORARY, create_exclusive, make_folder, remove_temporaries, sync_folder
from storage.errors import OutputConflict


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """What OUT remembers of its job: enough to tell the same submission from another one."""

    run_key: str
    spec_hash: str


def take_output(out: Path, owner: Owner) -> bool:
    """Make OUT this job's own, durably; True if it was not before, False if it was already ours.

    Raises OutputConflict when OUT belongs to another job or another specification, holds foreign files or cannot be
    written; then nothing has changed.
    """
    if layout.is_remote(str(out)):
        raise OutputConflict(f"{out}: results can only be written to local paths, object storage is not supported yet")
    if _is_ours(out, owner):
        return False
    made = _first_missing(out)
    marker = (json.dumps(asdict(owner), indent=2) + "\n").encode()
    try:
        make_folder(out)
        taken = create_exclusive(out / layout.OWNER, marker)
    except OSError as error:
        _remove_empty(out, made)
        raise OutputConflict(
            f"{out}: the output directory cannot be written ({error.strerror or error}); "
            "name another one or change its permissions"
        ) from error
    return taken or not _is_ours(out, owner)  # somebody else was faster: then it must be the same job


def read_owner(out: Path) -> Owner | None:
    """Whose OUT is, or None when it is nobody's. Raises OutputConflict when its marker cannot be read."""
    path = out / layout.OWNER
    try:
        fields = json.loads(path.read_text())
        return Owner(run_key=str(fields["run_key"]), spec_hash=str(fields["spec_hash"]))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputConflict(f"{path} cannot be read ({error}); name another output directory") from error


def drop_output(out: Path, owner: Owner) -> None:
    """Give OUT back after a submission that came to nothing: its plan and marker go. Not for published jobs."""
    if read_owner(out) != owner or (out / layout.MANIFEST).exists():
        return
    sweep(out)
    (out / layout.INPUT_ROWS).unlink(missing_ok=True)
    (out / layout.OWNER).unlink(missing_ok=True)
    _remove_empty(out, out)


def sweep(out: Path, generation: int = 1) -> None:
    """Remove the plan, segments and shard files of the generations up to this one; only once SQL says that they have
    ended. Can be repeated, also by two processes at the same time; what a newer generation works on stays."""
    for folder in work_folders(out, generation):
        while folder.is_symlink() or folder.exists():
            with suppress(FileNotFoundError):  # the other process was faster with this file: look again
                if folder.is_symlink():
                    folder.unlink()
                else:
                    shutil.rmtree(folder)
    for place in (out, out / layout.META):
        remove_temporaries(place)
    with suppress(FileNotFoundError):
        sync_folder(out)


def forget_plannings(out: Path, epoch: int) -> None:
    """Remove what planners with a lower epoch left undone. Nothing else: one that lost its right in its sleep must
    harm neither the next planner nor the job that runs by then."""
    for earlier in range(1, epoch):
        shutil.rmtree(out / layout.planning(earlier), ignore_errors=True)


def forget_drafts(out: Path, generation: int) -> None:
    """Remove what publishers have staged whose rows run again: one that sleeps must not move it into place."""
    for folder in (out / layout.work(generation)).glob("publish.e*"):
        shutil.rmtree(folder, ignore_errors=True)


def work_folders(out: Path, generation: int) -> list[Path]:
    """The folders that exist of running or interrupted generations up to this one."""
    folders = [out / layout.work(number) for number in range(1, generation + 1)]
    return [folder for folder in folders if folder.is_symlink() or folder.exists()]


def _is_ours(out: Path, owner: Owner) -> bool:
    """Does OUT already carry this very marker? Raises OutputConflict when it is somebody else's."""
    found = read_owner(out)
    if found == owner:
        return True
    if found is not None and found.run_key == owner.run_key:
        raise OutputConflict(
            f"{out}: this job was submitted before with other settings that change its results; "
            "submit with the old settings to resume it, or name another output directory"
        )
    if found is not None:
        raise OutputConflict(f"{out}: belongs to another job ({found.run_key}); name another output directory")
    foreign = _foreign_file(out)
    if foreign is not None:
        raise OutputConflict(f"{out}: is not empty ({foreign.name} is there); name a new or empty output directory")
    return False


def _foreign_file(out: Path) -> Path | None:
    """Something in OUT that no submission killed half-way has left there."""
    if out.exists() and not out.is_dir():
        return out
    entries = (path for path in out.rglob("*") if path != out / layout.META)
    return next((path for path in entries if not _is_leftover(out, path)), None)


def _is_leftover(out: Path, path: Path) -> bool:
    return path.parent == out / layout.META and path.name.startswith(".") and path.name.endswith(TEMPORARY)


def _first_missing(out: Path) -> Path | None:
    """The topmost folder that making OUT has to create."""
    missing = [place for place in (out, *out.parents) if not place.exists()]
    return missing[-1] if missing else None


def _remove_empty(out: Path, top: Path | None) -> None:
    """Remove the empty folders from OUT's `_meta` up to `top`, which is OUT or above it."""
    remove_temporaries(out / layout.META)
    places = [out / layout.META, out]
    if top is not None and top != out:
        places += out.parents[: out.parents.index(top) + 1] if top in out.parents else []
    for place in places if top is not None else places[:1]:
        try:
            place.rmdir()
        except OSError:
            return
