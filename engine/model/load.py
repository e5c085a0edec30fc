"""Load any transformers causal LM whose layers can be served, and find out what the engine must know of it."""

from __future__ import annotations

import json
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
from engine.model import probe
from engine.model.hooks import AttentionSeat, connect
from engine.model.layers import DeclaredLayer, declared_layers, layer_groups
from engine.model.memory import count_blocks, default_cache_bytes
from engine.model.packed import can_pack, pack_linears
from engine.model.project import HeadTap, ProjectedTiles, cut_head, recognise


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run, and the facts that the rest of the engine is built from."""

    model: Any  # the transformers module, its attention routed to `seat`, its linear layers packed
    config_text: str  # the model's config.json
    seat: AttentionSeat
    layers: tuple[DeclaredLayer, ...]
    groups: tuple[LayerGroup, ...]
    num_heads: int  # the most that any layer has
    tap: HeadTap | None  # None: the model has no output layer that we know how to replace
    head: ProjectedTiles | None  # None: take the logits that the model returns
    eos_token_ids: frozenset[int]
    max_model_len: int
    vocab_size: int
    num_blocks: int
    dtype: torch.dtype
    device: torch.device

    def resolve(self, config: EngineConfig) -> EngineConfig:
        """`config` with the numbers that only the model could tell filled in."""
        return replace(config, num_blocks=self.num_blocks, max_model_len=self.max_model_len)


def load_model(source: str | Path, config: EngineConfig) -> LoadedModel:
    """`source` is a local directory or a Hub id; weights are safetensors only, and no code of the model is run.

    Raises ModelRefused with the layer or feature that cannot be served, ConfigError for an option that does not fit.
    """
    device = torch.device(config.device)
    model = _read(source, config.dtype, device)
    text_config = model.config.get_text_config()
    if hasattr(model, "set_experts_implementation") and hasattr(text_config, "num_experts_per_tok"):
        # The default's matrix shapes depend on the batch; this one's do not.
        model.set_experts_implementation("eager")

    declared = declared_layers(text_config)
    ids = probe.probe_ids(int(text_config.vocab_size), device)
    expected = probe.own_logits(model, ids)
    handler = probe.ProbeHandler(declared)
    seat = AttentionSeat(handler)
    connect(model, seat)
    pack = config.packed_weights and can_pack(model)
    tap, head = _take_head(model, ids, seat, expected, pack)
    probe.check_every_layer(declared, handler.observed)
    if pack:
        pack_linears(model)
    observed = dict(handler.observed)
    handler.observed.clear()
    logits = probe.hooked_logits(model, ids, seat)
    if tap is not None and head is not None:
        logits = torch.cat([tile for _, tile in head(tap.take())], dim=1)
    probe.check_same(expected, logits, "packed weights and a tiled output layer")

    groups = layer_groups(declared, observed, config.block_size)
    dtype = model.dtype
    return LoadedModel(
        model=model,
        config_text=json.dumps(text_config.to_dict(), default=str),
        seat=seat,
        layers=declared,
        groups=groups,
        num_heads=max(shape.num_heads for shape in observed.values()),
        tap=tap,
        head=head,
        eos_token_ids=_eos_token_ids(model),
        max_model_len=_max_model_len(text_config, config.max_model_len),
        vocab_size=expected.shape[1],
        num_blocks=config.num_blocks
        or count_blocks(groups, dtype.itemsize, config.cache_bytes or default_cache_bytes(device)),
        dtype=dtype,
        device=device,
    )


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
    model: Any, ids: torch.Tensor, seat: AttentionSeat, expected: torch.Tensor, pack: bool
) -> tuple[HeadTap | None, ProjectedTiles | None]:
    """Put a tap where the output layer was, if there is one, and tiles in its place, if what follows it is known."""
    linear = model.get_output_embeddings()
    tap = None
    if type(linear) is nn.Linear:
        tap = HeadTap(linear)
        model.set_output_embeddings(tap)
    final = probe.hooked_logits(model, ids, seat)
    probe.check_same(expected, final, "attention over a packed row")
    if tap is None:
        return None, None
    raw = linear(tap.take()).float()
    after = recognise(raw, final, getattr(model.config.get_text_config(), "final_logit_softcapping", None))
    if after is None:
        return tap, None
    tap.passes_through = False
    tap.linear = nn.Identity()
    return tap, cut_head(linear, pack, after)


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
