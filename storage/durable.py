"""Files that survive a crash: written under another name, made durable, renamed; and no path leaves its root.

A rename is atomic but lasts only once its folder is fsynced, so every helper here does both. A write that fails
leaves nothing under the final name. All paths are local.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from storage import failpoints
from storage.errors import FileDamaged, FileUnreadable, may_pass
from storage.layout import is_safe_key

TEMPORARY = ".tmp"


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of `path` durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folder(folder: Path) -> None:
    """Create `folder` and its missing parents so that they last."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def temporary(path: Path) -> Path:
    """A hidden name next to `path` that nobody else uses."""
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}{TEMPORARY}")


def move(source: Path, target: Path) -> None:
    """Give the durable file `source` its final name, replacing what is there. The caller syncs the folder."""
    failpoints.reach("rename.before")
    os.replace(source, target)
    failpoints.reach("rename.after")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path to write to; it becomes `path`, whole and durable, unless the block raises."""
    draft = temporary(path)
    try:
        yield draft
        sync_file(draft)
        move(draft, path)
        sync_folder(path.parent)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def write_atomic(path: Path, content: bytes) -> None:
    """Replace the file `path` with `content`: readers see the old or the new file, never a part of one."""
    make_folder(path.parent)
    with replacing(path) as draft:
        draft.write_bytes(content)


def read_bytes(path: Path) -> bytes:
    """The content of a file of ours. Raises FileNotFoundError, NotADirectoryError; FileUnreadable for trouble that may
    pass, FileDamaged for something that is no file."""
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        kind = FileUnreadable if may_pass(error) else FileDamaged
        raise kind(f"{path} cannot be read: {error}") from error


def create_exclusive(path: Path, content: bytes) -> bool:
    """Create `path` whole and durable; False if it exists already, then nothing changes."""
    make_folder(path.parent)
    draft = temporary(path)
    try:
        draft.write_bytes(content)
        sync_file(draft)
        os.link(draft, path)  # unlike a rename, a link never replaces
    except FileExistsError:
        return False
    finally:
        draft.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writers left in `folder`. Only for folders that have a single writer at a time."""
    for leftover in folder.glob(f".*{TEMPORARY}"):
        leftover.unlink(missing_ok=True)


def sha256_bytes(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(root: Path, key: str) -> Path:
    """The path of `key` below `root`. Raises FileDamaged for a key that names anything outside, links included."""
    path = root / key
    if not is_safe_key(key) or not path.resolve().is_relative_to(root.resolve()):
        raise FileDamaged(f"the file name {key!r} does not stay inside {root}; the record of this file is damaged")
    return path
