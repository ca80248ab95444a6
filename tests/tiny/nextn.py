"""Tiny random GLM and DeepSeek checkpoints in raw Hugging Face layout, with their `nextn` layer."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.tiny.files import save_checkpoint
from tests.tiny.models import Shapes
from tests.tiny.raw import random_values
from tests.tiny.tokenizer import EOS, tokenizer

NextNKind = Literal["glm4_moe", "glm4_moe_lite", "deepseek_v3", "deepseek_v32", "glm_moe_dsa"]
NEXTN_KINDS: tuple[NextNKind, ...] = ("glm4_moe", "glm4_moe_lite", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")
ARCHITECTURES = {
    "glm4_moe": "Glm4MoeForCausalLM",
    "glm4_moe_lite": "Glm4MoeLiteForCausalLM",
    "deepseek_v3": "DeepseekV3ForCausalLM",
    "deepseek_v32": "DeepseekV32ForCausalLM",
    "glm_moe_dsa": "GlmMoeDsaForCausalLM",
}


@dataclass(frozen=True)
class NextNSizes:
    """Dimensions of a tiny model; every matrix can be quantised in groups of 32.

    The first `dense` layers have no experts; the head always has.
    """

    vocab: int = 288
    hidden: int = 64
    layers: int = 3
    dense: int = 1
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 128
    experts: int = 4
    top_k: int = 2
    moe_mlp: int = 64
    q_lora: int = 64
    kv_lora: int = 64
    nope: int = 32
    rope: int = 32
    value: int = 32
    index_heads: int = 2
    index_dim: int = 64
    index_topk: int = 8
    indexers: str = ""
    """F or S for each layer: its indexer is its own, or shared with the layer before. Empty: as in GLM-5 and 5.1."""


def nextn_checkpoint(
    folder: Path,
    kind: NextNKind,
    *,
    dtype: str = "float32",
    seed: int = 0,
    head: bool = True,
    own: Literal["copies", "other", "none"] = "copies",
    shards: int = 1,
    **sizes: Any,
) -> Path:
    """Write a random checkpoint with a tokenizer; returns the folder.

    Args:
        own: whether the layer's embedding and output matrix are the trunk's again (as in releases), other ones, or
            not there.
    """
    s = NextNSizes(**sizes)
    shapes = _trunk(kind, s) | (_head(kind, s) if head else {})
    arrays = {name: random_values(name, shape, seed, norms=1.0) for name, shape in shapes.items()}
    if head:
        last = f"model.layers.{s.layers}."
        for name, trunks in ((f"{last}embed_tokens", "model.embed_tokens"), (f"{last}shared_head.head", "lm_head")):
            if own == "copies":
                arrays[f"{name}.weight"] = arrays[f"{trunks}.weight"]
            elif own == "none":
                del arrays[f"{name}.weight"]
    kept = ("e_score_correction_bias",)
    save_checkpoint(folder, arrays, nextn_config(kind, s, dtype), dtype, kept=kept, shards=shards)
    tokenizer(folder, s.vocab)
    return folder


def nextn_config(kind: NextNKind, s: NextNSizes, dtype: str = "float32") -> dict[str, Any]:
    """A config.json that transformers and mlx-lm both read."""
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "moe_intermediate_size": s.moe_mlp,
        "num_hidden_layers": s.layers,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads if kind == "glm4_moe" else s.heads,
        "n_routed_experts": s.experts,
        "n_shared_experts": 1,
        "num_experts_per_tok": s.top_k,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": 1.5,
        "first_k_dense_replace": s.dense,
        "moe_layer_freq": 1,
        "hidden_act": "silu",
        # in glm4_moe_lite, mlx-lm takes it for the latents' norms too, where transformers has 1e-6
        "rms_norm_eps": 1e-6 if kind == "glm4_moe_lite" else 1e-5,
        "max_position_embeddings": 4096,
        "rope_theta": 10000.0,
        "rope_scaling": None,
        "attention_bias": False,
        "tie_word_embeddings": False,
        "eos_token_id": EOS,
    }
    if kind == "glm4_moe":
        rope["partial_rotary_factor"] = 0.5
        return config | {
            "head_dim": s.head_dim, "partial_rotary_factor": 0.5, "use_qk_norm": True, "rope_parameters": rope,
        }  # fmt: skip
    config |= {
        "q_lora_rank": s.q_lora, "kv_lora_rank": s.kv_lora, "qk_nope_head_dim": s.nope, "qk_rope_head_dim": s.rope,
        "v_head_dim": s.value, "rope_parameters": rope,
    }  # fmt: skip
    if kind in ("deepseek_v32", "glm_moe_dsa"):
        config |= {"index_n_heads": s.index_heads, "index_head_dim": s.index_dim, "index_topk": s.index_topk}
    if s.indexers:
        config["indexer_types"] = [{"F": "full", "S": "shared"}[letter] for letter in s.indexers]
    return config


def _trunk(kind: NextNKind, s: NextNSizes) -> Shapes:
    shapes: Shapes = {
        "model.embed_tokens.weight": (s.vocab, s.hidden),
        "model.norm.weight": (s.hidden,),
        "lm_head.weight": (s.vocab, s.hidden),
    }
    for i in range(s.layers):
        layer = _layer(kind, s, moe=i >= s.dense, indexer=s.indexers[i : i + 1] != "S")
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def _head(kind: NextNKind, s: NextNSizes) -> Shapes:
    layer: Shapes = {f"{name}.weight": (s.hidden,) for name in ("enorm", "hnorm", "shared_head.norm")}
    layer |= {f"{name}.weight": (s.vocab, s.hidden) for name in ("embed_tokens", "shared_head.head")}
    layer |= {"eh_proj.weight": (s.hidden, 2 * s.hidden)} | _layer(kind, s, moe=True)
    return {f"model.layers.{s.layers}.{name}": shape for name, shape in layer.items()}


def _layer(kind: NextNKind, s: NextNSizes, *, moe: bool, indexer: bool = True) -> Shapes:
    shapes: Shapes = {f"{n}_layernorm.weight": (s.hidden,) for n in ("input", "post_attention")}
    attention = _grouped(s) if kind == "glm4_moe" else _latent(s)
    if kind in ("deepseek_v32", "glm_moe_dsa") and indexer:
        attention |= _indexer(s)
    shapes |= {f"self_attn.{name}": shape for name, shape in attention.items()}
    if not moe:
        return shapes | _mlp("mlp", s.mlp, s)
    shapes |= {"mlp.gate.weight": (s.experts, s.hidden), "mlp.gate.e_score_correction_bias": (s.experts,)}
    shapes |= _mlp("mlp.shared_experts", s.moe_mlp, s)
    for e in range(s.experts):
        shapes |= _mlp(f"mlp.experts.{e}", s.moe_mlp, s)
    return shapes


def _mlp(path: str, width: int, s: NextNSizes) -> Shapes:
    shapes: Shapes = {f"{path}.{name}_proj.weight": (width, s.hidden) for name in ("gate", "up")}
    return shapes | {f"{path}.down_proj.weight": (s.hidden, width)}


def _grouped(s: NextNSizes) -> Shapes:
    keys = s.kv_heads * s.head_dim
    return {
        "q_proj.weight": (s.heads * s.head_dim, s.hidden),
        "k_proj.weight": (keys, s.hidden),
        "v_proj.weight": (keys, s.hidden),
        "o_proj.weight": (s.hidden, s.heads * s.head_dim),
        "q_norm.weight": (s.head_dim,),
        "k_norm.weight": (s.head_dim,),
    }


def _latent(s: NextNSizes) -> Shapes:
    return {
        "q_a_proj.weight": (s.q_lora, s.hidden),
        "q_a_layernorm.weight": (s.q_lora,),
        "q_b_proj.weight": (s.heads * (s.nope + s.rope), s.q_lora),
        "kv_a_proj_with_mqa.weight": (s.kv_lora + s.rope, s.hidden),
        "kv_a_layernorm.weight": (s.kv_lora,),
        "kv_b_proj.weight": (s.heads * (s.nope + s.value), s.kv_lora),
        "o_proj.weight": (s.hidden, s.heads * s.value),
    }


def _indexer(s: NextNSizes) -> Shapes:
    return {
        "indexer.wq_b.weight": (s.index_heads * s.index_dim, s.q_lora),
        "indexer.wk.weight": (s.index_dim, s.hidden),
        "indexer.k_norm.weight": (s.index_dim,),
        "indexer.k_norm.bias": (s.index_dim,),
        "indexer.weights_proj.weight": (s.index_heads, s.hidden),
    }
