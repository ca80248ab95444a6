"""A tiny configuration of every model type in `mlx_lm.models`.

`SIZES` has the dimensions under every name that a type's `ModelArgs` gives them; mlx-lm ignores the keys that a type
does not know. `OWN` adds what one type alone needs. Windows hold 8 tokens, so that a prompt of 20 has wrapped them.
"""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import fields
from typing import Any
from zlib import crc32

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_flatten

VOCAB = 96
WINDOW = 8
HEADS = 4
HEAD_DIM = 8
HIDDEN = HEADS * HEAD_DIM

NOT_MODELS = {
    "activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline", "rope_utils", "ssm",
    "switch_layers",
}  # fmt: skip
"""Modules of `mlx_lm.models` that other modules share."""
NOT_RUN = {
    "bitnet": "mlx-lm has its products as a Metal kernel alone",
    "muse_spark": "mlx-lm has its rotation of queries and keys as a Metal kernel alone",
    "olmo": "mlx-lm needs the package ai2-olmo, and ends the process at the import without it",
}
"""Types that mlx-lm itself cannot build or run on a CPU, and what was seen."""
BY_CHUNKS = {
    "plamo3": "mlx-lm shows the tokens of a chunk a window that is one token longer",
}
"""Types whose tokens depend on the chunks in which a prompt is read, and why."""

