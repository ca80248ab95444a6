"""The MTP head of the Ling and Ring models with linear attention: 2.5 (`bailing_hybrid`) and 3.0 (`bailing_moe_v3`).

It is stored as layer N of a trunk of N layers: latent attention to all tokens, though most of the trunk's layers are
linear, and experts. `final_layernorm` is its last norm. The hidden states fed and passed on are post-norm. vLLM sets
the embedding at position 0 to zero for 2.5 and not for 3.0; nobody else does. Sources: vLLM's `bailing_moe_v3_mtp.py`,
transformers' `bailing_hybrid`, SGLang, llama.cpp.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import LAYER, HeadLayer, LayerHead, own_matrices, sanitised, sorted_parts, without_shared
from mlxmtp.targets import Target

TRUNKS = ("bailing_hybrid", "bailing_moe_v3")
"""Configs of 3.0 may say either; mlx-lm tells it by its architecture."""
NAMES = {"final_layernorm.": "norm."}
"""The layer's names outside its block, and ours."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    outside, block = sorted_parts({name.removeprefix(LAYER): weight for name, weight in weights.items()}, NAMES)
    own = own_matrices(outside, target)
    args = target.text_model.args
    found = without_shared(outside, own) | sanitised(target, block, args.num_hidden_layers - 1)
    moe = any(name.startswith("block.mlp.switch_mlp.") for name in found)
    # in groups of one, each layer attends to all tokens
    whole = replace(args, layer_group_size=1, first_k_dense_replace=0 if moe else 1)
    kind: Any = type(target.text_model.layers[-1])
    layer = HeadLayer(target, kind(whole, 0), eps=args.rms_norm_eps, own=own)
    return LayerHead(LING_LINEAR.name, layer), {LAYER + name: weight for name, weight in found.items()}


LING_LINEAR = Family("ling-linear", TRUNKS, build)
