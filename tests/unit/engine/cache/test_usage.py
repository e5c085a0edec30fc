from __future__ import annotations

import pytest

from engine.cache.usage import GroupUse


def test_a_block_of_one_job_is_charged_to_it_alone_however_many_sequences_use_it() -> None:
    use = GroupUse(4)
    use.add(1, "a")
    use.add(1, "a")
    use.record_step()

    assert use.of("a").peak == 1.0


def test_a_block_of_k_jobs_is_charged_one_kth_to_each() -> None:
    use = GroupUse(4)
    for job in ("a", "b", "c"):
        use.add(1, job)
    use.add(2, "a")
    use.record_step()

    assert use.of("a").peak == pytest.approx(4 / 3)
    assert use.of("b").peak == pytest.approx(1 / 3)


def test_who_leaves_a_shared_block_leaves_its_charge_to_the_others() -> None:
    use = GroupUse(4)
    use.add(1, "a")
    use.add(1, "b")
    use.remove(1, "a")
    use.record_step()

    assert use.of("b").peak == pytest.approx(1.0)
    assert use.of("a").peak == 0.0
    use.check_integrity([0, 1, 0, 0])


def test_the_mean_is_over_the_steps_in_which_the_job_had_blocks() -> None:
    use = GroupUse(4)
    use.record_step()
    use.add(1, "a")
    use.record_step()
    use.add(2, "a")
    use.record_step()
    use.remove(1, "a")
    use.remove(2, "a")
    use.record_step()

    assert use.of("a").mean == pytest.approx(1.5)
    assert use.of("a").peak == 2.0


def test_thousands_of_jobs_leave_a_bounded_number_of_records() -> None:
    use = GroupUse(4)
    use.add(1, "long")
    for number in range(5000):
        use.add(2, f"job {number}")
        use.record_step()
        use.remove(2, f"job {number}")
        assert use.of(f"job {number}").peak == 1.0, "the figures are read when the blocks have been given back"

    sizes = [len(getattr(use, name)) for name in GroupUse.__slots__]

    assert max(sizes) < 2000
    assert use.of("long").mean == 1.0
    assert use.of("job 4000").peak == 1.0
    use.check_integrity([0, 1, 0, 0])


def test_a_job_that_comes_back_goes_on_with_its_figures() -> None:
    use = GroupUse(4)
    for blocks in ((1, 2, 3), (1,)):
        for block in blocks:
            use.add(block, "a")
        use.record_step()
        for block in blocks:
            use.remove(block, "a")
        use.record_step()

    assert (use.of("a").peak, use.of("a").mean) == (3.0, 2.0)
    use.check_integrity([0] * 4)


def test_an_unknown_job_has_used_nothing() -> None:
    assert GroupUse(4).of("nobody").peak == 0.0