ALIKE = [
    "Klear", "afm7", "apertus", "bailing_moe", "cohere", "dbrx", "deepseek", "deepseek_v2", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone", "gemma", "gemma2", "glm", "glm4", "glm4_moe", "gpt2", "gpt_bigcode", "gpt_neox",
    "gptj", "granite", "granitemoe", "helium", "hunyuan", "hunyuan_v1_dense", "internlm2", "internlm3",
    "lille-130m", "llama4_text", "mimo", "minicpm", "minicpm3", "minimax", "minimax_m3_vl", "mistral3",
    "mixtral", "nanbeige", "nanochat", "nemotron", "nemotron-nas", "olmo2", "olmoe", "openelm", "phi", "phi3",
    "phimoe", "phixtral", "pixtral", "plamo", "qwen", "qwen2", "qwen2_moe", "qwen2_vl", "qwen3", "qwen3_moe",
    "qwen3_vl", "qwen3_vl_moe", "seed_oss", "smollm3", "solar_open", "stablelm", "starcoder2", "talkie",
    "telechat3", "youtu_llm",
]  # fmt: skip
"""Types whose caches are all of keys and values of every token: what is done with one is done with all."""
STATES = {
    "nemotron_h": "Mamba 2, beside layers without a cache",
    "bailing_hybrid": "lightning attention, with a position from outside",
    "rwkv7": "states of two modules in one cache",
    "recurrent_gemma": "a gated recurrence beside windows; before the first token its states are no zeros",
    "llama4": "attention in chunks: the whole model row by row",
    "longcat_flash_ngram": "the last tokens, before the first layer",
    "kimi_linear": "KDA beside latent attention",
    "lfm2": "a short convolution",
    "gear": "short convolutions of keys and values",
    "mamba": "Mamba",
    "falcon_h1": "Mamba 2 and attention in one layer",
    "olmo_hybrid": "gated delta with a convolution each for queries, keys and values",
    "baichuan_m1": "convolutions of the keys of a window: the whole model row by row",
    "iquestloopcoder": "windows of a second loop: the whole model row by row",
    "deepseek_v41": "compressed groups: the whole model row by row",
    "mamba2": "Mamba 2",
    "plamo2": "Mamba 2 beside attention",
    "granitemoehybrid": "Mamba 2 beside attention",
    "jamba": "Mamba beside attention and experts",
    "kimi_k3": "KDA beside latent attention, and residuals of blocks",
    "bailing_moe_v3": "KDA beside latent attention",
    "bailing_moe_linear": "lightning attention, with a position from outside",
    "lfm2_moe": "a short convolution",
    "lfm2-vl": "a short convolution",
}
"""Types with layers that run row by row in a pass, and what their states are."""

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "num_vocab": VOCAB,
    "hidden_size": HIDDEN,
    "hidden_dim": HIDDEN,
    "d_model": HIDDEN,
    "model_dim": HIDDEN,
    "n_embd": HIDDEN,
    "num_hidden_layers": 2,
    "num_layers": 2,
    "num_transformer_layers": 2,
    "n_layers": 2,
    "n_layer": 2,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "num_query_heads": HEADS,
    "n_heads": HEADS,
    "n_head": HEADS,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "n_kv_heads": 2,
    "head_dim": HEAD_DIM,
    "hidden_size_per_head": HEAD_DIM,
    "kv_channels": HEAD_DIM,
    "intermediate_size": 48,
    "ffn_hidden_size": 48,
    "ff_intermediate_size": 48,
    "n_inner": 48,
    "block_dim": HIDDEN,
    "block_ff_dim": 48,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    # norms and positions
    "rms_norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "norm_eps": 1e-5,
    "max_position_embeddings": 512,
    "model_max_length": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "block_size": 512,
    "rope_theta": 10000.0,
    "rotary_dim": 4,
    "partial_rotary_factor": 0.5,
    "rotary_emb_base": 10000,
    "rotary_pct": 0.5,
    "rope_parameters": {"rope_theta": 10000.0, "rope_type": "default"},
    "rope_scaling": None,
    # windows
    "sliding_window": WINDOW,
    "sliding_window_pattern": 2,
    "window_size": WINDOW,
    "sliding_window_size": WINDOW,
    "attention_window_size": WINDOW,
    "loop_window_size": WINDOW,
    "attention_chunk_size": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    # switches
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_conv_bias": True,
    "conv_bias": False,
    "use_qkv_bias": False,
    "use_qk_norm": True,
    "qk_norm": True,
    "post_norm": False,
    "tie_word_embeddings": False,
    "hidden_act": "silu",
    # experts
    "num_experts": 4,
    "n_routed_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "top_k_experts": 2,
    "moe_topk": 2,
    "moe_top_k": 2,
    "moe_k": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_shared_expert": 1,
    "moe_num_shared_experts": 1,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "share_expert_dim": 16,
    "expert_ffn_hidden_size": 16,
    "moe_hidden_size": 16,
    "intermediate_size_mlp": 48,
    "dense_intermediate_size": 48,
    "first_k_dense_replace": 1,
    "num_dense_layers": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "moe_layer_freq": 1,
    "use_expert_bias": True,
    # latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 16,
    "qk_rope_head_dim": 4,
    "qk_nope_head_dim": 4,
    "v_head_dim": 8,
    "qk_head_dim": 8,
    "index_n_heads": 8,
    "index_head_dim": 16,
    "index_topk": 8,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
    "linear_conv_kernel_dim": 4,
    "full_attention_interval": 2,
    "linear_allow_neg_eigval": True,
    "layer_group_size": 2,
    "group_norm_size": 1,
    "state_size": 8,
    "ssm_state_size": 8,
    "conv_kernel": 4,
    "conv_L_cache": 3,
    "n_groups": 1,
    "time_step_rank": 4,
    "time_step_limit": [0.0, 100.0],
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_proj_bias": False,
    "mamba_conv_bias": True,
    "mamba_d_conv": 4,
    "mamba_d_state": 8,
    "mamba_d_head": 16,
    "mamba_d_ssm": 64,
    "mamba_n_heads": 4,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
    # scales
    "logits_scaling": 1.0,
    "attention_multiplier": 0.35,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "scale_depth": 1.4,
    "scale_emb": 1.0,
    "dim_model_base": HIDDEN,
}

LAYER_ROPE = {kind: {"rope_theta": 10000.0} for kind in ("sliding_attention", "full_attention")}
LLAMA4_ROPE = {
    "rope_theta": 10000.0, "type": "yarn", "factor": 2.0, "llama_4_scaling_beta": 0.1,
    "original_max_position_embeddings": 16,
}  # fmt: skip

