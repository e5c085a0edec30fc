"""State layers see one sequence at a time, and each goes on from its own state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

from engine.cache.groups import LayerGroup
from engine.errors import ModelRefused
from engine.grid import Grid
from engine.model.batch import slot_batches, slot_cells
from engine.model.hooks import AttentionSeat, NotingCache
from engine.model.mixers import CutMixer, MixerTraits, connect_mixers, mixer_layers
from engine.model.states import RowPart, SlotStates, StateKey, StateMemory, StateShape
from engine.request import SamplingParams
from engine.step import Chunk
from tests.unit.engine.model.test_hooks import Recorder

SUM = StateKey("recurrent", 3, 0)
NEVER_READ = torch.nan


class RunningSum(nn.Module):
    """A mixer as transformers has them: single tokens change the state in place, longer inputs hand it back."""

    layer_idx = 3

    def forward(self, hidden_states: torch.Tensor, cache_params: Any = None, scale: Any = None) -> torch.Tensor:
        cache_params.get_conv_state(self.layer_idx)
        initial_state = cache_params.get_recurrent_state(self.layer_idx)
        if initial_state is not None and hidden_states.shape[1] == 1:
            initial_state += hidden_states[:, 0]
            return initial_state[:, None].clone()
        sums = hidden_states.cumsum(dim=1) + (0 if initial_state is None else initial_state[:, None])
        cache_params.update_recurrent_state(sums[:, -1], layer_idx=self.layer_idx)
        return sums


class ForgetfulSum(nn.Module):
    """Its scan over several tokens starts from nothing, whatever came before."""

    layer_idx = 3

    def forward(self, hidden_states: torch.Tensor, cache_params: Any = None) -> torch.Tensor:
        cache_params.get_conv_state(self.layer_idx)
        before = cache_params.get_recurrent_state(self.layer_idx)
        if before is not None and hidden_states.shape[1] == 1:
            before += hidden_states[:, 0]
            return before[:, None].clone()
        sums = hidden_states.cumsum(dim=1)
        cache_params.update_recurrent_state(sums[:, -1], self.layer_idx)
        return sums


class Stage:
    """One mixer in a model, with states of `width` numbers."""

    def __init__(self, mixer: nn.Module, num_slots: int = 6, width: int = 2) -> None:
        self.memory = StateMemory({SUM: StateShape((width,), torch.float32)}, num_slots, torch.device("cpu"))
        self.memory.tensors[SUM].fill_(NEVER_READ)
        self.states = SlotStates(self.memory)
        self.seat = AttentionSeat(Recorder(), self.states)
        self.model = nn.Sequential(mixer)
        connect_mixers(self.model, self.seat)

    def run(self, row: torch.Tensor, chunks: list[tuple[int, int, int]]) -> torch.Tensor:
        """`chunks` are (slot, start, length)."""
        group = LayerGroup.of_states(0, (3,))
        batches = slot_batches([chunk(*each) for each in chunks], group)
        self.states.begin(
            [
                RowPart(batch.length, batch.fresh, torch.from_numpy(batch.slots), torch.from_numpy(batch.columns))
                for batch in batches
            ]
        )
        return self.model[0](hidden_states=row, cache_params=NotingCache(self.seat))  # type: ignore[no-any-return]


def chunk(slot: int, start: int, length: int) -> Chunk:
    return Chunk(
        sequence_id=slot,
        token_ids=range(start + length),
        start=start,
        length=length,
        tables=([slot],),
        sample_indices=(0,),
        sampling=SamplingParams(),
        prompt_len=start + length,
    )


@pytest.mark.parametrize("kind", [RunningSum, ForgetfulSum])
def test_chunks_of_a_row_do_not_see_each_other_and_go_on_where_they_stopped(kind: type[nn.Module]) -> None:
    stage = Stage(kind())
    tokens = torch.randn(3, 9, 2)
    expected = tokens.cumsum(dim=1)

    first = stage.run(torch.cat([tokens[0, :4], tokens[1, :1], tokens[2, :4]])[None], [(5, 0, 4), (1, 0, 1), (2, 0, 4)])
    second = stage.run(
        torch.cat([tokens[1, 1:2], tokens[0, 4:7], tokens[2, 4:5]])[None], [(1, 1, 1), (5, 4, 3), (2, 4, 1)]
    )

    torch.testing.assert_close(first[0], torch.cat([expected[0, :4], expected[1, :1], expected[2, :4]]))
    torch.testing.assert_close(second[0], torch.cat([expected[1, 1:2], expected[0, 4:7], expected[2, 4:5]]))
    torch.testing.assert_close(stage.memory.tensors[SUM][5], expected[0, 6])


def test_a_slot_that_was_used_before_starts_from_nothing() -> None:
    stage = Stage(RunningSum())
    row = torch.ones(1, 3, 2)

    stage.run(row, [(1, 0, 3)])
    again = stage.run(row, [(1, 0, 3)])

    torch.testing.assert_close(again, row.cumsum(dim=1))


class FailingSum(RunningSum):
    """Runs out of memory once, after it has touched its state."""

    has_failed = False

    def forward(self, hidden_states: torch.Tensor, cache_params: Any = None, scale: Any = None) -> torch.Tensor:
        cache_params.get_conv_state(self.layer_idx)
        out = super().forward(hidden_states, cache_params)
        if not self.has_failed:
            self.has_failed = True
            raise MemoryError
        return out


def test_a_step_that_failed_within_a_layer_leaves_nothing_to_the_next() -> None:
    stage = Stage(FailingSum())
    row = torch.randn(1, 3, 2)

    with pytest.raises(MemoryError):
        stage.run(row, [(1, 0, 3)])
    out = stage.run(row, [(2, 0, 3)])

    torch.testing.assert_close(out, row.cumsum(dim=1))
    assert stage.memory.tensors[SUM][1].isnan().all(), "the failed step has written a state"


def test_a_row_of_one_batch_needs_no_gathering() -> None:
    stage = Stage(RunningSum())
    row = torch.randn(1, 4, 2)
    stage.states.begin([RowPart(2, True, torch.tensor([1, 2]), None)])

    out = stage.model[0](row, NotingCache(stage.seat))

    torch.testing.assert_close(out, row.view(2, 2, 2).cumsum(dim=1).view(1, 4, 2))


def test_decodes_are_one_batch_apart_from_sequences_that_start_with_one_token() -> None:
    chunks = [chunk(4, 7, 1), chunk(2, 3, 1), chunk(1, 0, 1), chunk(3, 0, 5), chunk(5, 8, 5)]

    batches = slot_batches(chunks, LayerGroup.of_states(0, (3,)))

    assert [(b.length, b.fresh, b.slots.tolist(), b.columns.tolist()) for b in batches] == [
        (1, False, [4, 2], [0, 1]),
        (1, True, [1], [2]),
        (5, True, [3], [3, 4, 5, 6, 7]),
        (5, False, [5], [8, 9, 10, 11, 12]),
    ]


def test_in_strict_mode_every_cell_of_a_sequence_runs_alone_and_in_order() -> None:
    chunks = [chunk(4, 7, 1), replace(chunk(2, 8, 18), prompt_len=24), replace(chunk(1, 0, 3), prompt_len=3)]

    cells = slot_cells(chunks, LayerGroup.of_states(0, (3,)), Grid(8))

    assert [(c.length, c.fresh, c.slots.tolist(), c.columns.tolist()) for c in cells] == [
        (1, False, [4], [0]),
        (8, False, [2], list(range(1, 9))),
        (8, False, [2], list(range(9, 17))),
        (1, False, [2], [17]),
        (1, False, [2], [18]),
        (3, True, [1], [19, 20, 21]),
    ]


def test_what_has_an_entry_per_token_is_cut_and_what_has_another_shape_is_refused() -> None:
    seen: list[Any] = []

    def own_forward(hidden_states: torch.Tensor, positions: torch.Tensor, flag: bool, nothing: None) -> torch.Tensor:
        seen.append((positions.tolist(), flag, nothing))
        return hidden_states

    stage = Stage(RunningSum())
    mixer = CutMixer(MixerTraits("Mixer", steps_singly=False), own_forward, stage.seat)
    columns = torch.arange(3)
    stage.states.begin(
        [RowPart(2, True, torch.tensor([1]), columns[:2]), RowPart(1, True, torch.tensor([2]), columns[2:])]
    )

    mixer(torch.zeros(1, 3, 2), positions=torch.tensor([[4, 5, 9]]), flag=True, nothing=None)

    assert seen == [([[4, 5]], True, None), ([[9]], True, None)]
    with pytest.raises(ModelRefused, match="Mixer is given 'positions' of \\(3,\\)"):
        mixer(torch.zeros(1, 3, 2), positions=torch.zeros(3), flag=True, nothing=None)


def test_a_mixer_that_does_not_get_the_packed_row_or_returns_more_is_refused() -> None:
    stage = Stage(RunningSum())
    stage.states.begin([RowPart(3, True, torch.tensor([1]), None)])

    with pytest.raises(ModelRefused, match="instead of the packed row of 3 tokens"):
        stage.model[0](torch.zeros(3, 1, 2), NotingCache(stage.seat))
    with pytest.raises(ModelRefused, match="returns more than its output"):
        CutMixer(MixerTraits("Mixer", False), lambda row: (row, row), stage.seat)(torch.zeros(1, 3, 2))


def test_mixers_are_told_by_what_they_ask_the_cache_for() -> None:
    model = nn.Sequential(nn.Linear(2, 2), RunningSum(), nn.Sequential(ForgetfulSum()))

    assert mixer_layers(model) == {3}
    assert MixerTraits.of(nn.Linear) is None
    assert MixerTraits.of(RunningSum) == MixerTraits("RunningSum", steps_singly=False)
    assert MixerTraits.of(ForgetfulSum) == MixerTraits("ForgetfulSum", steps_singly=True)


def test_a_convolution_keeps_the_last_columns_and_sees_what_came_before() -> None:
    key = StateKey("conv", 3, 1)
    memory = StateMemory({key: StateShape((1, 3), torch.float32)}, 3, torch.device("cpu"))
    states = SlotStates(memory)
    cache = NotingCache(AttentionSeat(Recorder(), states))
    slot = torch.tensor([2])
    states.begin([RowPart(2, True, slot, None), RowPart(2, False, slot, None)])

    seen = []
    for part, columns in zip(states.parts, ([1.0, 2.0], [3.0, 4.0]), strict=True):
        states.open(part)
        seen.append(cache.update_conv_state(torch.tensor([[columns]]), 3, state_idx=1, conv_kernel_size=3).tolist())
        states.close()

    assert seen == [[[[0.0, 1.0, 2.0]]], [[[0.0, 1.0, 2.0, 3.0, 4.0]]]]
    assert memory.tensors[key][2].tolist() == [[2.0, 3.0, 4.0]]
    assert not memory.tensors[key][:2].any()
    with pytest.raises(ModelRefused, match="layer 3 does not say how long its convolution state is"):
        cache.update_conv_state(torch.zeros(1, 1, 2), 3)
