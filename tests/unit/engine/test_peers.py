"""What vLLM and transformers test in their caches and batchers, and where the same is tested here, or why it is not.

Their files: vLLM's tests/v1/core/test_prefix_caching.py and test_single_type_kv_cache_manager.py, transformers'
tests/generation/test_continuous_batching.py. Names end in * where several of their tests are one scenario.
"""

from __future__ import annotations

import re

from tests.unit.engine.named_tests import missing

ATTENTION = "unit/engine/attention/test_backends_equal_reference.py"
EQUAL = "equivalence/test_engine_equals_generate.py"
GROUPS = "unit/engine/cache/test_groups.py"
HITS = "unit/engine/cache/test_hits.py"
LIMITS = "unit/engine/cache/test_limits.py"
LINEAR = "unit/engine/cache/test_linear.py"
LOOP = "unit/engine/test_loop.py"
MANAGER = "unit/engine/cache/test_manager.py"
PEERS = "unit/engine/cache/test_peer_scenarios.py"
POOL = "unit/engine/cache/test_pool.py"
PLANNED = "unit/engine/test_planned_sharing.py"
PREFIX = "unit/engine/cache/test_prefix.py"
SCHEDULER = "unit/engine/test_scheduler.py"
SHARING = "unit/engine/test_scheduler_sharing.py"
TABLES = "unit/engine/model/test_tables.py"

VLLM_PREFIX_CACHING = {
    "test_prefill": f"{PEERS}::test_a_prefix_is_hit_in_use_and_after_it_was_freed_and_goes_last",
    "test_prefill_hybrid_model": f"{PEERS}::test_groups_that_lost_different_blocks_agree_on_a_length",
    "test_prefill_hybrid_model_combinations": f"{PEERS}::test_every_combination_of_groups_hits_a_common_prefix",
    "test_hybrid_cache_mamba_align_shared_prefix_detection": (
        f"{LIMITS}::test_a_prefix_whose_blocks_are_cached_and_whose_state_is_not_names_the_states"
    ),
    "test_mamba_shared_prefix_reuse_under_zero_retention": (
        f"{LIMITS}::test_a_prefix_whose_blocks_are_cached_and_whose_state_is_not_names_the_states"
    ),
    "test_decode": f"{PEERS}::test_a_block_that_decoding_fills_is_found_from_then_on",
    "test_cache_blocks": f"{PEERS}::test_a_block_that_decoding_fills_is_found_from_then_on",
    "test_cache_blocks_multi_group": f"{HITS}::test_the_hit_is_the_longest_prefix_that_every_group_can_resume",
    "test_evict": f"{PEERS}::test_a_prefix_is_hit_in_use_and_after_it_was_freed_and_goes_last",
    "test_hash_block_correct_reuse": f"{PEERS}::test_a_block_that_is_given_out_again_has_lost_its_content",
    "test_computed_blocks_not_evicted": (f"{MANAGER}::test_hits_of_all_groups_are_held_before_any_block_is_allocated"),
    "test_basic_prefix_caching_disabled": f"{SHARING}::test_without_block_sharing_every_sequence_has_its_own_blocks",
    "test_prefill_not_enough_free_blocks_with_computed_blocks": (
        f"{PEERS}::test_a_hit_that_cannot_be_admitted_is_left_as_it_was"
    ),
    "test_maybe_evict_cached_block": (
        f"{MANAGER}::test_equal_blocks_of_one_step_are_merged_and_the_second_copy_given_back"
    ),
    "test_different_block_size": f"{HITS}::test_a_coarse_group_shortens_the_hit_to_its_own_grid_only",
    "test_block_lookup_cache_*": f"{PREFIX}::test_a_walk_follows_exact_tokens_and_whole_units_only",
    "test_can_fit_full_sequence_*": (
        f"{PEERS}::test_a_pool_of_the_least_size_takes_the_longest_prompt_and_no_longer_one"
    ),
    "test_cache_hit_local_and_external_*": (
        f"{MANAGER}::test_hits_of_all_groups_are_held_before_any_block_is_allocated"
    ),
    "test_swa_free_split_keeps_cached_tail_ahead_of_scratch": (
        f"{POOL}::test_blocks_without_content_go_before_cached_ones"
    ),
    "test_pure_swa_retention_dense_default_caches_all": (
        f"{HITS}::test_a_sliding_hit_takes_exactly_the_blocks_of_the_window"
    ),
    "test_mamba_shared_prefix_survives_zero_retention": (
        f"{PEERS}::test_a_planned_junction_outlives_states_that_were_kept_on_suspicion"
    ),
    "test_swa_shared_prefix_reuse_under_zero_retention": (
        f"{PLANNED}::test_unique_tails_start_where_the_prefix_ends_wherever_the_chunks_do"
    ),
}

