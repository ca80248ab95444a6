"""The `nextn` layer of GLM-4.5 to 5.x, DeepSeek V3 to V3.2.

It is stored as layer N of a trunk of N layers. h_p is the trunk's hidden state after its final norm, and the normed
output is the hidden state of the next depth: post-norm in both places, as in SGLang, llama.cpp and transformers (vLLM's
glm4_moe recycles the block's output). The block is a layer of the trunk's class, with the trunk's attention and cache.
Source: DeepSeek-V3 (2412.19437), section 2.2.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import LAYER, HeadLayer, LayerHead, own_matrices, sanitised, sorted_parts, without_shared
from mlxmtp.targets import Target

TRUNKS = ("glm4_moe", "glm4_moe_lite", "deepseek_v3", "joyai_llm_flash", "deepseek_v32", "glm_moe_dsa")
NAMES = {"shared_head.norm.": "norm.", "shared_head_norm.": "norm.", "shared_head.head.": "lm_head."}
"""The layer's names outside its block, and ours; the second is mlx-vlm's."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    # "model." and "mtp_block." are mlx-vlm's
    names = {name: name.removeprefix(LAYER).removeprefix("model.").removeprefix("mtp_block.") for name in weights}
    outside, block = sorted_parts({short: weights[name] for name, short in names.items()}, NAMES)
    own = own_matrices(outside, target)
    found = without_shared(outside, own) | sanitised(target, block)
    args = target.text_model.args
    kind: Any = type(target.text_model.layers[-1])
    moe = "block.mlp.gate.weight" in found
    layer = kind(replace(args, first_k_dense_replace=0 if moe else 1), 0)
    head = LayerHead(
        NEXTN.name, HeadLayer(target, layer, eps=args.rms_norm_eps, own=own), lambda: target.make_cache()[-1]
    )
    return head, {LAYER + name: weight for name, weight in found.items()}


NEXTN = Family("nextn", TRUNKS, build)
