"""What the cache and the scheduler must never do, as other engines have done it, and the tests that hold each rule."""

from __future__ import annotations

from dataclasses import dataclass

from tests.unit.engine.named_tests import missing

HITS = "unit/engine/cache/test_hits.py"
LIMITS = "unit/engine/cache/test_limits.py"
MANAGER = "unit/engine/cache/test_manager.py"
PRESSURE = "unit/engine/test_planned_pressure.py"
PLANNED = "unit/engine/test_planned_sharing.py"
SCHEDULER = "unit/engine/test_scheduler.py"
SHARING = "unit/engine/test_scheduler_sharing.py"
STREAMS = "unit/engine/test_scheduler_streams.py"
EQUAL = "equivalence/test_engine_equals_generate.py"
PLANS_EQUAL = "equivalence/test_plans_equal_generate.py"


@dataclass(frozen=True, slots=True)
class Rule:
    says: str
    tests: tuple[str, ...]


RULES = {
    1: Rule(
        "no write reaches a shared or registered block; a recomputed overlap gets fresh blocks",
        (
            f"{PRESSURE}::test_no_write_reaches_what_is_shared_or_registered_or_kept",
            f"{SHARING}::test_a_recomputed_overlap_gets_fresh_blocks_and_gives_them_back_for_the_cached_ones",
            "unit/engine/test_fake_runner.py::test_a_spoilt_table_is_noticed",
            "unit/engine/test_fake_runner.py::test_a_copy_into_what_others_read_is_noticed",
        ),
    ),
    2: Rule(
        "the hits of all groups are held before any block is allocated; no id is twice in live tables",
        (f"{MANAGER}::test_hits_of_all_groups_are_held_before_any_block_is_allocated",),
    ),
    3: Rule(
        "the hit length equals brute force over all lengths and groups",
        (
            f"{HITS}::test_the_hit_is_the_longest_prefix_that_every_group_can_resume",
            f"{PRESSURE}::test_the_hit_is_the_longest_start_that_is_valid_by_brute_force",
        ),
    ),
    4: Rule(
        "a sliding hit has every block of the window that ends there, at any length below, at and above the window",
        (
            f"{HITS}::test_a_sliding_hit_takes_exactly_the_blocks_of_the_window",
            f"{HITS}::test_a_missing_block_inside_the_window_moves_a_sliding_hit_before_it",
        ),
    ),
    5: Rule(
        "windows of one token, within a block, and of no whole number of blocks are served",
        (
            f"{SCHEDULER}::test_sizing_and_admission_use_the_same_bound",
            "unit/engine/cache/test_groups.py::test_no_sequence_ever_holds_more_than_its_peak",
            "unit/engine/cache/test_groups.py::test_a_window_smaller_than_a_block_still_needs_two_blocks",
            "unit/engine/cache/test_groups.py::test_a_window_of_one_sees_nothing_before_the_current_token",
        ),
    ),
    6: Rule(
        "the device's tables equal the scheduler's after blocks left the window, and name nothing in the unused tail",
        ("unit/engine/model/test_tables.py::test_packed_tables_equal_the_scheduler_s_after_blocks_left_the_window",),
    ),
    7: Rule(
        "NULL entries count neither as cached nor as allocated",
        (f"{MANAGER}::test_null_entries_count_neither_as_shared_nor_as_allocated",),
    ),
    8: Rule(
        "reuse falls gradually with pressure",
        (
            f"{MANAGER}::test_reuse_falls_gradually_with_pressure",
            f"{MANAGER}::test_the_tail_of_a_sliding_prefix_is_evicted_last",
        ),
    ),
    9: Rule(
        "a state is that of the position of its key, after chunks, preemptions and forks",
        (f"{PRESSURE}::test_whatever_a_checkpoint_holds_is_that_of_its_position",),
    ),
    10: Rule(
        "slots and blocks are counted in the unit of their own group",
        (
            f"{PLANNED}::test_blocks_and_slots_are_counted_in_the_unit_of_their_own_group",
            f"{SHARING}::test_groups_with_different_block_sizes_share_in_one_model",
        ),
    ),
    11: Rule(
        "no state is read in the step that makes it, and other requests are admitted meanwhile",
        (
            f"{PLANNED}::test_no_state_is_read_in_the_step_that_makes_it_and_others_start_meanwhile",
            f"{SHARING}::test_rows_that_wait_for_a_prefix_let_others_start",
        ),
    ),
    12: Rule(
        "the same prompt twice hits, also if it is shorter than a block",
        (
            f"{PLANNED}::test_the_same_prompt_twice_runs_its_last_token_again",
            f"{SHARING}::test_the_same_prompt_twice_hits",
        ),
    ),
    13: Rule(
        "the second row with a shared prefix and a tail of its own hits, wherever chunks end",
        (
            f"{PLANNED}::test_unique_tails_start_where_the_prefix_ends_wherever_the_chunks_do",
            f"{SHARING}::test_a_shared_prefix_with_unique_tails_hits_wherever_the_chunks_end",
        ),
    ),
    14: Rule(
        "the hit length depends neither on the load nor on the budget",
        (
            f"{PLANNED}::test_where_a_row_starts_depends_neither_on_the_budget_nor_on_its_neighbours",
            f"{SHARING}::test_the_hit_does_not_depend_on_the_load",
        ),
    ),
    15: Rule(
        "every chunk has a token and every admitted request finishes, at exact pool sizes too",
        (
            f"{PRESSURE}::test_every_admitted_request_finishes_at_exact_pool_sizes",
            f"{PRESSURE}::test_what_several_checkpoints_hold_together_is_given_up_for_the_only_sequence_that_runs",
            f"{STREAMS}::test_every_request_finishes_with_the_reference_tokens",
        ),
    ),
    16: Rule(
        "sizing and admission use the same bound",
        (
            f"{SCHEDULER}::test_sizing_and_admission_use_the_same_bound",
            "unit/engine/cache/test_peer_scenarios.py::"
            "test_a_pool_of_the_least_size_takes_the_longest_prompt_and_no_longer_one",
        ),
    ),
    17: Rule(
        "a row that can never fit fails alone, at submission",
        (f"{SCHEDULER}::test_a_row_that_can_never_fit_fails_alone_at_submission",),
    ),
    18: Rule(
        "one token left over after a hit, a prompt of one token, and forks of either run",
        (
            f"{PLANNED}::test_one_token_is_left_over_after_a_hit_and_prompts_of_one_token_fork",
            f"{SCHEDULER}::test_a_prompt_of_one_token_runs",
        ),
    ),
    19: Rule(
        "decodes that grow near a full pool do not collapse, and a preemption frees what the step needs",
        (
            f"{SCHEDULER}::test_growing_decodes_near_a_full_pool_do_not_collapse",
            f"{PRESSURE}::test_a_preemption_frees_what_the_step_goes_on_with",
        ),
    ),
    20: Rule(
        "recomputed tokens are no hits, and counters add up after preemption",
        (
            f"{PRESSURE}::test_recomputed_tokens_are_no_hits_and_what_a_plan_missed_has_a_name",
            f"{SCHEDULER}::test_a_preempted_sequence_gives_the_same_tokens",
            "unit/engine/test_sequence.py::test_prompt_tokens_add_up_after_any_preemptions",
        ),
    ),
    21: Rule(
        "memory that is full of NaN gives the same tokens",
        ("equivalence/test_poisoned_memory.py::test_memory_that_is_full_of_nan_gives_the_tokens_of_generate",),
    ),
    22: Rule(
        "a coarse group shortens the hits of the others to its own grid only",
        (
            f"{HITS}::test_a_coarse_group_shortens_the_hit_to_its_own_grid_only",
            f"{HITS}::test_the_hit_is_the_longest_prefix_that_every_group_can_resume",
        ),
    ),
    23: Rule(
        "rows with one prefix in the first batch compute it once",
        (
            f"{PLANNED}::test_rows_of_the_first_batch_compute_their_prefix_once",
            f"{SHARING}::test_rows_with_one_prefix_in_the_first_batch_compute_it_once",
        ),
    ),
    24: Rule(
        "a lost hit names the layer kind or the rule",
        (
            f"{LIMITS}::test_a_prefix_whose_blocks_are_cached_and_whose_state_is_not_names_the_states",
            f"{LIMITS}::test_a_prefix_whose_window_was_evicted_names_the_sliding_layers",
            f"{LIMITS}::test_a_planned_place_that_was_given_up_says_evicted",
            f"{LIMITS}::test_a_planned_place_for_which_there_was_no_room_says_so",
            f"{LIMITS}::test_a_planned_place_that_nobody_came_past_says_not_made",
            f"{LIMITS}::test_a_plan_without_prefix_sharing_says_switched_off",
            f"{PLANS_EQUAL}::test_a_place_that_was_lost_for_want_of_slots_is_named",
        ),
    ),
    25: Rule(
        "state slots that limit the batch are reported",
        (
            "unit/engine/model/test_load.py::test_states_that_would_take_most_of_the_cache_let_fewer_sequences_run",
            "unit/engine/cache/test_linear.py::test_slots_limit_how_many_run_at_once",
            "unit/engine/test_loop.py::test_fewer_state_slots_than_sequences_are_said_to_limit_the_batch",
        ),
    ),
    26: Rule(
        "unique prompts keep no checkpoints and take as many steps as without sharing",
        (f"{PLANNED}::test_unique_prompts_keep_no_checkpoints_and_take_as_many_steps_as_without_sharing",),
    ),
    27: Rule(
        "tokens are equal with sharing on and off, forked, preempted, resumed, and beside any neighbours",
        (
            f"{EQUAL}::test_every_sharing_mode_gives_the_tokens_of_generate",
            f"{EQUAL}::test_preempted_sequences_resume_with_the_tokens_of_generate",
            f"{EQUAL}::test_sampled_tokens_do_not_depend_on_the_neighbours",
            f"{PLANS_EQUAL}::test_each_token_of_the_tree_is_computed_once",
            f"{PLANS_EQUAL}::test_samples_fork_at_the_end_of_their_prompt",
        ),
    ),
    28: Rule(
        "what several full groups share is not overestimated",
        (f"{HITS}::test_what_two_full_groups_share_is_not_overestimated",),
    ),
    29: Rule(
        "prompts are matched in whole units; those shorter than a block insert nothing",
        (
            f"{HITS}::test_a_prompt_shorter_than_a_block_inserts_nothing_and_hits_nothing",
            "unit/engine/cache/test_prefix.py::test_a_walk_follows_exact_tokens_and_whole_units_only",
        ),
    ),
    30: Rule(
        "the time per step does not depend on the rows that wait",
        (
            "unit/engine/test_queue_length.py::test_the_time_per_step_does_not_depend_on_the_rows_that_wait",
            f"{SCHEDULER}::test_a_step_looks_at_few_of_the_waiting_rows",
        ),
    ),
    31: Rule(
        "a new model finds nothing of the old one",
        (
            f"{HITS}::test_a_new_model_finds_nothing_of_the_old_one",
            "unit/engine/model/test_load.py::test_two_engines_in_one_process_do_not_meet",
        ),
    ),
    32: Rule(
        "in the end everything has come back, also after errors and cancellation",
        (
            f"{PRESSURE}::test_everything_comes_back_after_errors_and_cancellation",
            f"{STREAMS}::test_cancelling_at_any_time_gives_every_block_back",
        ),
    ),
    33: Rule(
        "with enough memory a job computes the edges of its prefix tree",
        (
            f"{PLANNED}::test_with_enough_memory_a_job_computes_the_edges_of_its_prefix_tree",
            f"{SHARING}::test_with_enough_memory_no_token_of_the_prefix_tree_is_computed_twice",
            f"{PLANS_EQUAL}::test_each_token_of_the_tree_is_computed_once",
        ),
    ),
}


def test_every_rule_has_tests_that_exist() -> None:
    assert [*RULES] == [*range(1, 34)]

    for number, rule in RULES.items():
        assert rule.tests, f"rule {number} has no test: {rule.says}"
        assert missing(rule.tests) == [], f"rule {number}: {rule.says}"


def test_a_test_that_does_not_exist_is_missing() -> None:
    names = ["unit/engine/test_rules.py::test_nothing", "unit/engine/test_none.py::test_rules", f"{HITS}::Cached"]

    assert missing(names) == names
    assert missing(["unit/engine/test_rules.py::test_a_test_that_does_not_exist_is_missing"]) == []
