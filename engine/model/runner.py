"""From a step of plain numbers to tokens: pack, run the model over paged memory, sample."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from engine.attention.base import AttentionBackend, GroupPlan, LayerTraits
from engine.attention.choose import choose_backend, choose_draw
from engine.attention.cpu import Layer, NativePlan
from engine.attention.pick import Best
from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.filters import SampleRow, is_plain_greedy
from engine.grid import Grid
from engine.model.batch import PackedStep, SlotBatch, pack, slot_batches, slot_cells
from engine.model.copies import copy_batches
from engine.model.hooks import Inline, NotingCache
from engine.model.load import LoadedModel
from engine.model.memory import KVMemory
from engine.model.project import ProjectedTiles, Tiles, fill_logits, given_tiles
from engine.model.states import RowPart, SlotStates, StateMemory
from engine.sampler import Sampler
from engine.step import BlockCopy, Chunk, Sampled, Step


class PagedLayers:
    """Handles the attention calls of one step: writes this step's keys and values, then attends through the plans."""

    def __init__(self, loaded: LoadedModel, memory: KVMemory, backend: AttentionBackend) -> None:
        self._memory = memory
        self._backend = backend
        self._device = loaded.device
        owner = {layer: group.index for group in loaded.paged_groups for layer in group.layers}
        self._reads = {index: layer.reads for index, layer in enumerate(loaded.layers) if layer.reads is not None}
        self._group_of = {index: owner[reads] for index, reads in self._reads.items()}
        self._plans: tuple[GroupPlan, ...] = ()
        self._slots: tuple[torch.Tensor, ...] = ()
        self._inline: dict[int, Layer] = {}

    def begin(self, packed: PackedStep) -> None:
        """Build what all layers of a group share in this step."""
        self._plans = tuple(self._backend.plan(spans) for spans in packed.spans)
        self._slots = tuple(torch.from_numpy(spans.write_slots).to(self._device) for spans in packed.spans)

    def inline(self, layer: int, heads: int, traits: LayerTraits) -> Inline | None:
        group = self._group_of[layer]
        plan = self._plans[group]
        if not isinstance(plan, NativePlan):
            return None
        fixed = self._inline.get(layer)
        if fixed is None:
            keys, values = self._memory.keys[layer], self._memory.values[layer]
            fixed = self._inline[layer] = plan.layer(heads, keys, values, traits)
        return Inline(ctypes.addressof(fixed), plan.step(heads // fixed.kv_heads), self._slots[group].data_ptr())

    def inline_seconds(self) -> float:
        """What attention within whole layers has taken so far."""
        return float(sum(fixed.seconds for fixed in self._inline.values()))

    def attend(
        self,
        layer: int,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        traits: LayerTraits,
        window: int | None,
    ) -> torch.Tensor:
        group, reads = self._group_of[layer], self._reads[layer]
        if reads == layer:
            self._backend.store(self._memory.keys[layer], self._slots[group], key)
            self._backend.store(self._memory.values[layer], self._slots[group], value)
        return self._plans[group].attend(query, self._memory.keys[reads], self._memory.values[reads], traits)


class SlottedLayers:
    """Handles the state layers of one step: cuts the row into batches and lends each the states of its slots."""

    def __init__(self, loaded: LoadedModel, group: LayerGroup, grid: Grid | None) -> None:
        self._group = group
        self._grid = grid  # None: what has the same length runs together
        self._device = loaded.device
        self.memory = StateMemory(loaded.states, loaded.num_slots, loaded.device)
        self.states = SlotStates(self.memory)

    def begin(self, chunks: Sequence[Chunk]) -> None:
        if self._grid is not None:
            batches, alone = slot_cells(chunks, self._group, self._grid), False
        else:
            batches = slot_batches(chunks, self._group)
            alone = len(batches) == 1  # then the row is the batch
        self.states.begin([self._part(batch, alone) for batch in batches])

    def _part(self, batch: SlotBatch, alone: bool) -> RowPart:
        slots = torch.from_numpy(batch.slots).to(self._device)
        columns = None if alone else torch.from_numpy(batch.columns).to(self._device)
        return RowPart(batch.length, batch.fresh, slots, columns)


class Draw(NamedTuple):
    """One token to choose, from one row of those that sample."""

    chunk: Chunk
    row: int
    sample_index: int


class ModelRunner:
    """Owns the model and its memory; one caller, one step at a time."""

    def __init__(self, loaded: LoadedModel, config: EngineConfig) -> None:
        self._loaded = loaded
        self._device = loaded.device
        self._groups = loaded.paged_groups
        self._memory = KVMemory(self._groups, loaded.num_blocks, loaded.dtype, loaded.device)
        self.backend = choose_backend(self._groups, loaded.num_heads, loaded.dtype, loaded.device, config)
        self._layers = PagedLayers(loaded, self._memory, self.backend)
        self._cache = NotingCache(loaded.seat)
        self._sampler = Sampler(loaded.vocab_size, loaded.device, choose_draw(loaded.device, config))
        linear = loaded.linear_group
        self._slotted = (
            None if linear is None else SlottedLayers(loaded, linear, Grid(config.grid) if config.strict else None)
        )
        loaded.seat.handler = self._layers
        loaded.seat.states = None if self._slotted is None else self._slotted.states

    def inline_seconds(self) -> float:
        """What attention within whole layers has taken so far."""
        return self._layers.inline_seconds()

    def forget(self, sequence_id: int) -> None:
        """Nothing is kept per sequence."""

    @torch.inference_mode()
    def run(self, step: Step) -> list[Sampled]:
        """The copies, then one forward pass; one `Sampled` for each sample of each chunk, in order."""
        self._copy(step.copies)
        packed = pack(step.chunks, self._groups)
        self._loaded.seat.begin()
        self._layers.begin(packed)
        if self._slotted is not None:
            self._slotted.begin(step.chunks)
        rows, tiles = self._forward(packed)
        return self._sample(_draws(step.chunks), rows, tiles)

    def _copy(self, copies: Sequence[BlockCopy]) -> None:
        for batch in copy_batches(copies):
            group = self._loaded.groups[batch.group]
            sources = torch.tensor(batch.sources, device=self._device)
            targets = torch.tensor(batch.targets, device=self._device)
            if group.has_blocks:
                self._memory.copy(group, sources, targets)
            else:
                assert self._slotted is not None, "a state slot is copied in a model without states"
                self._slotted.memory.copy(sources, targets)

    def _forward(self, packed: PackedStep) -> tuple[torch.Tensor, Tiles]:
        """The rows that sample, and the way from them to their logits."""
        loaded = self._loaded
        columns = torch.from_numpy(packed.sampling_columns).to(self._device)
        if loaded.tap is not None:
            loaded.tap.columns = columns
        output = loaded.entrance.call(
            loaded.model,
            torch.from_numpy(packed.token_ids).to(self._device).unsqueeze(0),
            torch.from_numpy(packed.positions).to(self._device).unsqueeze(0),
            self._cache,
        )
        if loaded.tap is None:
            return output.logits[0].index_select(0, columns), given_tiles
        hidden = loaded.tap.take()
        if loaded.head is None:
            return output.logits[0], given_tiles
        return hidden, loaded.head

    def _sample(self, draws: Sequence[Draw], rows: torch.Tensor, tiles: Tiles) -> list[Sampled]:
        """Greedy rows need no more than a running maximum; the others see their whole row."""
        greedy = [i for i, draw in enumerate(draws) if is_plain_greedy(draw.chunk.sampling)]
        others = [i for i, draw in enumerate(draws) if not is_plain_greedy(draw.chunk.sampling)]
        tokens: list[int | None] = [0] * len(draws)
        logprobs = [0.0] * len(draws)
        if greedy:
            best = Best.start(len(greedy), self._device)
            selected = self._select(rows, [draws[i].row for i in greedy])
            if not (isinstance(tiles, ProjectedTiles) and tiles.pick(selected, best)):
                for first_column, tile in tiles(selected):
                    self.backend.pick(tile, first_column, best)
            for i, t, p in zip(greedy, best.token.tolist(), best.logprob().tolist(), strict=True):
                tokens[i], logprobs[i] = t, p
        if others:
            selected = self._select(rows, [draws[i].row for i in others])
            wanted = [_sample_row(draws[i]) for i in others]

            def fill(part: slice, out: torch.Tensor) -> None:
                fill_logits(tiles, selected[part], out)

            for i, t, p in zip(others, *self._sampler.sample(wanted, fill), strict=True):
                tokens[i], logprobs[i] = t, p
        return [_sampled(draw.chunk, t, p) for draw, t, p in zip(draws, tokens, logprobs, strict=True)]

    def _select(self, rows: torch.Tensor, indices: list[int]) -> torch.Tensor:
        if indices == list(range(len(rows))):
            return rows
        return rows.index_select(0, torch.tensor(indices, device=self._device))


def _draws(chunks: Sequence[Chunk]) -> list[Draw]:
    sampling = [chunk for chunk in chunks if chunk.sample_indices]
    return [Draw(chunk, row, index) for row, chunk in enumerate(sampling) for index in chunk.sample_indices]


def _sample_row(draw: Draw) -> SampleRow:
    chunk = draw.chunk
    end = chunk.start + chunk.length
    return SampleRow(chunk.sampling, draw.sample_index, chunk.token_ids[:end], chunk.prompt_len)


def _sampled(chunk: Chunk, token: int | None, logprob: float) -> Sampled:
    position = chunk.start + chunk.length
    if not math.isfinite(logprob):
        code, error = "non_finite_logits", f"the model's logits for position {position} are not finite"
    elif token is None:
        code = "no_token"
        error = f"no token can be chosen at position {position} with these options, use milder ones: {chunk.sampling}"
    else:
        return Sampled(chunk.sequence_id, token, logprob)
    return Sampled(chunk.sequence_id, 0, 0.0, error=error, error_code=code)
