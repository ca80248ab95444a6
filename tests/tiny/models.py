"""The kinds of tiny models: their sizes, configurations and the tensors they have."""

from dataclasses import dataclass
from typing import Any, Literal

from tests.tiny.tokenizer import EOS

Kind = Literal["qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next"]
Shapes = dict[str, tuple[int, ...]]

KINDS: tuple[Kind, ...] = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")
ARCHITECTURES = {
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_text": "Qwen3_5ForCausalLM",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "qwen3_5_moe_text": "Qwen3_5MoeForCausalLM",
    "qwen3_next": "Qwen3NextForCausalLM",
}
_QWEN3_NEXT_KEYS: dict[str, Any] = {
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.25,
    "rope_scaling": None,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "norm_topk_prob": True,
}
_QWEN3_5_KEYS: dict[str, Any] = {
    "rope_parameters": {
        "rope_type": "default",
        "rope_theta": 10000.0,
        "partial_rotary_factor": 0.25,
        "mrope_section": [2, 1, 1],
        "mrope_interleaved": True,
    },
    "mtp_num_hidden_layers": 1,
    "mtp_use_dedicated_embeddings": False,
}


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a tiny model; by default every matrix can be quantised in groups of 64."""

    vocab: int = 288
    hidden: int = 64
    layers: int = 4
    interval: int = 4
    """Every fourth layer attends, as in releases; the others are recurrent."""
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 128
    key_heads: int = 2
    value_heads: int = 4
    key_dim: int = 32
    value_dim: int = 32
    num_experts: int = 4
    top_k: int = 2
    moe_mlp: int = 64
    tied: bool = False
    positions: int = 4096


def is_moe(kind: Kind) -> bool:
    """Whether the kind's MLPs are mixtures of experts."""
    return "moe" in kind or kind == "qwen3_next"


def config(kind: Kind, sizes: Sizes, dtype: str = "float32", eos: int = EOS) -> dict[str, Any]:
    """A config.json that transformers and mlx-lm both read, shaped as the kind's releases shape theirs."""
    text: dict[str, Any] = {
        "vocab_size": sizes.vocab,
        "hidden_size": sizes.hidden,
        "num_hidden_layers": sizes.layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "max_position_embeddings": sizes.positions,
        "attention_bias": False,
        "tie_word_embeddings": sizes.tied,
        "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": sizes.key_dim,
        "linear_value_head_dim": sizes.value_dim,
        "linear_num_key_heads": sizes.key_heads,
        "linear_num_value_heads": sizes.value_heads,
        "full_attention_interval": sizes.interval,
        "eos_token_id": eos,
    }
    if is_moe(kind):
        text |= {
            "num_experts": sizes.num_experts,
            "num_experts_per_tok": sizes.top_k,
            "moe_intermediate_size": sizes.moe_mlp,
            "shared_expert_intermediate_size": sizes.moe_mlp,
        }
    if not is_moe(kind) or kind == "qwen3_next":
        text["intermediate_size"] = sizes.mlp
    outer = {"architectures": [ARCHITECTURES[kind]], "model_type": kind, "torch_dtype": dtype}
    if kind == "qwen3_next":
        return outer | text | _QWEN3_NEXT_KEYS
    text |= _QWEN3_5_KEYS
    if kind.endswith("_text"):
        return outer | text
    text["model_type"] = f"{kind}_text"
    return outer | {"text_config": text, "tie_word_embeddings": sizes.tied, "eos_token_id": eos}


def trunk_shapes(kind: Kind, s: Sizes) -> Shapes:
    """The trunk's tensors without the prefix that the kind puts before them; experts fused."""
    shapes: Shapes = {"embed_tokens.weight": (s.vocab, s.hidden), "norm.weight": (s.hidden,)}
    if not s.tied:
        shapes["lm_head.weight"] = (s.vocab, s.hidden)
    for i in range(s.layers):
        mixer = _attention_shapes(s) if (i + 1) % s.interval == 0 else _delta_shapes(kind, s)
        shapes |= {f"layers.{i}.{name}": shape for name, shape in (mixer | _block_shapes(kind, s)).items()}
    return shapes


def head_shapes(kind: Kind, s: Sizes) -> Shapes:
    """The head's tensors; experts fused."""
    block = _attention_shapes(s) | _block_shapes(kind, s)
    norms = ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return (
        {"mtp.fc.weight": (s.hidden, 2 * s.hidden)}
        | {f"mtp.{name}.weight": (s.hidden,) for name in norms}
        | {f"mtp.layers.0.{name}": shape for name, shape in block.items()}
    )


def _attention_shapes(s: Sizes) -> Shapes:
    """Gated full attention: each head's rows of q_proj are its query, then its gate."""
    return {
        "self_attn.q_proj.weight": (2 * s.heads * s.head_dim, s.hidden),
        "self_attn.k_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.v_proj.weight": (s.kv_heads * s.head_dim, s.hidden),
        "self_attn.o_proj.weight": (s.hidden, s.heads * s.head_dim),
        "self_attn.q_norm.weight": (s.head_dim,),
        "self_attn.k_norm.weight": (s.head_dim,),
    }


def _delta_shapes(kind: Kind, s: Sizes) -> Shapes:
    """Gated delta net; Qwen3-Next stores its four and two input projections interleaved by key head."""
    keys, values = s.key_heads * s.key_dim, s.value_heads * s.value_dim
    if kind == "qwen3_next":
        rows = {"in_proj_qkvz": 2 * keys + 2 * values, "in_proj_ba": 2 * s.value_heads}
    else:
        heads = s.value_heads
        rows = {"in_proj_qkv": 2 * keys + values, "in_proj_z": values, "in_proj_a": heads, "in_proj_b": heads}
    return {f"linear_attn.{name}.weight": (n, s.hidden) for name, n in rows.items()} | {
        "linear_attn.conv1d.weight": (2 * keys + values, 1, 4),
        "linear_attn.A_log": (s.value_heads,),
        "linear_attn.dt_bias": (s.value_heads,),
        "linear_attn.norm.weight": (s.value_dim,),
        "linear_attn.out_proj.weight": (s.hidden, values),
    }


def _block_shapes(kind: Kind, s: Sizes) -> Shapes:
    shapes: Shapes = {f"{n}_layernorm.weight": (s.hidden,) for n in ("input", "post_attention")}
    mlp, width = ("mlp.shared_expert", s.moe_mlp) if is_moe(kind) else ("mlp", s.mlp)
    shapes |= {f"{mlp}.{name}_proj.weight": (width, s.hidden) for name in ("gate", "up")}
    shapes[f"{mlp}.down_proj.weight"] = (s.hidden, width)
    if is_moe(kind):
        shapes["mlp.gate.weight"] = (s.num_experts, s.hidden)
        shapes["mlp.shared_expert_gate.weight"] = (1, s.hidden)
        shapes["mlp.experts.gate_up_proj"] = (s.num_experts, 2 * s.moe_mlp, s.hidden)
        shapes["mlp.experts.down_proj"] = (s.num_experts, s.hidden, s.moe_mlp)
    return shapes
