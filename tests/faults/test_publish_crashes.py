"""A publisher killed anywhere: readers see nothing or everything, and publishing again ends with the same bytes."""

import os

import pytest

from storage import layout
from storage.durable import remove_temporaries
from storage.parquet.publisher import publish
from tests.unit.storage.parquet.samples import make_job, published_files


class Killed(BaseException):
    """A process that ends here."""


class Dying:
    """Lets the first `limit` changes of the disk happen, and none after them."""

    def __init__(self, patch: pytest.MonkeyPatch, limit: int) -> None:
        self.left = limit
        for name in ("replace", "link", "unlink", "fsync"):
            patch.setattr(os, name, self.counted(getattr(os, name)))

    def counted(self, real):
        def call(*arguments, **named):
            self.left -= 1
            if self.left < 0:
                raise Killed
            return real(*arguments, **named)

        return call


def test_a_crash_at_any_change_of_the_disk_is_mended_by_publishing_again(tmp_path, monkeypatch):
    job = make_job(tmp_path, [5, 3, 4, 1, 2, 0], shard_rows=3)
    files = job.run()
    settings = {"part_bytes": 600, "row_group_bytes": 300}
    manifest = publish(tmp_path, job.publish_job(**settings), files).manifest_sha256
    wanted = published_files(tmp_path)
    assert sum(name.startswith("data/") for name in wanted) == 2
    survived, changes = False, 0

    while not survived:
        for name in wanted:
            (tmp_path / name).unlink(missing_ok=True)
        with monkeypatch.context() as patch:
            Dying(patch, changes)
            try:
                publish(tmp_path, job.publish_job(**settings), files)
                survived = True
            except Killed:
                changes += 1

        left = published_files(tmp_path)
        if layout.MANIFEST in left:  # then everything that it lists is there
            assert {name: left.get(name) for name in wanted} == wanted
        assert publish(tmp_path, job.publish_job(epoch=2, **settings), files).manifest_sha256 == manifest
        for folder in (tmp_path, tmp_path / layout.META):
            remove_temporaries(folder)
        assert published_files(tmp_path) == wanted

    assert changes > 30
