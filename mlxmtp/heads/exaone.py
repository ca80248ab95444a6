"""The MTP head of K-EXAONE.

    z_p = fc([pre_fc_norm_embedding(E[x_{p+1}]); pre_fc_norm_hidden(h_p)]),  y = block(z),  out = norm(y)

The hidden states fed and passed on are post-norm. The block is a dense layer of the trunk; the config says whether it
slides (`mtp_layer_types`). It rotates queries and keys as the trunk's layers do: where some of these slide, only those.
`mtp_share_layers` needs nothing more: the layer makes every draft. Source: vLLM's and SGLang's `exaone_moe_mtp.py`;
TensorRT-LLM's `modeling_exaone_moe.py` agrees.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.exaone_moe import DecoderLayer

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import FC_NAMES, build_layer
from mlxmtp.targets import Target


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args, config = target.text_model.args, target.text_config
    kind = (config.get("mtp_layer_types") or ["full_attention"])[0]
    window = (config.get("mtp_sliding_windows") or [0])[0] or args.sliding_window
    # the trunk's types say whether layers that do not slide rotate
    layer = DecoderLayer(replace(args, layer_types=[kind, *args.layer_types], is_moe_layer=[False]), 0)
    seen = window if kind == "sliding_attention" else None
    return build_layer(EXAONE.name, target, weights, FC_NAMES, lambda _: layer, window=seen)


EXAONE = Family("exaone-mtp", ("exaone_moe",), build)
