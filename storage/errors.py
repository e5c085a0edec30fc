"""What can go wrong in storage. Messages say which job, shard or row, and what to do.

StorageError
├── InputInvalid      the input cannot be read as prompts; has a `code`
├── OutputConflict    the output directory belongs to another job, or cannot be written
├── NoSuchJob
├── NoSuchDataset     no run of this data set is current yet
├── NotLocal          a path that names object storage, which is not supported yet
├── DatasetBusy       another process changes the data set for too long
├── JobConflict       the same run key or output with another specification
├── NoSuchSchedule
├── ScheduleConflict  the name or data set belongs to another schedule, or it was changed meanwhile
├── Fenced            a newer epoch owns the shard or job; stop, delete own files
├── SchemaOutdated    the database has an older or newer schema than this program
├── DatabaseDown      SQL cannot be reached; retrying later may help
├── FileUnreadable    a file cannot be read now, and nothing says that it is damaged
└── FileDamaged       a file's sha256 or row count is not what SQL or the manifest says
"""

import errno


class StorageError(Exception):
    """Base of every error that storage raises on purpose."""


class InputInvalid(StorageError):
    """The input cannot be read as prompts. `code`: missing_file, not_parquet, truncated, missing_column, wrong_type,
    ambiguous_columns, duplicate_id, changed, empty, name_clash."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class OutputConflict(StorageError):
    """The output directory belongs to another job, or cannot be written."""


class NoSuchJob(StorageError):
    """There is no job with this id."""


class NoSuchDataset(StorageError):
    """No run of this data set is current yet."""


class NotLocal(StorageError):
    """A path that names object storage; only local paths are supported yet."""


class DatasetBusy(StorageError):
    """Another process changes this data set now; trying again later may help."""


class JobConflict(StorageError):
    """A job with the same run key or output exists with another specification."""


class NoSuchSchedule(StorageError):
    """There is no schedule of this name, or no run of this label."""


class ScheduleConflict(StorageError):
    """The name or data set belongs to another schedule, or the schedule or run is not in the state that was asked of
    it."""


class Fenced(StorageError):
    """A newer epoch owns this shard, job or run: this attempt is over and its files must go."""


class SchemaOutdated(StorageError):
    """The database schema is not the one that this program was written for."""


class DatabaseDown(StorageError):
    """The database cannot be reached now."""


class FileUnreadable(StorageError):
    """The machine is in the way of a file: no permission, no descriptor left, a disk or share that does not answer.
    Trying again later may help."""


class FileDamaged(StorageError):
    """A file's sha256 or row count is not what SQL or the manifest says."""


def may_pass(error: BaseException | None) -> bool:
    """Is it the machine's trouble with a file, and not that the file is damaged, is none, or is not there?"""
    return isinstance(error, OSError) and error.errno not in _OF_THE_FILE


_OF_THE_FILE = (None, errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG)
"""None: what pyarrow raises of a content that it cannot parse."""