VLLM_MANAGERS = {
    "test_circular_buffer_allocates_one_block_for_the_request_lifetime": (
        f"{LINEAR}::test_a_sequence_keeps_its_slot_however_long_it_grows"
    ),
    "test_replayssm_queues_live_copy_for_new_state_block": (
        f"{PLANNED}::test_no_state_is_read_in_the_step_that_makes_it_and_others_start_meanwhile"
    ),
    "test_sliding_window_possible_cached_prefix": (
        f"{HITS}::test_the_hit_is_the_longest_prefix_that_every_group_can_resume"
    ),
    "test_sliding_window_cache_hit_with_finer_hash_alignment": (
        f"{HITS}::test_the_hit_is_the_longest_prefix_that_every_group_can_resume"
    ),
    "test_sliding_window_remove_skipped_blocks": (
        f"{PEERS}::test_exactly_the_blocks_that_no_later_token_sees_are_dropped"
    ),
    "test_sliding_window_records_new_blocks_for_zeroing": (
        "equivalence/test_poisoned_memory.py::test_memory_that_is_full_of_nan_gives_the_tokens_of_generate"
    ),
    "test_get_num_blocks_to_allocate": f"{MANAGER}::test_null_entries_count_neither_as_shared_nor_as_allocated",
    "test_evictable_cached_blocks_not_double_allocated": (
        f"{MANAGER}::test_hit_blocks_that_wake_up_count_against_the_free_ones"
    ),
    "test_predictor_matches_allocator_blocks_calculation_with_admission_cap": (
        f"{GROUPS}::test_no_sequence_ever_holds_more_than_its_peak"
    ),
}

TRANSFORMERS = {
    "test_streaming_output_after_soft_reset_does_not_shorten_generation": (
        f"{SCHEDULER}::test_a_preempted_sequence_gives_the_same_tokens"
    ),
    "test_group_layers": "unit/engine/model/test_load.py::test_groups_follow_the_layers_windows",
    "test_attention_mask": f"{ATTENTION}::test_mixed_decodes_and_prefills_equal_the_reference",
    "test_continuous_batching_can_store_request_tokens": (
        f"{PEERS}::test_a_pool_of_the_least_size_takes_the_longest_prompt_and_no_longer_one"
    ),
    "test_full_attention_get_indices": (
        f"{TABLES}::test_packed_tables_equal_the_scheduler_s_after_blocks_left_the_window"
    ),
    "test_sliding_attention_*": f"{TABLES}::test_packed_tables_equal_the_scheduler_s_after_blocks_left_the_window",
    "test_fork_blocks_sharing_and_copy": (f"{PEERS}::test_a_fork_shares_whole_blocks_and_copies_the_one_that_is_begun"),
    "test_prefix_match_and_dedup": (
        f"{MANAGER}::test_equal_blocks_of_one_step_are_merged_and_the_second_copy_given_back"
    ),
    "test_count_storable_requests": f"{SCHEDULER}::test_admission_leaves_room_for_the_output_that_is_expected",
    "test_generation_outputs_are_snapshots": f"{LOOP}::test_a_feed_gives_one_completion_per_request",
    "test_output_router_*": f"{LOOP}::test_two_feeds_run_side_by_side_and_get_their_own_completions",
    "test_continuous_batching_config_combinations_*": (
        f"{EQUAL}::test_every_sharing_mode_gives_the_tokens_of_generate"
    ),
    "test_continuous_batching_diverse_models": f"{EQUAL}::test_every_sharing_mode_gives_the_tokens_of_generate",
    "test_hybrid_sliding_window_crossing_parity": (
        "equivalence/test_runner_equals_generate.py::test_every_chunk_size_gives_the_tokens_of_generate"
    ),
    "test_continuous_batching_few_blocks": f"{EQUAL}::test_preempted_sequences_resume_with_the_tokens_of_generate",
    "test_prefix_sharing": f"{SHARING}::test_the_same_prompt_twice_hits",
    "test_block_sharing_with_hybrid_model": f"{EQUAL}::test_every_sharing_mode_gives_the_tokens_of_generate",
    "test_num_return_sequences": (
        "equivalence/test_plans_equal_generate.py::test_samples_fork_at_the_end_of_their_prompt"
    ),
    "test_continuous_batching_log_probs": (
        "unit/engine/attention/test_pick.py::test_token_and_log_probability_equal_those_of_the_whole_row"
    ),
    "test_per_request_logits_processors": (
        "unit/engine/test_sampler.py::test_every_option_equals_transformers_in_one_mixed_batch"
    ),
    "test_continuous_batching_history_dependent_logits_processor": (
        "unit/engine/test_sampler.py::test_every_option_equals_transformers_in_one_mixed_batch"
    ),
    "test_memory_footprint_respects_max_memory_percent": (
        "equivalence/test_step_memory.py::test_no_step_allocates_batch_times_vocabulary"
    ),
    "test_continuous_batching_tp_cancellation": f"{LOOP}::test_leaving_a_feed_aborts_its_requests_and_no_other",
}

