"""The MTP head of LongCat-Flash and LongCat-Flash-Lite.

    z_p = eh_proj([enorm(E[x_{p+1}]); hnorm(h_p)]),  y = block(z),  out = norm(y),  logits = the trunk's output matrix

The hidden states fed and passed on are post-norm, as in vLLM and SGLang. The block is one latent attention with the
trunk's scales and a dense MLP, where a layer of the trunk has two of each, and experts. Its embedding is a plain
matrix, also where the trunk adds n-grams to its own.
Source: vLLM's `longcat_flash_mtp.py`; SGLang's `longcat_flash_nextn.py` agrees.
"""

import re
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.longcat_flash import LongcatFlashMLA, LongcatFlashMLP

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import LAYER, build_layer
from mlxmtp.targets import Target

TRUNKS = ("longcat_flash", "longcat_flash_ngram")
NAMES = {"enorm.m.": "enorm.", "hnorm.m.": "hnorm."}
"""The layer's names outside its block, and ours."""
INFIX = "transformer_layer."
"""Begins the names of the block's MLP."""


class DenseBlock(nn.Module):
    """A layer with one attention, called with (x [B, T, H], mask, cache).

    Args:
        args: the trunk's.
    """

    def __init__(self, args: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.self_attn = [LongcatFlashMLA(args)]
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.mlp = LongcatFlashMLP(args)

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        x = x + self.self_attn[0](self.input_layernorm(x), mask=mask, cache=cache)
        y: mx.array = x + self.mlp(self.post_attention_layernorm(x))
        return y


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    short = {name.removeprefix(LAYER).removeprefix(INFIX): weight for name, weight in weights.items()}
    # as the first attention of a trunk's layer, whose projections mlx-lm splits
    named = {re.sub(r"^self_attn\.", "self_attn.0.", name): weight for name, weight in short.items()}
    return build_layer(LONGCAT.name, target, named, NAMES, lambda _: DenseBlock(target.text_model.args))


LONGCAT = Family("longcat-mtp", TRUNKS, build, silent=TRUNKS)
