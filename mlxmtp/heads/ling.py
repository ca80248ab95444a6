"""The MTP head of Ling and Ring 2.0, layer N of a trunk of N layers.

    z_p = eh_proj([enorm(E[x_{p+1}]); hnorm(h_p)]),  y = block(z),  out = final_layernorm(y)

The hidden states fed and passed on are post-norm. The block is a layer of the trunk, with experts.
Source: the makers' `modeling_bailing_moe_v2.py`; SGLang's `bailing_moe_nextn.py` agrees.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.bailing_moe import BailingMoeDecoderLayer

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import build_layer
from mlxmtp.targets import Target

NAMES = {"final_layernorm.": "norm."}
"""The layer's names outside its block, and ours."""
ROUTER, RENAMED = "mlp.gate.weight", "mlp.gate.gate_proj.weight"
"""The router's matrix, and mlx-lm's name for it, which it gives in layers after the dense ones."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args = target.text_model.args

    def block(found: Mapping[str, mx.array]) -> BailingMoeDecoderLayer:
        moe = f"block.{RENAMED}" in found
        return BailingMoeDecoderLayer(replace(args, first_k_dense_replace=0 if moe else 1), 0)

    return build_layer(
        LING.name, target, {name.replace(ROUTER, RENAMED): weight for name, weight in weights.items()}, NAMES, block
    )


LING = Family("ling-mtp", ("bailing_moe",), build)
