"""The model in memory keeps the laws that a simulation leans on: it is a repository as the real ones are."""

from __future__ import annotations

import pytest

from tests.conformance.damage import (  # noqa: F401
    test_a_committed_shard_whose_file_is_damaged_is_merged_again_from_its_segments,
    test_a_reopening_whose_answer_was_lost_can_be_repeated,
    test_a_row_that_was_given_up_alone_runs_alone_once_more,
    test_a_running_attempt_drops_what_an_earlier_one_has_sealed,
    test_lost_rows_of_a_split_shard_become_a_part_of_their_own,
    test_nothing_of_a_cancelled_job_runs_again,
    test_only_the_present_finaliser_may_reopen,
    test_rows_that_a_stopped_job_gave_up_stay_given_up,
    test_rows_that_were_given_up_run_again_with_those_that_were_lost,
)
from tests.conformance.jobs import (  # noqa: F401
    test_a_cancel_stops_waiting_shards_and_flags_running_ones,
    test_a_cancelled_job_keeps_what_was_finished_and_counts_the_rest,
    test_a_commit_that_comes_before_the_worker_saw_the_cancel_counts,
    test_a_failed_job_fences_its_workers,
    test_a_finaliser_whose_lease_ran_out_is_fenced_by_the_next,
    test_a_job_cannot_be_published_while_shards_are_open,
    test_a_job_is_published_once_by_one_finaliser,
    test_a_job_of_which_no_row_succeeded_has_failed_and_says_why,
    test_a_job_that_is_being_published_completes_in_spite_of_a_cancel,
    test_a_job_that_was_never_planned_is_cancelled_at_once,
    test_a_job_whose_shards_were_all_given_up_names_the_commonest_cause,
    test_a_plan_is_stored_with_all_its_shards,
    test_a_plan_whose_answer_was_lost_can_be_stored_again,
    test_only_one_process_may_plan_a_job_until_its_lease_is_over,
    test_only_the_present_planner_may_fail_a_job,
    test_rows_are_counted_per_sample,
    test_the_last_commit_moves_the_job_to_finalizing,
)
from tests.conformance.segments import (  # noqa: F401
    test_a_commit_whose_answer_was_lost_can_be_repeated,
    test_a_committed_shard_is_done_and_says_where,
    test_a_zombie_can_seal_nothing,
)
from tests.conformance.shards import (  # noqa: F401
    test_a_claim_never_takes_an_expired_lease_whose_crash_makes_the_shard_suspected,
    test_a_claim_starts_an_attempt_and_the_job,
    test_a_claim_that_takes_an_expired_lease_counts_the_crash,
    test_a_claim_that_was_taken_over_meanwhile_is_not_given_again,
    test_a_claim_whose_answer_was_lost_is_given_again_and_counts_once,
    test_a_failed_attempt_counts_and_the_last_one_gives_the_shard_up,
    test_a_forged_hint_is_dropped,
    test_a_heartbeat_tells_what_is_still_held,
    test_a_job_that_is_not_planned_or_has_ended_is_not_dispatched,
    test_a_live_lease_does_not_expire,
    test_a_preemption_is_not_a_crash,
    test_a_release_can_keep_its_shard_back_for_a_while,
    test_a_release_whose_answer_was_lost_can_be_repeated,
    test_a_second_hint_for_the_same_shard_is_dropped,
    test_a_stale_hint_is_given_again_under_a_new_number,
    test_an_expired_lease_is_a_crash_and_the_shard_is_ready_again,
    test_expired_shards_of_a_cancelled_job_do_not_run_again,
    test_only_the_holder_may_release,
)
from tests.conformance.suspects import (  # noqa: F401
    test_a_job_is_done_when_the_pieces_of_its_pieces_are,
    test_a_job_that_killed_too_many_workers_is_published_and_has_failed,
    test_a_part_is_committed_with_its_own_rows_alone,
    test_a_shard_is_divided_only_under_the_epoch_that_crashed,
    test_a_shard_that_crashed_alone_waits_to_be_divided,
    test_a_shard_whose_rows_are_all_sealed_ends_without_pieces,
    test_a_split_leaves_sealed_rows_where_they_are_and_suspects_both_pieces,
    test_a_suspected_shard_that_runs_to_its_end_is_done,
    test_a_zombie_of_a_split_shard_can_seal_and_commit_nothing,
    test_crashes_failures_and_preemptions_are_counted_apart,
    test_from_two_crashes_on_a_shard_is_dispatched_last_and_claimed_only_by_a_worker_that_runs_nothing_else,
    test_one_death_of_a_worker_counts_once_for_a_job_however_many_shards_it_ran,
    test_pieces_of_a_cancelled_job_are_cancelled,
)
from tests.memory import MemoryRepository


@pytest.fixture
def repository() -> MemoryRepository:
    return MemoryRepository()