NOT_HERE = {
    "multi-modal prompts (test_mm_prefix_caching)": "a prompt is token ids",
    "adapters (test_kv_cache_events_with_lora)": "an engine serves one model, and that without adapters",
    "salts (test_cache_key_salting)": "all rows are those of one owner; a cache is never shared between owners",
    "events (test_kv_cache_events, test_block_stored_event_*, test_emit_cached_block_events*, ...)": (
        "nobody outside the engine follows its blocks"
    ),
    "connectors (test_external_computed_blocks_do_not_corrupt_free_pool)": "no blocks come from another machine",
    "speculation (test_eagle_*, *_eagle, *_dynamic_draft_tokens, test_mamba_speculative_*, *_mtp_*)": (
        "there are no draft tokens"
    ),
    "prompt log-probabilities (test_prefill_plp)": "they are not offered, so that no prompt must run again for them",
    "resetting (test_reset_prefix_cache)": "weights never change in an engine; a new one has a new cache",
    "statistics off (test_prefix_cache_stats_disabled)": "they are always counted",
    "retention intervals (test_hybrid_local_kv_retention_*, test_pure_swa_retention_*, *_reachable_block_mask_*)": (
        "there is no such knob: a plan says what is kept, and for how many"
    ),
    "blocks that no common grid reaches (test_hybrid_cache_blocks_*)": "a checkpoint stands anywhere; there is no grid",
    "states in blocks (test_prefill_hybrid_model_mamba_align)": "a state has a slot, and its table no padding",
    "chunked attention (test_chunked_local_attention_*)": "such layers are refused by name at load",
    "windows that keep the prompt (test_rswa_remove_skipped_blocks_gap_range)": "such layers are refused as well",
    "processors over the history (test_full_history_*, test_token_histories_*)": (
        "rules on n-grams and words are not offered"
    ),
    "graphs and compilation (*_cuda_graph*, *_with_compile, *_async)": "the engine captures and compiles no graphs",
    "switching the attention (test_switch_to_cb_friendly_attn, test_paged_forward_without_cache_raises)": (
        "a model is loaded for the engine and used by it alone"
    ),
    "kernels of others (test_flash_attn_with_kvcache_parity, test_decode_fast_path_wide_batch_parity)": (
        "the backends are our own and are compared with a reference"
    ),
    "streaming (test_streaming_*, test_register_result_handler)": "a row is delivered when it is finished",
    "pausing (test_pause_*, test_stop_from_*)": "nobody trains the model meanwhile",
    "moving blocks to the host (test_cpu_offloading_*)": "a preempted sequence keeps its state and finds its blocks",
    "several processes for one model (test_distributed_helper_*, test_continuous_batching_tp_*, nccl)": (
        "a model is on one device"
    ),
    "predicting activations (test_memory_prediction)": "cache_bytes is given or a share of what is free",
}


def test_every_scenario_of_the_peers_is_covered_or_has_a_reason() -> None:
    covered = VLLM_PREFIX_CACHING | VLLM_MANAGERS | TRANSFORMERS

    left_out = set(re.findall(r"test_\w+\*?", " ".join(NOT_HERE)))

    assert missing(covered.values()) == []
    assert len(covered) == len(VLLM_PREFIX_CACHING) + len(VLLM_MANAGERS) + len(TRANSFORMERS)
    assert not covered.keys() & left_out
