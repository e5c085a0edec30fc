"""Load any transformers causal LM whose layers can be served, and find out what the engine must know of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging

from engine.cache.groups import LayerGroup
from engine.config import EngineConfig
from engine.errors import ConfigError, ModelRefused
from engine.grid import ANYWHERE, Grid
from engine.model import probe
from engine.model.decoder import fuse_layers
from engine.model.elementwise import FusedGate, fuse_elementwise, pack_gates
from engine.model.hooks import AttentionSeat, Entrance, connect
from engine.model.last_layer import narrow_last_layer
from engine.model.layers import DeclaredLayer, ObservedLayer, declared_layers, find_grid, layer_groups
from engine.model.linears import Linears, choose_linears
from engine.model.memory import cache_sizes
from engine.model.mixers import connect_mixers, find_mixers, mixer_layers
from engine.model.narrow import round_linears
from engine.model.norms import FusedNorm, fuse_norms
from engine.model.packed import (
    LinearMaker,
    PackedLinear,
    can_pack,
    pack_linears,
    plain_linear,
)
from engine.model.project import HeadTap, ProjectedTiles, cut_head, recognise
from engine.model.rotations import check_rotations
from engine.model.rowwise import hold_row_by_row
from engine.model.states import StateShapes, slot_bytes

_CHANGES = "packed weights, fused norms, gates and rotations, a tiled output layer and states carried over cuts"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and the facts that the rest of the engine is built from."""

    model: Any  # the transformers module, its attention and states routed to `seat`, its linear layers packed
    entrance: Entrance
    config_text: str  # the model's config.json
    seat: AttentionSeat
    layers: tuple[DeclaredLayer, ...]
    groups: tuple[LayerGroup, ...]  # a linear one comes last
    states: StateShapes  # empty without a linear group
    num_heads: int  # the most that any layer has
    tap: HeadTap | None  # None: the model has no output layer that we know how to replace
    head: ProjectedTiles | None  # None: take the logits that the model returns
    eos_token_ids: frozenset[int]
    max_model_len: int
    vocab_size: int
    num_blocks: int
    num_slots: int
    grid: Grid
    dtype: torch.dtype
    device: torch.device

    def resolve(self, config: EngineConfig) -> EngineConfig:
        """`config` with the numbers that only the model could tell filled in."""
        return replace(
            config,
            num_blocks=self.num_blocks,
            num_state_slots=self.num_slots or None,
            max_model_len=self.max_model_len,
            grid=self.grid.step,
        )

    @property
    def paged_groups(self) -> tuple[LayerGroup, ...]:
        """The groups with blocks, each at the place of its index."""
        return tuple(group for group in self.groups if group.has_blocks)

    @property
    def linear_group(self) -> LayerGroup | None:
        return next((group for group in self.groups if not group.has_blocks), None)


def load_model(source: str | Path, config: EngineConfig) -> LoadedModel:
    """`source` is a local directory or a Hub id; weights are safetensors only, and no code of the model is run.

    Raises ModelRefused with the layer or feature that cannot be served, ConfigError for an option that does not fit.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)  # before anything is tried out
    device = torch.device(config.device)
    model = _read(source, "float32" if config.weights_in_8_bits else config.dtype, device)
    if config.weights_in_8_bits:
        round_linears(model)
    text_config = model.config.get_text_config()
    if hasattr(model, "set_experts_implementation") and hasattr(text_config, "num_experts_per_tok"):
        # The default's matrix shapes depend on the batch; this one's do not.
        model.set_experts_implementation("eager")

    packable = can_pack(model)
    if config.strict and not packable:
        raise ModelRefused(f"strict mode: only float32 on a CPU with oneDNN is known, not {model.dtype} on {device}")
    hooked = _hook(model, choose_linears(config, packable), config, packable)
    max_model_len = _max_model_len(text_config, config.max_model_len)
    check_rotations(model, max_model_len)
    if config.fused_layers:
        _fuse_layers(model, hooked, max_model_len)
    groups = layer_groups(hooked.declared, hooked.observed, config.block_size)
    grid = find_grid(text_config, config) if config.strict and hooked.states else ANYWHERE
    dtype = model.dtype
    sizes = cache_sizes(groups, slot_bytes(hooked.states), dtype.itemsize, device, config)
    return LoadedModel(
        model=model,
        entrance=hooked.entrance,
        config_text=json.dumps(text_config.to_dict(), default=str),
        seat=hooked.seat,
        layers=hooked.declared,
        groups=groups,
        states=hooked.states,
        num_heads=max((shape.num_heads for shape in hooked.observed.values()), default=0),
        tap=hooked.tap,
        head=hooked.head,
        eos_token_ids=_eos_token_ids(model),
        max_model_len=max_model_len,
        vocab_size=hooked.vocab_size,
        num_blocks=sizes.num_blocks,
        num_slots=sizes.num_slots,
        grid=grid,
        dtype=dtype,
        device=device,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Hooked:
    """A model behind our hooks, and what the probe saw of it."""

    entrance: Entrance
    seat: AttentionSeat
    declared: tuple[DeclaredLayer, ...]
    observed: dict[int, ObservedLayer]
    states: StateShapes
    tap: HeadTap | None
    head: ProjectedTiles | None
    vocab_size: int
    logits: Callable[..., torch.Tensor]  # of the probe, at its own positions or at others that are given


def _hook(model: Any, linears: Linears, config: EngineConfig, packable: bool) -> _Hooked:
    """Route attention and states to a seat and replace what is to be packed; the logits must stay the model's own."""
    device, text_config = model.device, model.config.get_text_config()
    declared = declared_layers(text_config)
    ids = probe.probe_ids(int(text_config.vocab_size), device)
    expected = probe.own_logits(model, ids)
    entrance = Entrance.of(model)
    probe.check_mixers(declared, mixer_layers(model), entrance)
    has_states = any(layer.has_state for layer in declared)
    expected_cut = probe.own_logits_of_decode(model, ids, expected) if has_states else expected

    handler, states = probe.ProbeHandler(declared), probe.ProbeStates(declared, device)
    seat = AttentionSeat(handler, states)
    connect(model, seat)
    connect_mixers(model, seat)
    tap, head = _take_head(model, ids, seat, expected, linears.make, config.picked_products)
    probe.check_every_layer(declared, handler.observed, states.observed)
    _replace_parts(model, linears, config, packable)
    observed = dict(handler.observed)
    seat.states = probe.cut_states(states.observed, device)

    def logits_of_cuts(positions: torch.Tensor | None = None) -> torch.Tensor:
        handler.observed.clear()
        return probe.hooked_logits(model, ids, seat, positions)

    if config.strict:
        own = [module for module in model.modules() if isinstance(module, (PackedLinear, FusedNorm, FusedGate))]
        mixers = [module for module, _ in find_mixers(model)]
        hold_row_by_row(model, logits_of_cuts, [*own, *mixers], linears.make_exact)

    def logits_of_rows(positions: torch.Tensor | None = None) -> torch.Tensor:
        given = logits_of_cuts(positions)
        return given if tap is None or head is None else torch.cat([tile for _, tile in head(tap.take())], dim=1)

    logits = logits_of_rows()
    if config.narrow_last_layer and tap is not None and not config.strict:
        narrow_last_layer(model, tap, declared[-1], logits_of_rows)
    probe.check_same(model.dtype, expected_cut, logits, _CHANGES)
    return _Hooked(
        entrance=entrance,
        seat=seat,
        declared=declared,
        observed=observed,
        states=dict(states.observed),
        tap=tap,
        head=head,
        vocab_size=expected.shape[1],
        logits=logits_of_rows,
    )


