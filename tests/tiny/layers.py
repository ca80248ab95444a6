"""Tiny random checkpoints, in raw Hugging Face layout, of trunks whose head is one layer: an entry of LAYER_KINDS each.

The trunk's tensors are those that mlx-lm makes of the config, its experts one by one; the head's are listed here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes

from tests.tiny.files import save_checkpoint
from tests.tiny.hybrid import HybridKind, hybrid_checkpoint, hybrid_head, hybrid_sizes
from tests.tiny.models import Shapes
from tests.tiny.raw import Arrays, random_values
from tests.tiny.tokenizer import EOS, tokenizer

Config = dict[str, Any]

WINDOW = 8
HEADS_OF = {"q": "attention", "k": "key_value", "v": "key_value"}
LAYER_SIZES: Config = {
    "vocab_size": 24,  # few enough tokens that a random head is right now and then
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_nextn_predict_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "max_position_embeddings": 4096,
    "rope_theta": 10000.0,
    "tie_word_embeddings": False,
    "eos_token_id": EOS,
}
"""What most kinds have in config.json; every matrix can be quantised in groups of 32."""


@dataclass(frozen=True)
class LayerKind:
    """A model type with a head of one layer.

    Args:
        head: returns the shapes of its tensors, by their names in the release, for a config.json.
        config: what config.json has besides LAYER_SIZES.
        stored: parts of names that mlx-lm gives to the trunk's tensors, and the release's names.
        dropped: tensors of the trunk that mlx-lm leaves out, here of zeros.
        seed: with which greedy text does not collapse.
        write: writes its checkpoints, where config.json and mlx-lm's names do not say enough.
    """

    head: Callable[[Config], Shapes]
    config: Config = field(default_factory=dict)
    stored: Mapping[str, str] = field(default_factory=dict)
    dropped: Shapes = field(default_factory=dict)
    seed: int = 0
    write: Callable[..., Path] | None = None


def layer_checkpoint(
    folder: Path, kind: str, *, dtype: str = "float32", seed: int | None = None, head: bool = True, **config: Any
) -> Path:
    """Write a random checkpoint with a tokenizer; returns the folder.

    Args:
        seed: None: the kind's.
        config: replaces values of config.json.
    """
    family = LAYER_KINDS[kind]
    seed = family.seed if seed is None else seed
    if family.write:
        return family.write(folder, dtype=dtype, seed=seed, head=head, **config)
    settings = {**LAYER_SIZES, **family.config, **config, "model_type": kind, "torch_dtype": dtype}
    arrays = {name: random_values(name, shape, seed, norms=1.0) for name, shape in trunk_shapes(settings).items()}
    arrays = {_replaced(name, family.stored): array for name, array in _one_by_one(arrays).items()}
    arrays |= {name: np.zeros(shape, np.float32) for name, shape in family.dropped.items()}
    if head:
        arrays |= {name: random_values(name, shape, seed, norms=1.0) for name, shape in family.head(settings).items()}
    save_checkpoint(folder, arrays, settings, dtype, kept=("e_score_correction_bias",))
    tokenizer(folder, settings["vocab_size"])
    return folder


def trunk_shapes(config: Config) -> Shapes:
    """Return the trunk's tensors by mlx-lm's names."""
    model, args = _get_classes(config)
    module: nn.Module = model(args.from_dict(config))
    flat: Any = tree_flatten(module.parameters())
    return {name: array.shape for name, array in flat}


def block(c: Config, mlp: Shapes | None = None, *, bias: bool = False) -> Shapes:
    """Return the shapes of a decoder layer with grouped attention; its MLP is dense by default.

    Args:
        bias: queries, keys and values have one.
    """
    rows = {name: c[f"num_{kind}_heads"] * c["head_dim"] for name, kind in HEADS_OF.items()}
    shapes: Shapes = {f"self_attn.{name}_proj.weight": (count, c["hidden_size"]) for name, count in rows.items()}
    shapes |= {f"self_attn.{name}_proj.bias": (count,) for name, count in rows.items() if bias}
    shapes |= {"self_attn.o_proj.weight": (c["hidden_size"], rows["q"])}
    return shapes | norms(c, "input_layernorm", "post_attention_layernorm") | (mlp or under("mlp.", dense(c)))


def dense(c: Config, width: str = "intermediate_size") -> Shapes:
    """Return the shapes of a gated MLP."""
    shapes: Shapes = {f"{name}_proj.weight": (c[width], c["hidden_size"]) for name in ("gate", "up")}
    return shapes | {"down_proj.weight": (c["hidden_size"], c[width])}


def norms(c: Config, *names: str) -> Shapes:
    """Return the shapes of norms of the hidden size."""
    return {f"{name}.weight": (c["hidden_size"],) for name in names}


def projection(c: Config, name: str) -> Shapes:
    """Return the shape of the matrix that takes embedding and hidden state."""
    return {f"{name}.weight": (c["hidden_size"], 2 * c["hidden_size"])}


def under(prefix: str, shapes: Shapes) -> Shapes:
    """Return shapes by their names with a prefix."""
    return {prefix + name: shape for name, shape in shapes.items()}


def _one_by_one(arrays: Arrays) -> Arrays:
    """Return the arrays with stacked experts apart, as releases have them."""
    out: Arrays = {}
    for name, array in arrays.items():
        base, found, rest = name.partition(".switch_mlp.")
        experts: list[np.ndarray] = list(array) if found else []
        out |= {f"{base}.experts.{e}.{rest}": own for e, own in enumerate(experts)} if found else {name: array}
    return out


def _replaced(name: str, parts: Mapping[str, str]) -> str:
    for part, stored in parts.items():
        name = name.replace(part, stored)
    return name


def _mimo(c: Config) -> Shapes:
    own = norms(c, "token_layernorm", "hidden_layernorm", "final_layernorm") | projection(c, "input_proj")
    return under("model.mtp_layers.0.", own | block(c, bias=True))


def _fc_head(c: Config, mlp: Shapes) -> Shapes:
    """Names that follow Qwen's."""
    heads = dict.fromkeys(("self_attn.q_norm.weight", "self_attn.k_norm.weight"), (c["head_dim"],))
    own = projection(c, "fc") | norms(c, "pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")
    return under("mtp.", own | under("layers.0.", block(c, mlp) | heads))


