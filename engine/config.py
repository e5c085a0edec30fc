"""The engine's options, resolved once and never written to again."""

from __future__ import annotations

from dataclasses import dataclass

from engine.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """Every switch of the engine. `cache_bytes=None` takes a share of the free memory at start."""

    device: str = "cpu"
    dtype: str = "float32"  # float32, bfloat16, float16, auto (the checkpoint's own), or int8: float32 but for weights
    block_size: int = 16
    max_batch_tokens: int = 4096  # token budget of one step
    max_sequences: int = 256  # sequences running at once: the batch target
    cache_bytes: int | None = None
    num_blocks: int | None = None  # blocks per layer group; overrides cache_bytes (tests, ablation)
    num_state_slots: int | None = None  # slot 0 included; None: one for each of max_sequences, if memory allows
    max_model_len: int | None = None  # never above the model's own limit
    allow_block_sharing: bool = True
    use_prefix_sharing: bool = True
    packed_weights: bool = True  # linear layers in the order in which products read them, on CPU
    native_linear: bool = True  # products of packed weights by the C kernel where a compiler exists; else by oneDNN
    gated_products: bool = True  # gate, up and activation are one product, with native_linear and fused_elementwise
    picked_products: bool = True  # greedy tokens are chosen while logits are in the cache, with native_linear
    fused_norms: bool = True  # RMS norms by the C kernel on CPU where a compiler exists
    fused_elementwise: bool = True  # gated activations and rotary embeddings by the C kernel, likewise
    fused_layers: bool = True  # a decoder layer is one call of the C kernel, with gated_products and native_attention
    native_attention: bool = True  # the C kernel on CPU where a compiler exists
    native_sampling: bool = True  # tokens are drawn by the C kernel on CPU where a compiler exists
    shared_attention: bool = True  # the C kernel reads what decodes share once per step, not once per decode
    narrow_last_layer: bool = True  # prompts' tokens end at its keys and values; off in strict mode
    kept_heap: bool = True  # what a step frees stays with the process for the next (glibc)
    frozen_objects: bool = True  # Python's garbage collector rests until the model is loaded, then leaves it out
    request_timeout_seconds: float | None = None  # for which one sequence may run; None: for ever
    threads: int | None = None  # torch threads; None leaves torch's choice
    strict: bool = False  # a row's bits depend on nothing but the row; what cannot keep to that is refused at load
    grid: int = 1  # prompts are cut at its multiples only; the model's states set it in strict mode

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ConfigError(f"block_size is {self.block_size}; it must be at least 1")
        if self.max_batch_tokens < 1:
            raise ConfigError(f"max_batch_tokens is {self.max_batch_tokens}; it must be at least 1")
        if self.max_sequences < 1:
            raise ConfigError(f"max_sequences is {self.max_sequences}; it must be at least 1")
        if self.strict and not self.packed_weights:
            raise ConfigError("strict is on and packed_weights off; products of unpacked weights depend on the batch")
        if self.dtype not in ("float32", "bfloat16", "float16", "auto", "int8"):
            raise ConfigError(f"dtype is {self.dtype!r}; use float32, bfloat16, float16, auto or int8")
        if self.weights_in_8_bits and not (self.packed_weights and self.native_linear):
            raise ConfigError("dtype is int8, which needs packed_weights and native_linear; one of them is off")

    @property
    def weights_in_8_bits(self) -> bool:
        return self.dtype == "int8"
