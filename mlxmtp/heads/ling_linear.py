"""The MTP head of the Ling and Ring models with linear attention: 2.5 (`bailing_hybrid`) and 3.0 (`bailing_moe_v3`).

It is stored as layer N of a trunk of N layers: latent attention to all tokens, though most of the trunk's layers are
linear, and experts. `final_layernorm` is its last norm. The hidden states fed and passed on are post-norm. vLLM sets
the embedding at position 0 to zero for 2.5 and not for 3.0; nobody else does. Sources: vLLM's `bailing_moe_v3_mtp.py`,
transformers' `bailing_hybrid`, SGLang, llama.cpp.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import build_layer, sanitised
from mlxmtp.targets import Target

TRUNKS = ("bailing_hybrid", "bailing_moe_v3")
"""Configs of 3.0 may say either; mlx-lm tells it by its architecture."""
NAMES = {"final_layernorm.": "norm."}
"""The layer's names outside its block, and ours."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args, kind = target.text_model.args, type(target.text_model.layers[-1])

    def block(found: Mapping[str, mx.array]) -> Any:
        moe = any(name.startswith("block.mlp.switch_mlp.") for name in found)
        # in groups of one, each layer attends to all tokens
        return kind(replace(args, layer_group_size=1, first_k_dense_replace=0 if moe else 1), 0)

    sanitise = partial(sanitised, index=args.num_hidden_layers - 1)
    return build_layer(LING_LINEAR.name, target, weights, NAMES, block, sanitise=sanitise)


LING_LINEAR = Family("ling-linear", TRUNKS, build)