def _exaone(c: Config) -> Shapes:
    return _fc_head(c, under("mlp.", dense(c)))


def _mellum(c: Config) -> Shapes:
    experts = [under(f"mlp.experts.{e}.", dense(c, "moe_intermediate_size")) for e in range(c["num_experts"])]
    gate: Shapes = {"mlp.gate.weight": (c["num_experts"], c["hidden_size"])}
    return _fc_head(c, {name: shape for part in (gate, *experts) for name, shape in part.items()})


def _ernie(c: Config) -> Shapes:
    matrices = projection(c, "linear_proj.0") | under("block.0.", block(c))
    biases = {name.replace("weight", "bias"): shape[:1] for name, shape in matrices.items() if len(shape) == 2}
    own = norms(c, "emb_norm.0", "hidden_norm.0") | matrices | (biases if c["use_bias"] else {})
    return under("model.mtp_", own)


def _ling(c: Config) -> Shapes:
    """Layer N of N, with experts."""
    rows = (c["num_attention_heads"] + 2 * c["num_key_value_heads"]) * c["head_dim"]
    own = norms(c, "enorm", "hnorm", "final_layernorm", "input_layernorm", "post_attention_layernorm")
    own |= projection(c, "eh_proj") | {"attention.query_key_value.weight": (rows, c["hidden_size"])}
    own |= {"attention.dense.weight": (c["hidden_size"], c["num_attention_heads"] * c["head_dim"])}
    own |= {f"attention.{name}_layernorm.weight": (c["head_dim"],) for name in ("query", "key")}
    own |= {"mlp.gate.weight": (c["num_experts"], c["hidden_size"]), "mlp.gate.expert_bias": (c["num_experts"],)}
    for path in ("shared_experts", *(f"experts.{e}" for e in range(c["num_experts"]))):
        own |= under(f"mlp.{path}.", dense(c, "moe_intermediate_size"))
    return under(f"model.layers.{c['num_hidden_layers']}.", own)


