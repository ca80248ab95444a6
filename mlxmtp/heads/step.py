"""The MTP layers of Step-3.5 Flash: three layers that draft in turn.

They are layers N, N + 1 and N + 2 of a trunk of N layers, each with a norm and an output matrix of its own. The hidden
states fed and passed on are pre-norm, as in vLLM, SGLang and llama.cpp; transformers feeds and passes on post-norm, and
takes the trunk's output matrix. Lists of the config that have an entry for each layer go on with those of the head.
Sources: vLLM's `step3p5_mtp`, SGLang's `step3p5_mtp`, llama.cpp's `step35`.
"""

from dataclasses import replace
from typing import Any

import mlx.core as mx
from mlx_lm.models import step3p5

from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import HeadLayer, LayerHead, own_matrices, sorted_parts, without_shared
from mlxmtp.heads.qwen import NORM_OFFSET, norms_are_raw
from mlxmtp.heads.several import LayerConvention, SeveralLayers, split_layers
from mlxmtp.targets import Target

TRUNKS = ("step3p5",)
NAMES = {"shared_head.norm.": "norm.", "shared_head.output.": "lm_head."}
"""A layer's names outside its block, and ours."""
INFIX = "transformer."
"""Stands before some names of a layer."""
SLIDING = "sliding_attention"
"""The attention of layers that the config does not list."""
CONVENTIONS = (
    LayerConvention("pre", "pre", "chained"),
    LayerConvention("pre", "pre", "first"),
    LayerConvention("post", "post", "chained"),
)


def build(
    weights: dict[str, mx.array], target: Target, *, trunk_is_raw: bool | None, stated: str | None = None, **_: Any
) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names, with norms shifted."""
    args = target.text_model.args
    offset = NORM_OFFSET if norms_are_raw(weights, trunk_is_raw=trunk_is_raw, stated=stated) else 0.0
    heads: list[LayerHead] = []
    found: dict[str, mx.array] = {}
    for k, layer in enumerate(split_layers(weights, target.text_config.get("num_nextn_predict_layers") or 0)):
        outside, block = sorted_parts({name.removeprefix(INFIX): weight for name, weight in layer.items()}, NAMES)
        own = own_matrices(outside, target)
        named = without_shared(outside, own) | {f"block.{name}": weight for name, weight in block.items()}
        found |= {f"layers.{k}.{name}": weight + offset if _is_norm(name) else weight for name, weight in named.items()}
        decoder = _block(args, args.num_hidden_layers + k)
        window = args.sliding_window if decoder.is_sliding else None
        heads.append(LayerHead(STEP.name, HeadLayer(target, decoder, eps=args.rms_norm_eps, own=own, window=window)))
    return SeveralLayers(heads), found


def _block(args: Any, index: int) -> Any:
    """Return layer `index` of the trunk's class."""
    types = [*(args.layer_types or [SLIDING] * args.num_hidden_layers)]
    types += [SLIDING] * (index + 1 - len(types))
    theta = args.rope_theta
    if isinstance(theta, list):
        last = max((i for i in range(len(theta)) if types[i] == SLIDING), default=-1)
        theta = theta + [theta[last]] * (index + 1 - len(theta))
    return step3p5.Step3p5DecoderLayer(replace(args, layer_types=types, rope_theta=theta), index)


def _is_norm(name: str) -> bool:
    return name.endswith("norm.weight")


STEP = Family("step-mtp", TRUNKS, build, norms_are_raw=norms_are_raw, layers=None, conventions=CONVENTIONS)
