"""The MTP head of MiMo-7B, and of FastMTP, which trains it for several steps.

    z_p = input_proj([hidden_layernorm(h_p); token_layernorm(E[x_{p+1}])]),  y = block(z),  out = final_layernorm(y)

The hidden state comes first. The block is a layer of the trunk. Source: vLLM's `mimo_mtp.py`, by the model's makers,
which takes h_p before the trunk's final norm; SGLang and FastMTP's training code take it after. All pass `out` on.
"""

from typing import Any

import mlx.core as mx
from mlx_lm.models.mimo import TransformerBlock

from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Convention
from mlxmtp.heads.layer import build_layer
from mlxmtp.targets import Target

NAMES = {
    "token_layernorm.": "enorm.",
    "hidden_layernorm.": "hnorm.",
    "input_proj.": "eh_proj.",
    "final_layernorm.": "norm.",
}
"""The layer's names outside its block, and ours."""
CONVENTIONS = (
    Convention(fed="pre"),
    Convention(),
    Convention(fed="pre", recycled="pre"),
    Convention(recycled="pre"),
)


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    args = target.text_model.args
    return build_layer(MIMO.name, target, weights, NAMES, lambda _: TransformerBlock(args), hidden_first=True)


MIMO = Family("mimo-mtp", ("mimo",), build, conventions=CONVENTIONS)
