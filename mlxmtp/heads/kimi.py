"""The MTP head of Kimi K3, and of Kimi Linear checkpoints that have one.

It is stored as layer N of a trunk of N layers: latent attention without positions (K3: with a gate at its output), and
experts. The hidden states fed and passed on are those before a norm: the trunk's after its last mix of residuals
(AttnRes) and before `norm`, the head's before `shared_head.norm`, which only the logits get. The block adds its
residuals plainly; AttnRes weights that its layer has are not used. Source: vLLM's `kimi_k3/nvidia/mtp.py`, the only
one; it also sets the embedding at position 0 to zero.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import mlx.core as mx
from mlx_lm.models import kimi_k3, kimi_linear

from mlxmtp.heads.family import Family
from mlxmtp.heads.head import CONVENTIONS
from mlxmtp.heads.layer import LAYER, build_layer, sanitised
from mlxmtp.targets import Target

NAMES = {"shared_head.norm.": "norm.", "shared_head.head.": "lm_head."}
"""The layer's names outside its block, and ours."""
RESIDUAL_MIX = ("self_attention_res", "mlp_res")
"""Begin the names of the weights of AttnRes."""


class PlainLayer(kimi_k3.KimiK3DecoderLayer):
    """A layer of Kimi K3 without the mix of residuals, called as other trunks' layers are."""

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:  # type: ignore[override]
        y: mx.array = super().__call__(x, mask, cache)[0]
        return y


LAYERS: dict[str, Any] = {"kimi_k3": PlainLayer, "kimi_linear": kimi_linear.KimiDecoderLayer}
"""The head's block, by the trunk's model type."""


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args, kind = target.text_model.args, LAYERS[target.model_type]

    def block(found: Mapping[str, mx.array]) -> Any:
        moe = any(name.startswith("block.mlp.switch_mlp.") for name in found)
        changes: dict[str, Any] = {"linear_attn_config": {**args.linear_attn_config, "kda_layers": []}}
        if hasattr(args, "attn_res_block_size"):
            changes["attn_res_block_size"] = None
        return kind(replace(args, first_k_dense_replace=0 if moe else 1, **changes), 0)

    used = {n: weight for n, weight in weights.items() if not n.removeprefix(LAYER).startswith(RESIDUAL_MIX)}
    sanitise = partial(sanitised, index=args.num_hidden_layers - 1)
    return build_layer(KIMI.name, target, used, NAMES, block, sanitise=sanitise)


KIMI = Family("kimi-mtp", tuple(LAYERS), build, conventions=CONVENTIONS[::-1])
