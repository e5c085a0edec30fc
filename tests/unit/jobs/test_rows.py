from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from engine.cache.groups import LayerGroup
from engine.request import Completion, Counters, GroupCounters, SamplingParams
from engine.stats import BlockUse
from jobs.planrows import PlanRow
from jobs.rows import RowMaker, group_stats, merge, sum_rows, with_use
from storage.records import RunStats
from storage.states import RowStatus
from tests.fakes import FakeEngine, fake_counters

PROMPT = tuple(range(40))


class Letters:
    """Decodes id 0 as a, 1 as b and so on."""

    def decode(self, token_ids: Sequence[int]) -> str:
        return "".join(chr(97 + token) for token in token_ids)


@pytest.fixture
def maker() -> RowMaker:
    return RowMaker(
        decoder=Letters(),
        eos_token_ids=frozenset({99}),
        shard_id=7,
        attempt=2,
        started_at=datetime(2026, 1, 1, tzinfo=UTC),
    )


def plan_row(*, stops: tuple[str, ...] = (), error: str | None = None) -> PlanRow:
    return PlanRow(
        row_index=3,
        custom_id="three",
        token_ids=PROMPT,
        sampling=SamplingParams(num_samples=2),
        stops=stops,
        seed=5,
        error_code=error,
        error_message=error and "the prompt is null",
        passed={"note": "x"},
    )


def completion(reason: str = "stop", *, stop_token: int | None = 99, sample: int = 0, **more: str) -> Completion:
    return Completion(
        request_id="r",
        job="1",
        sample_index=sample,
        token_ids=(0, 1, 2, 3),
        finish_reason=reason,
        stop_token_id=stop_token,
        counters=fake_counters(PROMPT, sample, 4),
        **more,
    )


def test_a_finished_sequence_becomes_a_row_with_text_and_what_passes_through(maker: RowMaker) -> None:
    row = maker.finished(plan_row(), completion())

    assert (row.status, row.output_text, row.finish_reason, row.stop_reason) == ("succeeded", "abcd", "stop", None)
    assert (row.row_index, row.custom_id, row.seed, row.attempts, row.shard_id) == (3, "three", 5, 2, 7)
    assert row.prompt_tokens == 40 == (row.cached_tokens or 0) + (row.computed_tokens or 0)
    assert row.passed == {"note": "x"}


def test_a_row_says_what_was_planned_what_was_cached_and_what_limited_it_most_first(maker: RowMaker) -> None:
    first, second = (maker.finished(plan_row(), completion(sample=sample)) for sample in (0, 1))

    assert (first.planned_tokens, first.cached_tokens) == (39, 20)
    assert first.limited_by == [{"name": "block size", "tokens": 19}, {"name": "last token", "tokens": 1}]
    assert (second.planned_tokens, second.limited_by) == (0, [])  # a prompt counts once per request


def test_text_ends_before_the_stop_string_which_is_the_stop_reason(maker: RowMaker) -> None:
    row = maker.finished(plan_row(stops=("cd",)), completion(stop_token=None))

    assert (row.output_text, row.stop_reason) == ("ab", "cd")


def test_a_stop_token_that_is_no_end_of_text_is_the_stop_reason(maker: RowMaker) -> None:
    assert maker.finished(plan_row(), completion(stop_token=42)).stop_reason == "42"


def test_a_row_that_failed_in_the_engine_keeps_its_code_and_has_no_text(maker: RowMaker) -> None:
    row = maker.finished(plan_row(), completion("error", error_code="context_length", error_message="too long"))

    assert (row.status, row.error_code, row.error_message) == (RowStatus.ERRORED, "context_length", "too long")
    assert row.output_text is None


def test_a_row_that_submit_refused_has_one_result_and_cost_nothing(maker: RowMaker) -> None:
    row = maker.failed(plan_row(error="invalid_request"), 0, "invalid_request", "the prompt is null")

    assert (row.status, row.sample_index, row.error_code) == (RowStatus.ERRORED, 0, "invalid_request")
    assert (row.computed_tokens, row.planned_tokens, row.limited_by) == (None, None, None)


def test_the_sum_counts_a_prompt_once_per_request_and_adds_up_per_group(maker: RowMaker) -> None:
    rows = [maker.finished(plan_row(), completion(sample=sample)) for sample in (0, 1)]
    rows.append(maker.failed(plan_row(error="invalid_request"), 0, "invalid_request", "the prompt is null"))

    total = sum_rows(rows, FakeEngine.groups)

    assert (total.rows, total.prompt_tokens, total.cached_tokens, total.computed_tokens) == (3, 40, 20, 20)
    assert total.forked_tokens == 40
    assert (total.planned_tokens, total.limited_by) == (39, (("block size", 19), ("last token", 1)))
    assert total.completion_tokens == 8
    assert [group.kind for group in total.groups] == ["full", "sliding"]
    assert total.groups[0].blocks_allocated == sum(row.groups[0]["allocated"] for row in rows if row.groups)


def test_merged_sums_are_the_sum_of_all_rows(maker: RowMaker) -> None:
    rows = [maker.finished(plan_row(), completion(sample=sample)) for sample in (0, 1)]

    parts = merge(sum_rows(rows[:1], FakeEngine.groups), sum_rows(rows[1:], FakeEngine.groups))

    assert replace(parts, groups=()) == replace(sum_rows(rows, FakeEngine.groups), groups=())


def test_gauges_carry_peak_and_mean_and_no_counters() -> None:
    idle = RunStats(groups=group_stats(FakeEngine.groups), engine_seconds=9.0)

    found = with_use(idle, (BlockUse(peak=4.0, mean=2.5), BlockUse(peak=3.0, mean=1.0)))

    assert found.engine_seconds == 9.0
    assert [(group.blocks_peak, group.blocks_mean) for group in found.groups] == [(4.0, 2.5), (3.0, 1.0)]
    assert all(group.blocks_allocated == 0 for group in found.groups)


def test_state_slots_are_summed_like_blocks(maker: RowMaker) -> None:
    counters = Counters(groups=(GroupCounters(allocated=5, shared=1), GroupCounters(allocated=1)))
    groups = (FakeEngine.groups[0], LayerGroup.of_states(1, (1, 2)))
    rows = [maker.finished(plan_row(), replace(completion(), counters=counters)) for _ in range(2)]

    total = sum_rows(rows, groups)
    found = with_use(RunStats(groups=group_stats(groups)), (BlockUse(peak=4.0, mean=2.5), BlockUse(peak=2.0, mean=1.5)))

    assert [(group.kind, group.layers) for group in total.groups] == [("full", 1), ("linear", 2)]
    assert total.groups[1].block_size == 0
    assert [(group.blocks_allocated, group.blocks_shared) for group in total.groups] == [(10, 2), (2, 0)]
    assert (found.groups[1].kind, found.groups[1].blocks_peak) == ("linear", 2.0)
