"""The MTP layers of MiMo-V2-Flash: three dense layers with a sliding window, which draft in turn.

Norms are plain, embedding and output matrix are the trunk's, and the block is the trunk's sliding flavour, with sinks
and the scale of values. Implementations disagree on what the layers read: SGLang feeds each the target's hidden state
before its final norm, llama.cpp chains the layers, pre-norm, and vLLM runs the first alone as a recursion, post-norm.
The first of CONVENTIONS is SGLang's.
Sources: SGLang's `mimo_v2_flash_nextn` and `multi_layer_eagle_worker_v2`, llama.cpp's `mimo2`, vLLM's `mimo_v2_mtp`.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models import mimo_v2_flash

from mlxmtp.errors import HeadError
from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import HeadLayer, LayerHead, own_matrices, sorted_parts, without_shared
from mlxmtp.heads.several import LayerConvention, SeveralLayers, split_layers
from mlxmtp.targets import Target

TRUNKS = ("mimo_v2_flash",)
NAMES = {"final_layernorm.": "norm."}
"""A layer's names outside its block, and ours."""
MLP_NORM = ("pre_mlp_layernorm.", "post_attention_layernorm.")
"""The norm before the MLP, and what the trunk calls it."""
CONVENTIONS = (
    LayerConvention("pre", "pre", "target"),
    LayerConvention("pre", "pre", "chained"),
    LayerConvention("post", "post", "first"),
)


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args = target.text_model.args
    heads: list[LayerHead] = []
    found: dict[str, mx.array] = {}
    for k, layer in enumerate(split_layers(weights)):
        outside, block = sorted_parts(layer, NAMES)
        if any(name.startswith("self_attn.qkv_proj.") for name in block):
            raise HeadError(
                f"the head's layer {k} has one qkv_proj, as MiMo-V2.5 and Pro store it; expected q_proj, k_proj and "
                "v_proj, as MiMo-V2-Flash does"
            )
        own = own_matrices(outside, target)
        named = without_shared(outside, own) | {f"block.{name.replace(*MLP_NORM)}": w for name, w in block.items()}
        found |= {f"layers.{k}.{name}": weight for name, weight in named.items()}
        decoder = mimo_v2_flash.DecoderLayer(args, is_moe=False, is_sliding_window=True)
        parts = {"eps": args.layernorm_epsilon, "own": own, "window": args.sliding_window_size}
        heads.append(LayerHead(MIMO_V2.name, HeadLayer(target, decoder, **parts)))
    return SeveralLayers(heads), found


MIMO_V2 = Family("mimo-v2-mtp", TRUNKS, build, silent=TRUNKS, layers=None, conventions=CONVENTIONS)
