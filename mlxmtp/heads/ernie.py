"""The MTP head of Ernie 4.5 with experts.

    z_p = linear_proj([emb_norm(E[x_{p+1}]); hidden_norm(h_p)]),  y = block(z),  logits = the output matrix of y

No norm comes after the block; y itself is passed on. h_p is post-norm. The block is a dense layer of the trunk, with
its interleaved rotation, as in SGLang's `ernie4_eagle.py`; vLLM's `ernie_mtp.py` rotates halves.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models.ernie4_5_moe import Ernie4_5_DecoderLayer

from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Convention
from mlxmtp.heads.layer import build_layer
from mlxmtp.targets import Target

NAMES = {"emb_norm.0.": "enorm.", "hidden_norm.0.": "hnorm.", "linear_proj.0.": "eh_proj.", "block.0.": "block."}
"""The head's names after `mtp_`, and ours."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    own = replace(target.text_model.args, moe_layer_start_index=1)
    layer = Ernie4_5_DecoderLayer(own, 0)
    return build_layer(ERNIE.name, target, weights, NAMES, lambda _: layer, last_norm=False)


ERNIE = Family("ernie-mtp", ("ernie4_5_moe",), build, conventions=(Convention(), Convention(fed="pre")))