def _fuse_layers(model: Any, hooked: _Hooked, max_model_len: int) -> None:
    """Tried out at the first positions and at those up to the last: some models scale their queries by position."""
    far = probe.far_positions(max_model_len, model.device)
    fuse_layers(model, hooked.declared, hooked.seat, [hooked.logits, lambda: hooked.logits(far)])


def _replace_parts(model: Any, linears: Linears, config: EngineConfig, packable: bool) -> None:
    if config.fused_elementwise and packable:
        fuse_elementwise(model)
        if linears.native is not None and config.gated_products:
            pack_gates(model, linears.native)
    if linears.make is not plain_linear:
        pack_linears(model, linears.make)
    if config.fused_norms and packable:
        fuse_norms(model)


def _read(source: str | Path, dtype: str, device: torch.device) -> Any:
    """The transformers module in evaluation mode on `device`."""
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        if config.is_encoder_decoder:
            raise ModelRefused(f"{source}: encoder-decoder models cannot be served ({type(config).__name__})")
        model = AutoModelForCausalLM.from_pretrained(
            source, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelRefused(f"{source}: transformers cannot load it as a causal language model: {error}") from error
    finally:
        if bars:
            logging.enable_progress_bar()
    return model.to(device).eval().requires_grad_(False)


def _take_head(
    model: Any, ids: torch.Tensor, seat: AttentionSeat, expected: torch.Tensor, make_linear: LinearMaker, picks: bool
) -> tuple[HeadTap | None, ProjectedTiles | None]:
    """Put a tap where the output layer was, if there is one, and tiles in its place, if what follows it is known."""
    linear = model.get_output_embeddings()
    tap = None
    if type(linear) is nn.Linear:
        tap = HeadTap(linear)
        model.set_output_embeddings(tap)
    final = probe.hooked_logits(model, ids, seat)
    probe.check_same(model.dtype, expected, final, "attention over a packed row")
    if tap is None:
        return None, None
    raw = linear(tap.take()).float()
    after = recognise(raw, final, getattr(model.config.get_text_config(), "final_logit_softcapping", None))
    if after is None:
        return tap, None
    tap.passes_through = False
    tap.linear = nn.Identity()
    return tap, cut_head(linear, make_linear, after, picks)


def _eos_token_ids(model: Any) -> frozenset[int]:
    """From the generation configuration, else from the model's."""
    for config in (model.generation_config, model.config.get_text_config()):
        ids = getattr(config, "eos_token_id", None)
        if ids is not None:
            return frozenset([int(ids)] if isinstance(ids, int) else [int(i) for i in ids])
    return frozenset()


def _max_model_len(text_config: Any, wanted: int | None) -> int:
    own = getattr(text_config, "max_position_embeddings", None)
    if wanted is not None and own is not None and wanted > own:
        raise ConfigError(f"max_model_len is {wanted}, but the model's own limit is {own}")
    limit = wanted if wanted is not None else own
    if limit is None:
        raise ConfigError("the model's configuration names no max_position_embeddings; give max_model_len")
    return int(limit)
