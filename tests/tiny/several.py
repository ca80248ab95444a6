"""Tiny random checkpoints in raw Hugging Face layout whose heads have several layers: Step-3.5 and MiMo-V2-Flash."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tests.tiny.files import save_checkpoint
from tests.tiny.models import Shapes
from tests.tiny.raw import random_values
from tests.tiny.tokenizer import EOS, tokenizer

SeveralKind = Literal["step3p5", "mimo_v2_flash"]
SEVERAL_KINDS: tuple[SeveralKind, ...] = ("step3p5", "mimo_v2_flash")


@dataclass(frozen=True)
class SeveralSizes:
    """Dimensions of a tiny model; every matrix can be quantised in groups of 32.

    The trunk has two layers: a dense one with full attention, and one with experts and a sliding window.
    """

    vocab: int = 288
    hidden: int = 64
    heads: int = 4
    sliding_heads: int = 6
    kv_heads: int = 2
    head_dim: int = 32
    value_dim: int = 16
    """Of MiMo's values."""
    window: int = 8
    mlp: int = 96
    experts: int = 4
    top_k: int = 2
    moe_mlp: int = 32
    head_layers: int = 3


LAYERS = 2
"""Of the trunk."""


def several_checkpoint(
    folder: Path, kind: SeveralKind, *, dtype: str = "float32", seed: int = 0, head: bool = True, **sizes: Any
) -> Path:
    """Write a random checkpoint with a tokenizer; returns the folder."""
    s = SeveralSizes(**sizes)
    trunk, layers, config = (_step if kind == "step3p5" else _mimo)(s)
    arrays = {
        name: random_values(name, shape, seed, norms=0.0 if kind == "step3p5" else 1.0)
        for name, shape in (trunk | (layers if head else {})).items()
    }
    config |= {"model_type": kind, "torch_dtype": dtype, "eos_token_id": EOS}
    save_checkpoint(folder, arrays, config, dtype, kept=("router_bias", "e_score_correction_bias"))
    tokenizer(folder, s.vocab)
    return folder


def _step(s: SeveralSizes) -> tuple[Shapes, Shapes, dict[str, Any]]:
    """Return Step-3.5's tensors, those of its head, and its config; lists have the head's layers too, as released."""
    after = s.head_layers
    config = {
        "architectures": ["Step3p5ForCausalLM"],
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "num_hidden_layers": LAYERS,
        "num_nextn_predict_layers": after,
        "num_attention_heads": s.heads,
        "num_attention_groups": s.kv_heads,
        "head_dim": s.head_dim,
        "attention_other_setting": {"num_attention_heads": s.sliding_heads, "num_attention_groups": s.kv_heads},
        "layer_types": ["full_attention"] + ["sliding_attention"] * (1 + after),
        "partial_rotary_factors": [0.5] + [1.0] * (1 + after),
        "rope_theta": [50000.0] + [10000.0] * (1 + after),
        "sliding_window": s.window,
        "moe_layers_enum": "1",
        "moe_num_experts": s.experts,
        "moe_top_k": s.top_k,
        "moe_intermediate_size": s.moe_mlp,
        "share_expert_dim": s.moe_mlp,
        "moe_router_scaling_factor": 1.5,
        "swiglu_limits": [0.0, 2.0] + [0.0] * after,
        "swiglu_limits_shared": [0.0, 2.0] + [1.0] * after,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 4096,
    }
    experts: Shapes = {f"moe.{part}_proj.weight": (s.experts, s.moe_mlp, s.hidden) for part in ("gate", "up")}
    experts |= {"moe.down_proj.weight": (s.experts, s.hidden, s.moe_mlp), "moe.gate.weight": (s.experts, s.hidden)}
    experts |= {"moe.router_bias": (s.experts,)} | _mlp("share_expert", s.moe_mlp, s)
    blocks = [_step_block(s.heads, s) | _mlp("mlp", s.mlp, s), _step_block(s.sliding_heads, s) | experts]
    layer = _step_block(s.sliding_heads, s) | _mlp("mlp", s.mlp, s) | _projection(s)
    layer |= {"transformer.shared_head.norm.weight": (s.hidden,)}
    layer |= {"transformer.shared_head.output.weight": (s.vocab, s.hidden)}
    return _trunk(blocks, s), _numbered("model.layers", [layer] * after, first=LAYERS), config


