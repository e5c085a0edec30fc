import json
import os
from pathlib import Path

import pytest

from storage import layout
from storage.errors import OutputConflict
from storage.output import Owner, drop_output, read_owner, sweep, take_output

OURS = Owner(run_key="out-1", spec_hash="aa")


def names(folder) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


def test_a_new_directory_becomes_ours_once(tmp_path):
    out = tmp_path / "deep" / "out"

    assert take_output(out, OURS)
    assert not take_output(out, OURS)

    assert read_owner(out) == OURS
    assert names(out) == ["_meta", layout.OWNER]


def test_an_empty_directory_becomes_ours(tmp_path):
    assert take_output(tmp_path, OURS)


def test_another_jobs_directory_is_refused_by_its_name(tmp_path):
    take_output(tmp_path, Owner(run_key="theirs", spec_hash="bb"))
    before = names(tmp_path)

    with pytest.raises(OutputConflict, match=r"another job \(theirs\)"):
        take_output(tmp_path, OURS)

    assert names(tmp_path) == before


def test_the_same_job_with_other_settings_is_refused(tmp_path):
    take_output(tmp_path, OURS)

    with pytest.raises(OutputConflict, match="other settings"):
        take_output(tmp_path, Owner(run_key="out-1", spec_hash="bb"))

    assert read_owner(tmp_path) == OURS


@pytest.mark.parametrize("name", ["notes.txt", "data/part-00000.parquet", "_meta/job.json", ".cache"])
def test_a_directory_with_foreign_files_is_refused_and_left_alone(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    before = names(tmp_path)

    with pytest.raises(OutputConflict, match="not empty"):
        take_output(tmp_path, OURS)

    assert names(tmp_path) == before


def test_a_file_is_no_output_directory(tmp_path):
    (tmp_path / "out").write_text("mine")

    for out in (tmp_path / "out", tmp_path / "out" / "below"):
        with pytest.raises(OutputConflict):
            take_output(out, OURS)

    assert (tmp_path / "out").read_text() == "mine"


def test_a_submission_killed_before_it_owned_the_directory_is_no_obstacle(tmp_path):
    (tmp_path / "_meta").mkdir()
    (tmp_path / "_meta" / ".owner.json.0123.tmp").write_text("{")

    assert take_output(tmp_path, OURS)


def test_an_unwritable_directory_is_refused_with_nothing_left_behind(tmp_path, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "link", refuse)  # root may write everywhere, so permissions alone show nothing

    with pytest.raises(OutputConflict, match="cannot be written"):
        take_output(tmp_path / "deep" / "out", OURS)

    assert names(tmp_path) == []


def test_an_address_that_is_not_local_is_refused():
    with pytest.raises(OutputConflict, match="only be written to local paths"):
        take_output(Path("s3://bucket/out"), OURS)


def test_a_damaged_marker_is_nobodys(tmp_path):
    take_output(tmp_path, OURS)
    (tmp_path / layout.OWNER).write_text("{")

    with pytest.raises(OutputConflict, match="cannot be read"):
        take_output(tmp_path, OURS)


def test_a_submission_that_came_to_nothing_gives_everything_back(tmp_path):
    out = tmp_path / "out"
    take_output(out, OURS)
    (out / layout.PLAN).parent.mkdir(parents=True)
    (out / layout.PLAN).touch()

    drop_output(out, Owner(run_key="theirs", spec_hash="aa"))
    assert (out / layout.PLAN).exists()

    drop_output(out, OURS)
    assert names(tmp_path) == []


def test_a_published_output_is_not_given_back(tmp_path):
    take_output(tmp_path, OURS)
    (tmp_path / layout.MANIFEST).write_text(json.dumps({}))

    drop_output(tmp_path, OURS)

    assert read_owner(tmp_path) == OURS


def test_the_sweep_leaves_the_owner_and_can_be_repeated(tmp_path):
    take_output(tmp_path, OURS)
    (tmp_path / layout.SHARDS).mkdir(parents=True)
    (tmp_path / layout.META / ".job.json.0123.tmp").touch()

    sweep(tmp_path)
    sweep(tmp_path)

    assert names(tmp_path) == ["_meta", layout.OWNER]
    assert not take_output(tmp_path, OURS)


def test_the_sweep_does_not_follow_a_link(tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "precious").touch()
    out = tmp_path / "out"
    out.mkdir()
    (out / layout.INPROGRESS).symlink_to(elsewhere)

    sweep(out)

    assert names(out) == []
    assert (elsewhere / "precious").exists()