OWN: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 1, "num_layers": 3},
    "baichuan_m1": {"sliding_window_layers": [0], "conv_window": 2},
    "dbrx": {
        "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10000.0},
    },
    "deepseek_v41": {
        "head_dim": 16, "num_hidden_layers": 4, "o_groups": 2, "o_lora_rank": 8,
        "compress_ratios": [0, 4, 4, 0], "kv_source_layer_ids": [1], "index_source_layer_ids": [1],
    },
    "deepseek_v2": {"rope_scaling": {"factor": 2.0, "original_max_position_embeddings": 256}},
    "exaone4": {"sliding_window_pattern": "LG"},
    "gear": {"num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "conv_mixer"]},
    "gemma3n_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB,
        "rope_local_base_freq": 10000.0, "final_logit_softcapping": 30.0, "activation_sparsity_pattern": [0.5, 0, 0, 0],
        "hidden_size_per_layer_input": 8, "altup_num_inputs": 2, "altup_coef_clip": 120.0, "altup_correct_scale": True,
        "altup_active_idx": 0, "laurel_rank": 4, "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "gemma4_text": {
        "num_hidden_layers": 4, "num_kv_shared_layers": 2, "vocab_size_per_layer_input": VOCAB,
        "hidden_size_per_layer_input": 8, "global_head_dim": 16, "rope_parameters": None,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
    },
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "hunyuan": {
        "rope_scaling": {"alpha": 2.0, "factor": 1.0, "type": "dynamic"}, "use_mixed_mlp_moe": True, "use_cla": True,
        "cla_share_factor": 2,
    },
    "kimi_linear": {
        "linear_attn_config": {
            "kda_layers": [1], "full_attn_layers": [2], "num_heads": HEADS, "head_dim": 32, "short_conv_kernel_size": 4,
        },
    },
    "kimi_k3": {"hidden_act": "situ"},
    "lfm2": {"layer_types": ["conv", "full_attention"], "full_attn_idxs": [1]},
    "longcat_flash_ngram": {
        "zero_expert_num": 1, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "ngram_vocab_size_ratio": 2,
    },
    "longcat_flash": {
        "attention_method": "MLA", "zero_expert_type": "identity", "zero_expert_num": 1, "mla_scale_q_lora": True,
        "mla_scale_kv_lora": True,
    },
    "mellum": {"rope_parameters": LAYER_ROPE},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0], "moe_layer_freq": [0, 1], "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False, "swa_rope_theta": 10000.0, "swa_num_attention_heads": HEADS,
        "swa_num_key_value_heads": 2, "swa_head_dim": HEAD_DIM, "swa_v_head_dim": HEAD_DIM,
    },
    "exaone_moe": {"is_moe_layer": [False, True]},
    "jamba": {
        "attn_layer_offset": 1, "attn_layer_period": 2, "expert_layer_offset": 1, "expert_layer_period": 2,
    },
    "lille-130m": {"n_embd": 96},
    "llama4": {"interleave_moe_layer_step": 2, "num_experts_per_tok": 1, "num_hidden_layers": 4},
    "llama4_text": {"no_rope_layers": [1, 0]},
    "minicpm3": {"rope_scaling": {"original_max_position_embeddings": 256, "short_factor": 1.0, "long_factor": 1.0}},
    "ministral3": {"rope_parameters": LLAMA4_ROPE},
    "mistral4": {"rope_parameters": LLAMA4_ROPE},
    "minimax_m3_vl": {
        "index_block_size": 4, "index_topk_blocks": 2, "index_n_heads": 2, "layer_types": ["full_attention", "sparse"],
        "mlp_layer_types": ["dense", "sparse"],
    },
    "prism_hadamard_qwen35": {"hidden_size": 128},
    "muse_spark": {
        "post_norm_eps": 1e-5, "layer_rope_theta": [10000.0, 0], "final_logit_softcapping": 30.0,
        "output_multiplier": 1.0, "num_shared_experts": 0,
    },
    "nemotron-nas": {
        "block_configs": [{"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}}] * 2,
    },
    "nemotron_h": {"hybrid_override_pattern": "M*E-", "layer_types": None, "moe_shared_expert_intermediate_size": 16},
    "olmo_hybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "openelm": {"num_query_heads": [4, 4], "num_kv_heads": [2, 2], "ffn_multipliers": [1.0, 1.0], "ffn_dim_divisor": 8},
    "phi3small": {"vocab_size": 100352, "dense_attention_every_n_layers": 2, "gegelu_limit": 20.0},
    "plamo": {"n_shared_head": 2},
    "qwen3_5_text": {"num_experts": 0},
    "recurrent_gemma": {
        "conv1d_width": 4, "logits_soft_cap": 30.0, "block_types": ["recurrent", "attention"],
    },
    "rwkv7": {"a_low_rank_dim": 8, "v_low_rank_dim": 8, "gate_low_rank_dim": 8, "decay_low_rank_dim": 8},
    "step3p5": {"num_attention_groups": 2},
    "spark2_5": {"rope_parameters": LAYER_ROPE, "hidden_act": "gelu"},
}  # fmt: skip

WRAPPERS = {
    "gemma3": "gemma3_text", "gemma3n": "gemma3n_text", "gemma4": "gemma4_text", "kimi_k25": "deepseek_v3",
    "kimi_k3": "kimi_linear", "kimi_vl": "deepseek_v3", "lfm2-vl": "lfm2", "llama4": "llama4_text",
    "minimax_m3_vl": "minimax_m3_vl", "mistral3": "llama", "muse_spark": "muse_spark", "pixtral": "llama",
    "prism_hadamard_qwen35": "qwen3_5_text", "qwen2_vl": "qwen2", "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text", "qwen3_vl": "qwen3", "qwen3_vl_moe": "qwen3_moe",
}  # fmt: skip
"""Types with a `text_config`, and the model type in it."""


BESIDE_TEXT: dict[str, dict[str, Any]] = {
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5", "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [{"path": "model.layers.0.mlp.gate_proj", "embedding": False, "dtype": "float16", "block": 0}],
    },
}  # fmt: skip
"""What a type has in its config.json besides the `text_config`."""