def _step_block(heads: int, s: SeveralSizes) -> Shapes:
    return {
        "input_layernorm.weight": (s.hidden,),
        "post_attention_layernorm.weight": (s.hidden,),
        "self_attn.q_proj.weight": (heads * s.head_dim, s.hidden),
        "self_attn.k_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.v_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.o_proj.weight": (s.hidden, heads * s.head_dim),
        "self_attn.q_norm.weight": (s.head_dim,),
        "self_attn.k_norm.weight": (s.head_dim,),
        "self_attn.g_proj.weight": (heads, s.hidden),
    }


def _mimo(s: SeveralSizes) -> tuple[Shapes, Shapes, dict[str, Any]]:
    """Return MiMo-V2-Flash's tensors, those of its head, and its config, which does not declare the head."""
    config = {
        "architectures": ["MiMoV2FlashForCausalLM"],
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "moe_intermediate_size": s.moe_mlp,
        "num_hidden_layers": LAYERS,
        "hybrid_layer_pattern": [0, 1],
        "moe_layer_freq": [0, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "sliding_window_size": s.window,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads,
        "swa_num_attention_heads": s.sliding_heads,
        "swa_num_key_value_heads": s.kv_heads,
        "head_dim": s.head_dim,
        "v_head_dim": s.value_dim,
        "swa_head_dim": s.head_dim,
        "swa_v_head_dim": s.value_dim,
        "n_routed_experts": s.experts,
        "n_shared_experts": None,
        "num_experts_per_tok": s.top_k,
        "n_group": 1,
        "topk_group": 1,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "norm_topk_prob": True,
        "routed_scaling_factor": None,
        "layernorm_epsilon": 1e-5,
        "rope_theta": 50000.0,
        "swa_rope_theta": 10000.0,
        "partial_rotary_factor": 0.334,
        "attention_value_scale": 0.707,
        "max_position_embeddings": 4096,
    }
    experts: Shapes = {"mlp.gate.weight": (s.experts, s.hidden), "mlp.gate.e_score_correction_bias": (s.experts,)}
    for e in range(s.experts):
        experts |= _mlp(f"mlp.experts.{e}", s.moe_mlp, s)
    norms: Shapes = {f"{name}_layernorm.weight": (s.hidden,) for name in ("input", "post_attention")}
    blocks = [norms | _mimo_attention(s.heads, s) | _mlp("mlp", s.mlp, s)]
    sliding = _mimo_attention(s.sliding_heads, s) | {"self_attn.attention_sink_bias": (s.sliding_heads,)}
    blocks += [norms | sliding | experts]
    layer: Shapes = {f"{name}_layernorm.weight": (s.hidden,) for name in ("input", "pre_mlp", "final")}
    layer |= sliding | _mlp("mlp", s.mlp, s) | _projection(s)
    return _trunk(blocks, s), _numbered("model.mtp.layers", [layer] * s.head_layers), config


def _mimo_attention(heads: int, s: SeveralSizes) -> Shapes:
    return {
        "self_attn.q_proj.weight": (heads * s.head_dim, s.hidden),
        "self_attn.k_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.v_proj.weight": (s.kv_heads * s.value_dim, s.hidden),
        "self_attn.o_proj.weight": (s.hidden, heads * s.value_dim),
    }


def _trunk(blocks: list[Shapes], s: SeveralSizes) -> Shapes:
    outside: Shapes = {"model.embed_tokens.weight": (s.vocab, s.hidden), "lm_head.weight": (s.vocab, s.hidden)}
    return outside | {"model.norm.weight": (s.hidden,)} | _numbered("model.layers", blocks)


def _projection(s: SeveralSizes) -> Shapes:
    norms: Shapes = {f"{name}.weight": (s.hidden,) for name in ("enorm", "hnorm")}
    return norms | {"eh_proj.weight": (s.hidden, 2 * s.hidden)}


def _mlp(path: str, width: int, s: SeveralSizes) -> Shapes:
    shapes: Shapes = {f"{path}.{name}_proj.weight": (width, s.hidden) for name in ("gate", "up")}
    return shapes | {f"{path}.down_proj.weight": (s.hidden, width)}


def _numbered(prefix: str, layers: list[Shapes], first: int = 0) -> Shapes:
    return {f"{prefix}.{i}.{name}": shape for i, layer in enumerate(layers, first) for name, shape in layer.items()}
