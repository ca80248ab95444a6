"""Tiny random Gemma 4 checkpoints in raw Hugging Face layout, and their assistants."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models import gemma4_text

from tests.tiny.files import save_checkpoint
from tests.tiny.models import Shapes
from tests.tiny.raw import Arrays, random_values
from tests.tiny.tokenizer import EOS, tokenizer

GemmaKind = Literal["gemma4", "gemma4_text", "gemma4_unified"]
Style = Literal["E2B", "31B", "26B-A4B"]


@dataclass(frozen=True)
class GemmaSizes:
    """Dimensions of a tiny model; every matrix can be quantised in groups of 32."""

    vocab: int = 288
    hidden: int = 64
    layers: int = 6
    heads: int = 4
    head_dim: int = 32
    global_head_dim: int = 64
    mlp: int = 64
    window: int = 16
    experts: int = 4
    moe_mlp: int = 32
    drafter_hidden: int = 32
    clusters: int = 8
    looked_into: int = 2


def gemma_checkpoint(
    folder: Path,
    kind: GemmaKind = "gemma4",
    *,
    style: Style = "E2B",
    dtype: str = "float32",
    seed: int = 0,
    **sizes: Any,
) -> Path:
    """Write a random checkpoint with a tokenizer; returns the folder.

    Args:
        kind: the config's `model_type`; all but `gemma4_text` are wrappers around a language model.
        style: "E2B" has embeddings for every layer, and layers that share keys and values; "31B" has full layers
            whose values are their keys; "26B-A4B" has experts as well.
    """
    s = GemmaSizes(**sizes)
    text = _text_config(style, s)
    model = gemma4_text.Model(gemma4_text.ModelArgs.from_dict(text))
    shapes: Shapes = {name: value.shape for name, value in tree_flatten(model.parameters())}
    prefix = "model." if kind == "gemma4_text" else "model.language_model."
    arrays = {name.replace("model.", prefix, 1): a for name, a in _fused(_random(shapes, seed)).items()}
    outer = {"architectures": ["Gemma4ForConditionalGeneration"], "model_type": kind, "torch_dtype": dtype}
    tied = {"tie_word_embeddings": True, "eos_token_id": EOS}
    config = text | outer if kind == "gemma4_text" else outer | {"text_config": text, "vocab_size": s.vocab}
    save_checkpoint(folder, arrays, config | tied, dtype)
    tokenizer(folder, s.vocab)
    return folder


def assistant(
    folder: Path,
    *,
    style: Style = "E2B",
    unified: bool = False,
    dtype: str = "float32",
    seed: int = 1,
    lm_head: bool = False,
    **sizes: Any,
) -> Path:
    """Write a random assistant for `gemma_checkpoint` of the same style and sizes; returns the folder.

    E2B's looks into clusters of its vocabulary. `lm_head`: the copy of the embeddings is stored too.
    """
    s = GemmaSizes(**sizes)
    text = _text_config(style, s) | {
        "hidden_size": s.drafter_hidden,
        "num_hidden_layers": 3,
        "num_kv_shared_layers": 3,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
        "hidden_size_per_layer_input": 0,
        "vocab_size_per_layer_input": 0,
        "enable_moe_block": False,
        "use_double_wide_mlp": False,
    }
    layers = [gemma4_text.DecoderLayer(gemma4_text.ModelArgs.from_dict(text), i) for i in range(3)]
    shapes: Shapes = {
        "pre_projection.weight": (s.drafter_hidden, 2 * s.hidden),
        "post_projection.weight": (s.hidden, s.drafter_hidden),
        "model.embed_tokens.weight": (s.vocab, s.drafter_hidden),
        "model.norm.weight": (s.drafter_hidden,),
    }
    for i, layer in enumerate(layers):
        shapes |= {f"model.layers.{i}.{name}": value.shape for name, value in tree_flatten(layer.parameters())}
    ordered = style == "E2B"
    if ordered:
        shapes["masked_embedding.centroids.weight"] = (s.clusters, s.drafter_hidden)
    arrays = _random(shapes, seed)
    if lm_head:
        arrays["lm_head.weight"] = arrays["model.embed_tokens.weight"]
    if ordered:
        order = np.random.default_rng(seed).permutation(s.vocab)
        arrays["masked_embedding.token_ordering"] = order.astype(np.int64)
    config = {
        "architectures": ["Gemma4AssistantForCausalLM"],
        "model_type": "gemma4_unified_assistant" if unified else "gemma4_assistant",
        "torch_dtype": dtype,
        "backbone_hidden_size": s.hidden,
        "use_ordered_embeddings": ordered,
        "num_centroids": s.clusters,
        "centroid_intermediate_top_k": s.looked_into,
        "tie_word_embeddings": True,
        "text_config": text,
    }
    save_checkpoint(folder, arrays, config, dtype, kept=("token_ordering",))
    return folder


def _text_config(style: Style, s: GemmaSizes) -> dict[str, Any]:
    """A text config that transformers and mlx-lm both read: two sliding layers, then a full one, and so on."""
    small = style == "E2B"
    args = gemma4_text.ModelArgs(
        hidden_size=s.hidden,
        num_hidden_layers=s.layers,
        intermediate_size=s.mlp,
        num_attention_heads=s.heads,
        head_dim=s.head_dim,
        global_head_dim=s.global_head_dim,
        vocab_size=s.vocab,
        vocab_size_per_layer_input=s.vocab if small else 0,
        hidden_size_per_layer_input=16 if small else 0,
        num_key_value_heads=1 if small else 2,
        num_global_key_value_heads=None if small else 1,
        attention_k_eq_v=not small,
        num_kv_shared_layers=s.layers // 2 if small else 0,
        use_double_wide_mlp=small,
        sliding_window=s.window,
        sliding_window_pattern=3,
        max_position_embeddings=4096,
        enable_moe_block=style == "26B-A4B",
        num_experts=s.experts if style == "26B-A4B" else None,
        top_k_experts=2 if style == "26B-A4B" else None,
        moe_intermediate_size=s.moe_mlp if style == "26B-A4B" else None,
    )
    return asdict(args) | {"hidden_activation": "gelu_pytorch_tanh", "eos_token_id": EOS, "attention_bias": False}


def _random(shapes: Shapes, seed: int) -> Arrays:
    """Embeddings small beside what the layers add, or tied ones would make every token follow itself.

    And queries small, as attention's scale is 1: it would see a row or two alone, and magnify rounding.
    """
    scale = {"model.embed_tokens.weight": 0.2, "model.norm.weight": 6.0}
    values = {name: random_values(name, shape, seed, norms=1.0) for name, shape in shapes.items()}
    return {
        name: a * np.float32(0.25 if name.endswith("q_norm.weight") else scale.get(name, 1.0))
        for name, a in values.items()
    }


def _fused(arrays: Arrays) -> Arrays:
    """mlx-lm's stacked experts as Hugging Face has them."""
    out = {name: a for name, a in arrays.items() if ".switch_glu." not in name}
    for base in sorted({name.partition(".switch_glu.")[0] for name in arrays.keys() - out.keys()}):
        gate, up, down = (arrays[f"{base}.switch_glu.{part}_proj.weight"] for part in ("gate", "up", "down"))
        out |= {f"{base}.gate_up_proj": np.concatenate([gate, up], axis=1), f"{base}.down_proj": down}
    return out
