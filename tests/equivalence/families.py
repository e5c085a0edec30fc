"""Tiny configurations of the families that must be served: attention of every kind, and every kind of state layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import transformers

VOCAB_SIZE = 211
WINDOW = 12

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]

ATTENTION_FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: transformers.LlamaConfig(**_COMMON),
    "qwen3": lambda: transformers.Qwen3Config(**_COMMON),
    "mistral": lambda: transformers.MistralConfig(**_COMMON, sliding_window=WINDOW),
    "gemma2": lambda: transformers.Gemma2Config(
        **_COMMON,
        sliding_window=WINDOW,
        layer_types=_MIXED,
        query_pre_attn_scalar=16,
        attn_logit_softcapping=2.0,
        final_logit_softcapping=5.0,
    ),
    "gemma3": lambda: transformers.Gemma3TextConfig(
        **_COMMON, sliding_window=WINDOW, layer_types=_MIXED, query_pre_attn_scalar=16
    ),
    "gpt_oss": lambda: transformers.GptOssConfig(
        **_COMMON, sliding_window=WINDOW, layer_types=_MIXED, num_local_experts=4, num_experts_per_tok=2
    ),
    "qwen2_moe": lambda: transformers.Qwen2MoeConfig(
        **_NO_HEAD | {"hidden_size": 96},
        sliding_window=WINDOW,
        use_sliding_window=True,
        layer_types=_MIXED,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        shared_expert_intermediate_size=32,
    ),
    "granite": lambda: transformers.GraniteConfig(
        **_NO_HEAD | {"hidden_size": 96},
        logits_scaling=4.0,
    ),
    # Heads of two sizes.
    "gemma4": lambda: transformers.Gemma4TextConfig(
        **_COMMON, sliding_window=WINDOW, layer_types=_MIXED, global_head_dim=32, hidden_size_per_layer_input=0
    ),
    # The last two layers read the keys and values of earlier ones.
    "gemma3n": lambda: transformers.Gemma3nTextConfig(
        **_COMMON | {"num_hidden_layers": 5},
        sliding_window=WINDOW,
        layer_types=["sliding_attention", *_MIXED],
        num_kv_shared_layers=2,
        vocab_size_per_layer_input=VOCAB_SIZE,
        hidden_size_per_layer_input=8,
        laurel_rank=8,
        activation_sparsity_pattern=[0.0] * 5,
    ),
    # Latent attention, where keys are wider than values, and experts in groups.
    "deepseek_v3": lambda: transformers.DeepseekV3Config(
        **_NO_HEAD | {"num_key_value_heads": 6},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=16,
        n_routed_experts=4,
        num_experts_per_tok=2,
        n_shared_experts=1,
        n_group=2,
        topk_group=1,
        first_k_dense_replace=1,
        moe_intermediate_size=32,
    ),
    "mixtral": lambda: transformers.MixtralConfig(**_COMMON, num_local_experts=4, num_experts_per_tok=2),
    "cohere2": lambda: transformers.Cohere2Config(**_NO_HEAD, sliding_window=WINDOW, layer_types=_MIXED),
}

_NO_HEAD: dict[str, Any] = {key: value for key, value in _COMMON.items() if key != "head_dim"}
_HEAD = {"head_dim": 16}
_LAYERS = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_DELTA_NET: dict[str, Any] = {
    "layer_types": _LAYERS,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
}
_MAMBA2: dict[str, Any] = {
    "mamba_n_heads": 8,
    "mamba_d_head": 12,
    "mamba_d_state": 8,
    "mamba_n_groups": 2,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_chunk_size": 8,
}
# transformers bounds the time step from below in prefill and not in decode: with a bound that is ever reached, its own
# logits depend on where a prompt is cut, and on which tokens run again after a preemption.
_UNBOUNDED = {"time_step_min": 1e-6}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_PURE: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "state_size": 8,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "tie_word_embeddings": False,
    "max_position_embeddings": 256,  # these models name no limit of their own
}

STATE_FAMILIES: dict[str, Callable[[], Any]] = {
    "qwen3_next": lambda: transformers.Qwen3NextConfig(
        **_NO_HEAD, **_HEAD, **_DELTA_NET, **_EXPERTS, shared_expert_intermediate_size=32
    ),
    "qwen3_5": lambda: transformers.Qwen3_5TextConfig(**_NO_HEAD, **_HEAD, **_DELTA_NET),
    "qwen3_5_moe": lambda: transformers.Qwen3_5MoeTextConfig(
        **_COMMON, **_DELTA_NET, **_EXPERTS, shared_expert_intermediate_size=32
    ),
    "olmo_hybrid": lambda: transformers.OlmoHybridConfig(**_NO_HEAD, **_DELTA_NET),
    "kimi_linear": lambda: transformers.KimiLinearConfig(
        **_NO_HEAD | {"num_key_value_heads": 6},
        layer_types=_LAYERS,
        linear_head_dim=8,
        linear_num_heads=4,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=32,
        mlp_layer_types=["dense", "sparse", "dense", "sparse"],
    ),
    "bailing_hybrid": lambda: transformers.BailingHybridConfig(
        **_COMMON | {"num_key_value_heads": 6, "head_dim": 8},
        layer_types=_LAYERS,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        n_group=1,
        topk_group=1,
        moe_intermediate_size=32,
        mlp_layer_types=["dense", "sparse", "dense", "sparse"],
    ),
    "bamba": lambda: transformers.BambaConfig(**_NO_HEAD, **_MAMBA2, attn_layer_indices=[1, 3]),
    "granitemoehybrid": lambda: transformers.GraniteMoeHybridConfig(
        **_NO_HEAD,
        **_MAMBA2,
        layer_types=_LAYERS,
        num_local_experts=4,
        num_experts_per_tok=2,
        shared_intermediate_size=32,
    ),
    "nemotron_h": lambda: transformers.NemotronHConfig(
        **{key: value for key, value in _COMMON.items() if key != "num_hidden_layers"},
        layer_types=["linear_attention", "moe", "full_attention", "linear_attention", "mlp", "full_attention"],
        ssm_state_size=8,
        **_UNBOUNDED,
        mamba_num_heads=8,
        mamba_head_dim=12,
        n_groups=2,
        chunk_size=8,
        n_routed_experts=4,
        moe_intermediate_size=32,
        moe_shared_expert_intermediate_size=32,
    ),
    "falcon_h1": lambda: transformers.FalconH1Config(**_NO_HEAD, **_HEAD, **_MAMBA2, mamba_d_ssm=96),
    "zamba2": lambda: transformers.Zamba2Config(
        **_NO_HEAD | {"num_key_value_heads": 6},
        layers_block_type=["linear_attention", "hybrid", "linear_attention", "hybrid"],
        mamba_d_state=8,
        n_mamba_heads=8,
        chunk_size=8,
        num_mem_blocks=1,
        use_mem_rope=True,
        **_UNBOUNDED,
    ),
    "zamba": lambda: transformers.ZambaConfig(
        **_NO_HEAD | {"num_key_value_heads": 6, "num_hidden_layers": 6},
        layers_block_type=[
            "linear_attention",
            "linear_attention",
            "hybrid",
            "linear_attention",
            "hybrid",
            "linear_attention",
        ],
        mamba_d_state=8,
        use_associative_scan=False,
    ),
    "jamba": lambda: transformers.JambaConfig(
        **_NO_HEAD,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=4,
        mamba_d_state=8,
        mamba_dt_rank=4,
        use_mamba_kernels=False,
    ),
    "lfm2": lambda: transformers.Lfm2Config(
        **_NO_HEAD, layer_types=["conv", "full_attention", "conv", "full_attention"]
    ),
    "lfm2_moe": lambda: transformers.Lfm2MoeConfig(
        **_NO_HEAD, **_EXPERTS, num_dense_layers=1, layer_types=["conv", "full_attention", "conv", "full_attention"]
    ),
    "lfm3": lambda: transformers.Lfm3Config(
        **_NO_HEAD, sliding_window=WINDOW, layer_types=["conv", "full_attention", "sliding_attention", "conv"]
    ),
    "mamba": lambda: transformers.MambaConfig(**_PURE),
    "mamba2": lambda: transformers.Mamba2Config(**_PURE, head_dim=12, num_heads=8, n_groups=2, chunk_size=8),
    "falcon_mamba": lambda: transformers.FalconMambaConfig(**_PURE),
}

PURE_STATE_FAMILIES = ("falcon_mamba", "mamba", "mamba2")
FAMILIES = ATTENTION_FAMILIES | STATE_FAMILIES
