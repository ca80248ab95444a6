"""The MTP head of Mellum 2.

    z_p = fc([pre_fc_norm_embedding(E[x_{p+1}]); pre_fc_norm_hidden(h_p)]),  y = block(z),  out = norm(y)

The hidden states fed and passed on are post-norm. The block is a layer of the trunk with experts; it slides, unless the
config says otherwise (`mtp_layer_types`). Source: transformers' `MellumConfig` and `MtpModel`.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.mellum import MellumDecoderLayer

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import FC_NAMES, build_layer
from mlxmtp.targets import Target


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args = target.text_model.args
    kind = (target.text_config.get("mtp_layer_types") or ["sliding_attention"])[0]
    layer = MellumDecoderLayer(replace(args, layer_types=[kind]), 0)
    window = args.sliding_window if kind == "sliding_attention" else None
    return build_layer(MELLUM.name, target, weights, FC_NAMES, lambda _: layer, window=window)


MELLUM = Family("mellum-mtp", ("mellum",), build)
