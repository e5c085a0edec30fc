"""A publisher killed anywhere: readers see nothing or everything, and publishing again ends with the same bytes."""

import json
import os
import shutil
from collections import Counter

import pyarrow.parquet as pq
import pytest

from storage import layout
from storage.durable import remove_temporaries, sha256_file
from storage.output import sweep
from storage.parquet.generations import Generation, collect, listed_file
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


def test_a_crash_in_a_second_generation_leaves_every_row_once_and_the_first_one_readable(tmp_path, monkeypatch):
    settings = {"part_bytes": 600, "row_group_bytes": 300}
    first = make_job(tmp_path / "first", [5, 3, 4, 1, 2, 0], shard_rows=3)
    publish(first.out, first.publish_job(**settings), first.run())
    sweep(first.out)
    survived, changes, stages = False, 0, set()

    while not survived:
        out = tmp_path / f"out-{changes}"
        shutil.copytree(first.out, out)
        job = make_job(out, [4, 0], shard_rows=1, generation=2)
        files = job.run(status="succeeded", output_text="run again")
        again = {"base": Generation.load(out, 1), **settings}
        with monkeypatch.context() as patch:
            Dying(patch, changes)
            try:
                publish(out, job.publish_job(**again), files)
                survived = True
            except Killed:
                changes += 1

        read = pq.read_table(out / layout.DATA).select(["row_index", "output_text"]).to_pylist()
        assert Counter(row["row_index"] for row in read) == Counter(range(6))
        stages.add(sum(row["output_text"] == "run again" for row in read))
        assert intact(out, 1)
        ended = publish(out, job.publish_job(epoch=2, **again), files)
        assert ended.counts["succeeded"] == 6
        sweep(out, 2)
        assert intact(out, 1)
        assert intact(out, 2)
        collect(out, newest=2)
        assert intact(out, 2)
        if survived:
            wanted = published_files(out)
        shutil.rmtree(out)

    assert changes > 30
    assert stages == {0, 1, 2}
    assert sum(name.startswith("data/") for name in wanted) == 2
    assert not any("superseded" in name or "manifest-0001" in name for name in wanted)


def intact(out, generation):
    """Is everything there that this generation's manifest lists, as it lists it?"""
    manifest = json.loads((out / layout.manifest_generation(generation)).read_bytes())
    parts = [part for kind in ("parts", "metrics", "errors") for part in manifest[kind]]
    return all(sha256_file(listed_file(out, generation, part["path"])) == part["sha256"] for part in parts)
