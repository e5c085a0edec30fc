"""Whether anybody has written to a database: what nobody wrote need not be read again."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Self

_LOCKED_SECONDS = 0.1  # for which a look may wait; then it says that there may be something new


class Changes:
    """Tells whether another connection has written since the last look. Of one thread at a time.

    SQLite counts its writers' transactions in the file that all share (`PRAGMA data_version`), so a look costs some
    microseconds; the queries of a tick cost 10 ms of a core whose caches a model fills. Of a database that is no file
    on this machine it always says that there may be something new.
    """

    def __init__(self, file: Path | None) -> None:
        """`file` is SQLite's, or None."""
        self._file = file
        self._connection: sqlite3.Connection | None = None
        self._version: int | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def seen(self) -> bool:
        """Whether there may be something new since the last call; True at the first, and whenever it cannot be said."""
        try:
            version = self._data_version()
        except sqlite3.Error:
            self.close()
            return True
        is_new = version is None or version != self._version
        self._version = version
        return is_new

    def close(self) -> None:
        """Idempotent."""
        if self._connection is not None:
            self._connection.close()
        self._connection = self._version = None

    def _data_version(self) -> int | None:
        if self._file is None:
            return None
        if self._connection is None:
            address = f"{self._file.absolute().as_uri()}?mode=rw"
            self._connection = sqlite3.connect(address, uri=True, timeout=_LOCKED_SECONDS, check_same_thread=False)
        found: tuple[int] = self._connection.execute("PRAGMA data_version").fetchone()
        return found[0]
