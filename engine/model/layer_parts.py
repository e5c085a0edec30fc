"""What a decoder layer is made of, if it is one of those that the C kernel can run as a whole."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from engine.model.elementwise import FusedGate
from engine.model.last_layer import Narrowed
from engine.model.native_linear import NativeLinear
from engine.model.norms import FusedNorm

_NORMS = (
    {"before": "input_layernorm", "before_gate": "post_attention_layernorm"},
    {
        "before": "input_layernorm",
        "after_attention": "post_attention_layernorm",
        "before_gate": "pre_feedforward_layernorm",
        "after_down": "post_feedforward_layernorm",
    },
)
"""Transformers' names by their place: those of Llama and those of Gemma."""

_OF_HEADS = {"of_query": "q_norm", "of_key": "k_norm"}
_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerParts:
    """The parts by what they are for. Widths fit each other."""

    projections: tuple[NativeLinear, NativeLinear, NativeLinear, NativeLinear]  # query, key, value, output
    gate: NativeLinear
    down: NativeLinear
    norms: dict[str, FusedNorm]  # by place
    heads: int
    kv_heads: int
    dim: int
    narrowed: Narrowed | None  # in the last layer: it knows for which steps all rows run there

    @classmethod
    def of(cls, layer: nn.Module) -> LayerParts | None:
        children = dict(layer.named_children())
        attention, mlp = children.pop("self_attn", None), children.pop("mlp", None)
        narrowed = mlp if isinstance(mlp, Narrowed) else None
        mlp = whole(mlp)
        dim = getattr(attention, "head_dim", None)
        if attention is None or not isinstance(dim, int) or not isinstance(mlp, FusedGate):
            return None
        inner = {name: whole(child) for name, child in attention.named_children()}
        products = [*(inner.pop(name, None) for name in _PROJECTIONS), mlp.gated, mlp.down_proj]
        native = [one for one in products if isinstance(one, NativeLinear)]
        norms = _norms(children, inner)
        if norms is None or len(native) < len(products):
            return None
        query, key, value, output, gate, down = native
        parts = cls(
            projections=(query, key, value, output),
            gate=gate,
            down=down,
            norms=norms,
            heads=query.out_features // dim,
            kv_heads=key.out_features // dim,
            dim=dim,
            narrowed=narrowed,
        )
        return parts if parts._fit() else None

    def _fit(self) -> bool:
        """The kernel is given addresses and believes the widths."""
        query, key, value, output = self.projections
        hidden, of_heads, of_kv_heads = query.in_features, self.heads * self.dim, self.kv_heads * self.dim
        ins = (query, key, value, self.gate)
        return (
            self.dim % 2 == self.heads % max(1, self.kv_heads) == 0
            and (query.out_features, key.out_features, value.out_features) == (of_heads, of_kv_heads, of_kv_heads)
            and all(one.in_features == hidden for one in ins)
            and (output.in_features, output.out_features) == (of_heads, hidden)
            and (self.down.in_features, self.down.out_features) == (self.gate.out_features, hidden)
            and all(
                len(norm.gain) == (self.dim if place in _OF_HEADS else hidden) for place, norm in self.norms.items()
            )
        )


def whole(module: nn.Module | None) -> nn.Module | None:
    """Without what narrows it to some rows."""
    return module.own if isinstance(module, Narrowed) else module


def _norms(of_layer: dict[str, nn.Module], of_attention: dict[str, nn.Module | None]) -> dict[str, FusedNorm] | None:
    """By place; None where there are others, or other parts than norms."""
    names = next((names for names in _NORMS if set(names.values()) == of_layer.keys()), None)
    if names is None or not of_attention.keys() <= set(_OF_HEADS.values()):
        return None
    found: dict[str, nn.Module | None] = {place: of_layer[name] for place, name in names.items()}
    found |= {place: of_attention[name] for place, name in _OF_HEADS.items() if name in of_attention}
    norms = {place: norm for place, norm in found.items() if isinstance(norm, FusedNorm)}
    return norms if len(norms) == len(found) else None