def model_types() -> list[str]:
    """Return every model type that mlx-lm has a module for, and can build and run here."""
    modules = {module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__)}
    return sorted(modules - NOT_MODELS - NOT_RUN.keys())


def tiny_config(kind: str) -> dict[str, Any]:
    """Return a config.json of one model type, with no key that its `ModelArgs` does not know."""
    text = WRAPPERS.get(kind)
    if text:
        inner = SIZES | OWN.get(text, {}) | OWN.get(kind, {}) | {"model_type": text}
        return {"model_type": kind, "vocab_size": VOCAB, "text_config": inner} | BESIDE_TEXT.get(kind, {})
    known = {field.name for field in fields(model_module(kind).ModelArgs)}
    config = {name: value for name, value in (SIZES | OWN.get(kind, {})).items() if name in known}
    return config | {"model_type": kind}


def model_module(kind: str) -> Any:
    """Return mlx-lm's module of a model type."""
    return importlib.import_module(f"mlx_lm.models.{kind}")


def random_weights(kind: str, config: dict[str, Any]) -> dict[str, mx.array]:
    """Return random weights by mlx-lm's names: matrices of gain 1.5, vectors near what mlx-lm starts them with."""
    module = model_module(kind)
    mx.random.seed(0)
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    weights: dict[str, mx.array] = dict(tree_flatten(model.parameters()))  # type: ignore[arg-type]
    for name, first in weights.items():
        key = mx.random.key(crc32(f"{kind} {name}".encode()))
        if not mx.issubdtype(first.dtype, mx.floating):
            weights[name] = mx.random.randint(0, 2**31 - 1, first.shape, key=key).astype(first.dtype)
            continue
        noise = mx.random.normal(first.shape, key=key)
        weights[name] = 1.5 * noise / first.shape[-1] ** 0.5 if first.ndim > 1 else first + 0.2 * noise
    return weights
