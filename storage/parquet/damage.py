"""Files of finished rows that are not what SQL recorded of them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from storage.durable import inside, sha256_file
from storage.errors import FileDamaged
from storage.parquet.rows import SealedFile
from storage.parquet.sealed import open_sealed


class FilesDamaged(FileDamaged):
    """Shard files or segments are damaged; `files` says what is wrong with each key. Their rows must run again before
    the job can be published."""

    def __init__(self, files: Mapping[str, str]) -> None:
        super().__init__("; ".join(files.values()))
        self.files = files


def damaged(out: Path, files: Iterable[SealedFile], beat: Callable[[], None] = lambda: None) -> dict[str, str]:
    """What is wrong with each of these files that is not there, whole, and as it was recorded; by key."""
    found = {}
    for file in files:
        wrong = _what_is_wrong(out, file)
        if wrong is not None:
            found[file.key] = wrong
        beat()
    return found


def _what_is_wrong(out: Path, file: SealedFile) -> str | None:
    path = inside(out, file.key)
    if not path.is_file():
        return f"{path} is missing"
    try:
        found = sha256_file(path)
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return f"{path} cannot be read: {error.strerror}"
    if found != file.sha256:
        return f"{path} has sha256 {found}, not the recorded {file.sha256}"
    with open_sealed(path) as source:
        rows = source.metadata.num_rows
    return None if rows == file.rows else f"{path} has {rows} rows, not the recorded {file.rows}"
