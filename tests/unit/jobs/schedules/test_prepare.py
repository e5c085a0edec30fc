from __future__ import annotations

import pyarrow.parquet as pq

from storage.states import RunState
from tests.unit.jobs.schedules.office import Office

WEDNESDAY = "2026-11-25"


def test_an_input_with_a_column_of_the_labels_name_is_refused_before_anything_is_generated(office: Office) -> None:
    path = office.write("in/a.parquet", "one")
    pq.write_table(pq.read_table(path).append_column("dt", [["2026"]]), path)
    office.add()

    office.tick(f"{WEDNESDAY}T00:00:10")

    run = office.run(WEDNESDAY)
    assert (run.state, run.job_id) == (RunState.FAILED, None)
    assert "the column dt is the run's label in a data set; rename it" in str(run.reason)


def test_a_label_that_is_a_link_out_of_the_data_set_is_refused(office: Office) -> None:
    office.write("in/a.parquet", "one")
    office.add()
    elsewhere, runs = office.folder / "elsewhere", office.folder / "data-nightly/_runs"
    elsewhere.mkdir()
    runs.mkdir(parents=True)
    (runs / WEDNESDAY).symlink_to(elsewhere)

    office.tick(f"{WEDNESDAY}T00:00:10")

    assert office.run(WEDNESDAY).state == RunState.FAILED
    assert f"{runs / WEDNESDAY} is a link" in str(office.run(WEDNESDAY).reason)
    assert list(elsewhere.iterdir()) == []
