"""Tiny random checkpoints of trunks with states (Mamba-2, lightning, KDA) in raw layout, with their heads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
import numpy as np

from tests.tiny.files import save_checkpoint
from tests.tiny.models import Shapes
from tests.tiny.raw import Arrays, random_values
from tests.tiny.tokenizer import EOS, tokenizer

HybridKind = Literal["nemotron_h", "bailing_hybrid", "bailing_moe_v3", "kimi_linear", "kimi_k3"]
HYBRID_KINDS: tuple[HybridKind, ...] = ("nemotron_h", "bailing_hybrid", "bailing_moe_v3", "kimi_linear", "kimi_k3")
ARCHITECTURES = {
    "nemotron_h": "NemotronHForCausalLM",
    "bailing_hybrid": "BailingMoeV2_5ForCausalLM",
    "bailing_moe_v3": "BailingMoeV3ForCausalLM",
    "kimi_linear": "KimiLinearForCausalLM",
    "kimi_k3": "KimiK3ForConditionalGeneration",
}
KEPT = ("expert_bias", "e_score_correction_bias", "A_log", "dt_bias", "weight_packed", "weight_scale")
"""Ends of the names of tensors that do not take the checkpoint's dtype."""


@dataclass(frozen=True)
class HybridSizes:
    """Dimensions of a tiny model; every matrix can be quantised in groups of 32.

    `pattern`: a letter a layer, as Nemotron's configs have it: a layer with a state (M), one that attends (*), and, in
    Nemotron alone, experts (E) and a dense MLP (-). The others' first layer is dense, and the next ones have experts.
    """

    vocab: int = 288
    hidden: int = 64
    pattern: str = ""
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 32
    mlp: int = 128
    experts: int = 4
    top_k: int = 2
    moe_mlp: int = 64
    latent: int = 0
    q_lora: int = 64
    kv_lora: int = 64
    nope: int = 32
    rope: int = 32
    value: int = 32
    state: int = 32
    groups: int = 2