def _longcat(c: Config) -> Shapes:
    """One latent attention and a dense MLP, and an embedding of its own."""
    rope, heads = c["qk_rope_head_dim"], c["num_attention_heads"]
    attention: Shapes = {
        "q_a_proj.weight": (c["q_lora_rank"], c["hidden_size"]),
        "q_a_layernorm.weight": (c["q_lora_rank"],),
        "q_b_proj.weight": (heads * (c["qk_nope_head_dim"] + rope), c["q_lora_rank"]),
        "kv_a_proj_with_mqa.weight": (c["kv_lora_rank"] + rope, c["hidden_size"]),
        "kv_a_layernorm.weight": (c["kv_lora_rank"],),
        "kv_b_proj.weight": (heads * (c["qk_nope_head_dim"] + c["v_head_dim"]), c["kv_lora_rank"]),
        "o_proj.weight": (c["hidden_size"], heads * c["v_head_dim"]),
    }
    own = norms(c, "enorm.m", "hnorm.m", "input_layernorm", "post_attention_layernorm") | projection(c, "eh_proj")
    own |= under("self_attn.", attention) | under("transformer_layer.mlp.", dense(c, "ffn_hidden_size"))
    outside: Shapes = {"embed_tokens.weight": (c["vocab_size"], c["hidden_size"])} | norms(c, "norm")
    return under("model.mtp.", outside | under("layers.0.", own))


def _hybrid(kind: HybridKind, seed: int = 0, **sizes: Any) -> LayerKind:
    """A trunk with states, of `hybrid_checkpoint`."""
    small = {"vocab": LAYER_SIZES["vocab_size"]} | sizes
    write = partial(hybrid_checkpoint, kind=kind, **small)
    return LayerKind(lambda _: hybrid_head(kind, hybrid_sizes(kind, **small)), seed=seed, write=write)


ROPE = {"rope_type": "default", "rope_theta": 10000.0}
EXPERTS: Config = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": True}
WINDOWS: Config = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
LING: Config = EXPERTS | {
    "num_shared_experts": 1, "first_k_dense_replace": 1, "use_qk_norm": True, "partial_rotary_factor": 0.5,
    "moe_router_enable_expert_bias": True, "routed_scaling_factor": 2.5, "score_function": "sigmoid",
    "n_group": 1, "topk_group": 1,
}  # fmt: skip
LONGCAT: Config = {
    "attention_method": "MLA", "zero_expert_type": "identity", "ffn_hidden_size": 96, "moe_topk": 2,
    "expert_ffn_hidden_size": 32, "n_routed_experts": 4, "zero_expert_num": 2, "num_layers": 2, "kv_lora_rank": 32,
    "q_lora_rank": 32, "qk_rope_head_dim": 16, "qk_nope_head_dim": 32, "v_head_dim": 32,
    "routed_scaling_factor": 1.5, "mla_scale_q_lora": True, "mla_scale_kv_lora": True, "attention_bias": False,
}  # fmt: skip
NGRAM: Config = LONGCAT | {"ngram_vocab_size_ratio": 2, "emb_neighbor_num": 3, "emb_split_num": 2}
LAYER_KINDS = {
    "mimo": LayerKind(_mimo),
    "exaone_moe": LayerKind(
        _exaone,
        EXPERTS | WINDOWS | {
            "num_shared_experts": 1, "is_moe_layer": [False, True], "mlp_layer_types": ["dense", "sparse"],
            "mtp_layer_types": ["full_attention"], "mtp_sliding_windows": [0], "rope_parameters": ROPE,
        },
        stored={"mlp.gate.e_score_correction_bias": "mlp.e_score_correction_bias"},
    ),
    "mellum": LayerKind(
        _mellum, EXPERTS | WINDOWS | {"rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), ROPE)}
    ),
    "ernie4_5_moe": LayerKind(
        _ernie,
        {
            "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 32, "moe_num_shared_experts": 1,
            "moe_layer_start_index": 1, "use_bias": False,
        },
        dropped={"model.layers.1.mlp.moe_statics.e_score_correction_bias": (1, 4)},
    ),
    "bailing_moe": LayerKind(_ling, LING, {".gate.gate_proj.": ".gate."}, seed=7),
    "longcat_flash": LayerKind(_longcat, LONGCAT, seed=15),
    "longcat_flash_ngram": LayerKind(_longcat, NGRAM, {"ngram_embeddings.word_embeddings.": "embed_tokens."}),
    "nemotron_h": _hybrid("nemotron_h", latent=32),
    "bailing_hybrid": _hybrid("bailing_hybrid"),
    "bailing_moe_v3": _hybrid("bailing_moe_v3"),
    "kimi_linear": _hybrid("kimi_linear"),
    "kimi_k3": _hybrid("kimi_k3"),
}  # fmt: skip
"""By model type."""
