"""The MTP head of Nemotron 3 Nano, Super and Ultra, and 3.5-Lightning.

    z_p = eh_proj([enorm(E[x_{p+1}]); hnorm(h_p)]),  y = experts(attention(z)),  out = final_layernorm(y)

Its two blocks are those of the trunk: attention without positions, and experts with a squared ReLU. The hidden states
fed and passed on are post-norm. `final_layernorm` is an RMSNorm in vLLM, SGLang and mlx-vlm, and here; llama.cpp
subtracts the mean too. Source: vLLM's `nemotron_h_mtp.py`.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import nemotron_h

from mlxmtp.errors import HeadError
from mlxmtp.heads.family import Family
from mlxmtp.heads.layer import LAYER, build_layer, sanitised
from mlxmtp.targets import Target

PATTERN = "*E"
"""The blocks of a head, as configs write them: attention, then experts."""
PUZZLE = "mtp_block_configs"
"""In the configs of Puzzle models, whose heads have blocks of other sizes than the trunk's."""
NAMES = {"final_layernorm.": "norm."}
"""The layer's names outside its blocks, and ours."""
_BLOCK = re.compile(r"layers\.(\d+)\.((?:norm|mixer)\..+)")
_KINDS = {"mixer.q_proj.weight": "*", "mixer.gate.weight": "E", "mixer.in_proj.weight": "M"}
_KV_SCALES = (".k_scale", ".v_scale")
"""Ends of the names of scales of a cache in FP8, which mlx-lm does not have."""


class Blocks(nn.Module):
    """Attention, then experts, each with its norm and residual."""

    def __init__(self, args: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers = [nemotron_h.NemotronHBlock(args, kind) for kind in PATTERN]

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        attention, experts = self.layers
        y: mx.array = experts(attention(x, mask, cache))
        return y


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    if PUZZLE in target.text_config:
        raise HeadError(f"a Puzzle model's head has blocks of its own sizes ({PUZZLE}), which are not supported yet")
    stored = {name: weight for name, weight in weights.items() if not name.endswith(_KV_SCALES)}
    named = {ours: stored[name] for name, ours in _module_names(stored).items()}
    args = target.text_model.args
    options: dict[str, Any] = {"sanitise": _sanitised, "eps": args.layer_norm_epsilon}
    return build_layer(NEMOTRON.name, target, named, NAMES, lambda _: Blocks(args), **options)


def _module_names(stored: Collection[str]) -> Mapping[str, str]:
    """Return names inside the module for those in the files, where each block is a layer.

    Raises:
        HeadError: the blocks are others than PATTERN.
    """
    if any(name.startswith(f"{LAYER}block.") for name in stored):
        return {name: name for name in stored}  # mlxmtp's side-car
    blocks = {name: match for name in stored if (match := _BLOCK.fullmatch(name))}
    kinds = {int(match[1]): _KINDS[match[2]] for match in blocks.values() if match[2] in _KINDS}
    if (pattern := "".join(kinds[i] for i in sorted(kinds))) != PATTERN:
        raise HeadError(f"the head's blocks are {pattern or 'missing'}, expected {PATTERN} (attention, then experts)")
    return {name: f"block.{name}" if name in blocks else re.sub(r"layers\.\d+\.", "", name, count=1) for name in stored}


def _sanitised(target: Target, blocks: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Return both blocks' tensors as `layer.sanitised` returns one's."""
    done: dict[str, mx.array] = {}
    for i in range(len(PATTERN)):
        place = f"layers.{i}."
        own = {name.removeprefix(place): weight for name, weight in blocks.items() if name.startswith(place)}
        ready = sanitised(target, own, i, layers="backbone.layers.")
        done |= {name.replace("block.", f"block.{place}", 1): weight for name, weight in ready.items()}
    return done


NEMOTRON = Family("nemotron-mtp", ("nemotron_h",), build)