def hybrid_checkpoint(
    folder: Path,
    kind: HybridKind,
    *,
    dtype: str = "float32",
    seed: int = 0,
    head: bool = True,
    packed: bool = False,
    shards: int = 1,
    **sizes: Any,
) -> Path:
    """Write a random checkpoint with a tokenizer; returns the folder.

    Args:
        packed: Kimi K3's experts are in MXFP4, as its release has them.
    """
    s = hybrid_sizes(kind, **sizes)
    shapes = _trunk(kind, s) | (hybrid_head(kind, s) if head else {})
    arrays = {name: random_values(name, shape, seed, norms=1.0) for name, shape in shapes.items()}
    config = hybrid_config(kind, s, dtype)
    if packed:
        arrays = _packed(arrays)
        scheme = {"num_bits": 4, "type": "float", "group_size": 32, "strategy": "group", "symmetric": True}
        groups = {"group_0": {"targets": ["Linear"], "weights": scheme, "format": "mxfp4-pack-quantized"}}
        method = {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized", "config_groups": groups}
        config["text_config"]["quantization_config"] = method
    save_checkpoint(folder, arrays, config, dtype, kept=KEPT, shards=shards)
    tokenizer(folder, s.vocab)
    return folder


def hybrid_sizes(kind: HybridKind, **sizes: Any) -> HybridSizes:
    """The sizes of a kind: few layers, and one of each sort."""
    pattern = {"nemotron_h": "M*E", "kimi_k3": "M*M"}.get(kind, "M*")
    return HybridSizes(**({"pattern": pattern} | sizes))


def hybrid_config(kind: HybridKind, s: HybridSizes, dtype: str = "float32") -> dict[str, Any]:
    """A config.json that mlx-lm, and transformers where it has the kind, read."""
    layers = len(s.pattern)
    config: dict[str, Any] = {
        "architectures": [ARCHITECTURES[kind]],
        "model_type": kind,
        "torch_dtype": dtype,
        "vocab_size": s.vocab,
        "hidden_size": s.hidden,
        "intermediate_size": s.mlp,
        "moe_intermediate_size": s.moe_mlp,
        "num_hidden_layers": layers,
        "num_nextn_predict_layers": 1,
        "num_attention_heads": s.heads,
        "num_key_value_heads": s.kv_heads if kind == "nemotron_h" else s.heads,
        "head_dim": s.head_dim,
        "max_position_embeddings": 4096,
        "routed_scaling_factor": 1.5,
        "tie_word_embeddings": False,
        "eos_token_id": EOS,
        "pad_token_id": 0,
    }
    if kind == "nemotron_h":
        return config | {
            "hybrid_override_pattern": s.pattern, "mtp_hybrid_override_pattern": "*E", "attention_bias": False,
            "mamba_num_heads": s.heads, "mamba_head_dim": s.head_dim, "mamba_proj_bias": False,
            "ssm_state_size": s.state, "conv_kernel": 4, "n_groups": s.groups, "mlp_bias": False, "use_bias": False,
            "use_conv_bias": True, "layer_norm_epsilon": 1e-5, "n_group": 1, "topk_group": 1,
            "n_routed_experts": s.experts, "n_shared_experts": 1, "num_experts_per_tok": s.top_k,
            "moe_shared_expert_intermediate_size": s.moe_mlp, "moe_latent_size": s.latent or None,
            "norm_topk_prob": True, "chunk_size": 16,
        }  # fmt: skip
    config |= {
        "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "rope_scaling": None, "first_k_dense_replace": 1,
        "num_experts": s.experts, "num_shared_experts": 1, "q_lora_rank": s.q_lora or None,
        "kv_lora_rank": s.kv_lora, "qk_nope_head_dim": s.nope, "qk_rope_head_dim": s.rope, "v_head_dim": s.value,
    }  # fmt: skip
    if kind in ("bailing_hybrid", "bailing_moe_v3"):
        assert s.pattern == ("M*" * layers)[:layers]
        return config | {
            "model_type": "bailing_hybrid", "num_experts_per_tok": s.top_k, "layer_group_size": 2, "n_group": 2,
            "topk_group": 1, "group_norm_size": s.groups, "moe_shared_expert_intermediate_size": s.moe_mlp,
            "short_conv_kernel_size": 4, "kda_lower_bound": -5.0, "kda_safe_gate": True, "no_kda_lora": True,
        }  # fmt: skip
    linear = {
        "kda_layers": [i + 1 for i, letter in enumerate(s.pattern) if letter == "M"],
        "full_attn_layers": [i + 1 for i, letter in enumerate(s.pattern) if letter == "*"],
        "num_heads": s.heads, "head_dim": s.head_dim, "short_conv_kernel_size": 4,
    }  # fmt: skip
    config |= {
        "num_experts_per_token": s.top_k, "model_max_length": 4096, "moe_layer_freq": 1, "mla_use_nope": True,
        "num_expert_group": 1, "topk_group": 1, "moe_renormalize": True, "linear_attn_config": linear,
    }  # fmt: skip
    if kind == "kimi_linear":
        return config | {"q_lora_rank": None}
    linear |= {"gate_lower_bound": -5.0, "use_full_rank_gate": True}
    text = config | {
        "model_type": "kimi_linear", "hidden_act": "situ", "activation_situ_beta": 4.0,
        "activation_situ_linear_beta": 8.0, "attn_res_block_size": 2, "mla_use_output_gate": True,
        "routed_expert_hidden_size": s.latent or None, "latent_moe_use_norm": bool(s.latent),
    }  # fmt: skip
    return {key: config[key] for key in ("architectures", "model_type", "torch_dtype", "eos_token_id")} | {
        "text_config": text
    }


def _trunk(kind: HybridKind, s: HybridSizes) -> Shapes:
    base = {"nemotron_h": "backbone.", "kimi_k3": "language_model.model."}.get(kind, "model.")
    embedding = {"nemotron_h": "embeddings", "bailing_hybrid": "word_embeddings", "bailing_moe_v3": "word_embeddings"}
    shapes: Shapes = {
        f"{base}{embedding.get(kind, 'embed_tokens')}.weight": (s.vocab, s.hidden),
        f"{base}{'norm_f' if kind == 'nemotron_h' else 'norm'}.weight": (s.hidden,),
        f"{'language_model.' if kind == 'kimi_k3' else ''}lm_head.weight": (s.vocab, s.hidden),
    }
    if kind == "kimi_k3":
        shapes |= {f"{base}output_attn_res_{name}": shape for name, shape in _residual(s).items()}
    for i, letter in enumerate(s.pattern):
        layer = _nemotron_block(letter, s) if kind == "nemotron_h" else _layer(kind, s, letter, moe=i > 0)
        shapes |= {f"{base}layers.{i}.{name}": shape for name, shape in layer.items()}
    return shapes


def hybrid_head(kind: HybridKind, s: HybridSizes) -> Shapes:
    """The head's tensors by their names in the release."""
    pair: Shapes = {
        "enorm.weight": (s.hidden,),
        "hnorm.weight": (s.hidden,),
        "eh_proj.weight": (s.hidden, 2 * s.hidden),
    }
    if kind == "nemotron_h":
        blocks: list[Shapes] = [
            pair | _nemotron_block("*", s),
            _nemotron_block("E", s) | {"final_layernorm.weight": (s.hidden,)},
        ]
        return {f"mtp.layers.{i}.{name}": shape for i, block in enumerate(blocks) for name, shape in block.items()}
    layer = pair | _layer(kind, s, "*", moe=True)
    last = "shared_head.norm" if kind.startswith("kimi") else "final_layernorm"
    layer[f"{last}.weight"] = (s.hidden,)
    if kind == "kimi_k3":
        layer |= {f"{name}.weight": (s.vocab, s.hidden) for name in ("embed_tokens", "shared_head.head")}
    prefix = "language_model.model." if kind == "kimi_k3" else "model."
    return {f"{prefix}layers.{len(s.pattern)}.{name}": shape for name, shape in layer.items()}


def _nemotron_block(letter: str, s: HybridSizes) -> Shapes:
    width, keys, inner = s.heads * s.head_dim, s.kv_heads * s.head_dim, s.latent or s.hidden
    convolved = width + 2 * s.groups * s.state
    mixer: Shapes = {
        "M": {
            "in_proj.weight": (width + convolved + s.heads, s.hidden),
            "conv1d.weight": (convolved, 1, 4), "conv1d.bias": (convolved,),
            "A_log": (s.heads,), "D": (s.heads,), "dt_bias": (s.heads,), "norm.weight": (width,),
            "out_proj.weight": (s.hidden, width),
        },
        "*": {
            "q_proj.weight": (width, s.hidden), "k_proj.weight": (keys, s.hidden), "v_proj.weight": (keys, s.hidden),
            "o_proj.weight": (s.hidden, width),
        },
        "-": {"up_proj.weight": (s.mlp, s.hidden), "down_proj.weight": (s.hidden, s.mlp)},
        "E": {
            "gate.weight": (s.experts, s.hidden), "gate.e_score_correction_bias": (s.experts,),
            "shared_experts.up_proj.weight": (s.moe_mlp, s.hidden),
            "shared_experts.down_proj.weight": (s.hidden, s.moe_mlp),
        },
    }[letter]  # fmt: skip
    if letter == "E":
        for e in range(s.experts):
            mixer[f"experts.{e}.up_proj.weight"] = (s.moe_mlp, inner)
            mixer[f"experts.{e}.down_proj.weight"] = (inner, s.moe_mlp)
        if s.latent:
            mixer |= {"fc1_latent_proj.weight": (s.latent, s.hidden), "fc2_latent_proj.weight": (s.hidden, s.latent)}
    return {"norm.weight": (s.hidden,)} | {f"mixer.{name}": shape for name, shape in mixer.items()}


def _layer(kind: HybridKind, s: HybridSizes, letter: str, *, moe: bool) -> Shapes:
    shapes: Shapes = {f"{n}_layernorm.weight": (s.hidden,) for n in ("input", "post_attention")}
    with_state = _lightning(s) if kind == "bailing_hybrid" else _delta(kind, s)
    mixer = _latent(kind, s) if letter == "*" else with_state
    place = "attention" if kind.startswith("bailing") else "self_attn"
    shapes |= {f"{place}.{name}": shape for name, shape in mixer.items()}
    if kind == "kimi_k3":
        for part in ("self_attention_res", "mlp_res"):
            shapes |= {f"{part}_{name}": shape for name, shape in _residual(s).items()}
    return shapes | (_experts(kind, s) if moe else _mlp("mlp", s.mlp, s.hidden))


def _residual(s: HybridSizes) -> Shapes:
    return {"proj.weight": (1, s.hidden), "norm.weight": (s.hidden,)}


def _mlp(
    path: str, width: int, hidden: int, names: tuple[str, str, str] = ("gate_proj", "up_proj", "down_proj")
) -> Shapes:
    gate, up, down = (f"{path}.{name}.weight" for name in names)
    return {gate: (width, hidden), up: (width, hidden), down: (hidden, width)}


def _experts(kind: HybridKind, s: HybridSizes) -> Shapes:
    kimi = kind.startswith("kimi")
    place, bias = ("block_sparse_moe", "e_score_correction_bias") if kimi else ("mlp", "expert_bias")
    names = ("w1", "w3", "w2") if kimi else ("gate_proj", "up_proj", "down_proj")
    shapes: Shapes = {f"{place}.gate.weight": (s.experts, s.hidden), f"{place}.gate.{bias}": (s.experts,)}
    shapes |= _mlp(f"{place}.shared_experts", s.moe_mlp, s.hidden)
    for e in range(s.experts):
        shapes |= _mlp(f"{place}.experts.{e}", s.moe_mlp, s.latent or s.hidden, names)
    if s.latent:
        shapes |= {
            f"{place}.routed_expert_down_proj.weight": (s.latent, s.hidden),
            f"{place}.routed_expert_up_proj.weight": (s.hidden, s.latent),
            f"{place}.routed_expert_norm.weight": (s.latent,),
        }
    return shapes


def _latent(kind: HybridKind, s: HybridSizes) -> Shapes:
    queries = s.heads * (s.nope + s.rope)
    shapes: Shapes = {
        "kv_a_proj_with_mqa.weight": (s.kv_lora + s.rope, s.hidden),
        "kv_a_layernorm.weight": (s.kv_lora,),
        "kv_b_proj.weight": (s.heads * (s.nope + s.value), s.kv_lora),
        f"{'dense' if kind.startswith('bailing') else 'o_proj'}.weight": (s.hidden, s.heads * s.value),
    }
    if kind == "kimi_linear" or not s.q_lora:
        shapes["q_proj.weight"] = (queries, s.hidden)
    else:
        shapes |= {
            "q_a_proj.weight": (s.q_lora, s.hidden),
            "q_a_layernorm.weight": (s.q_lora,),
            "q_b_proj.weight": (queries, s.q_lora),
        }
    gates = {"bailing_moe_v3": s.heads, "kimi_k3": s.heads * s.value}
    return shapes | ({"g_proj.weight": (gates[kind], s.hidden)} if kind in gates else {})


def _lightning(s: HybridSizes) -> Shapes:
    width = s.heads * s.head_dim
    return {
        "query_key_value.weight": (3 * width, s.hidden),
        "query_layernorm.weight": (s.head_dim,),
        "key_layernorm.weight": (s.head_dim,),
        "g_proj.weight": (width, s.hidden),
        "g_norm.weight": (width,),
        "dense.weight": (s.hidden, width),
    }


def _delta(kind: HybridKind, s: HybridSizes) -> Shapes:
    """Kimi delta attention; only `bailing_moe_v3` and K3 have gates of full rank."""
    width = s.heads * s.head_dim
    low_rank = {"f": kind != "bailing_moe_v3", "g": kind == "kimi_linear"}
    shapes: Shapes = {f"{name}_proj.weight": (width, s.hidden) for name in "qkv"}
    shapes |= {f"{name}_conv1d.weight": (width, 1, 4) for name in "qkv"}
    for name, low in low_rank.items():
        parts: Shapes = {f"{name}_a_proj.weight": (s.head_dim, s.hidden), f"{name}_b_proj.weight": (width, s.head_dim)}
        shapes |= parts if low else {f"{name}_proj.weight": (width, s.hidden)}
    return shapes | {
        "b_proj.weight": (s.heads, s.hidden),
        "A_log": (s.heads,) if kind != "kimi_linear" else (1, 1, s.heads, 1),
        "dt_bias": (width,),
        "o_norm.weight": (s.head_dim,),
        "o_proj.weight": (s.hidden, width),
    }


def _packed(arrays: Arrays) -> Arrays:
    """Experts in MXFP4, as compressed-tensors stores them."""
    out: Arrays = {}
    for name, values in arrays.items():
        if ".experts." not in name:
            out[name] = values
            continue
        weight, scales = mx.quantize(mx.array(values), group_size=32, bits=4, mode="mxfp4")
        base = name.removesuffix(".weight")
        out[f"{base}.weight_packed"] = np.array(weight).view(np.uint8)
        out[f"{base}.weight_scale"] = np.array(scales)
    return out
