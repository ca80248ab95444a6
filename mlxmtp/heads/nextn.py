"""The `nextn` layer of GLM-4.5 to 5.x and DeepSeek V3 to V3.2.

    z_p = eh_proj([enorm(E[x_{p+1}]); hnorm(h_p)]),  y = block(z),  out = norm(y),  logits = the output matrix

It is stored as layer N of a trunk of N layers. h_p is the trunk's hidden state after its final norm, and `out` is the
hidden state of the next depth: post-norm in both places, as in SGLang, llama.cpp and transformers (vLLM's glm4_moe
recycles y). The block is a layer of the trunk's class, with the trunk's attention and cache.
Source: DeepSeek-V3 (2412.19437), section 2.2.
"""

from dataclasses import replace
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask

from mlxmtp.errors import HeadError
from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Recursion
from mlxmtp.targets import Cache, LatentAttention, Target, first_leaf, has_latents, matrix_rows

TRUNKS = ("glm4_moe", "glm4_moe_lite", "deepseek_v3", "deepseek_v32", "glm_moe_dsa")
LAYER = "layers.0."
OUTSIDE = {
    "enorm.": "enorm.",
    "hnorm.": "hnorm.",
    "eh_proj.": "eh_proj.",
    "shared_head.norm.": "norm.",
    "shared_head.head.": "lm_head.",
    "embed_tokens.": "embed_tokens.",
}
"""Prefixes of the layer's tensors outside its block, and the module's names for them."""
ABSORBED = 32
"""Rows; up to this many, latents are used as keys and values. Longer calls are prefills."""
COMPARED_ROWS = 1024
"""Rows by which the layer's embedding and output matrix are compared with the trunk's."""


class NextNHead(Recursion, nn.Module):
    """One `nextn` layer.

    Args:
        target: the trunk.
        moe: whether the block has experts.
        own: which of "embed_tokens" and "lm_head" the layer has for itself; the trunk's are used for the others.
    """

    family = "nextn"

    def __init__(self, target: Target, *, moe: bool, own: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        args = target.text_model.args
        size, vocab, eps = args.hidden_size, args.vocab_size, args.rms_norm_eps
        layer: Any = nn.Module()
        layer.enorm = nn.RMSNorm(size, eps=eps)
        layer.hnorm = nn.RMSNorm(size, eps=eps)
        layer.eh_proj = nn.Linear(2 * size, size, bias=False)
        block: Any = type(target.text_model.layers[-1])
        layer.block = block(replace(args, first_k_dense_replace=0 if moe else 1), 0)
        layer.norm = nn.RMSNorm(size, eps=eps)
        if "embed_tokens" in own:
            layer.embed_tokens = nn.Embedding(vocab, size)
        if "lm_head" in own:
            layer.lm_head = nn.Linear(size, vocab, bias=False)
        self.layers = [layer]
        self._target = target
        self._own = own

    def make_cache(self, target_cache: Cache) -> Cache:  # noqa: ARG002
        return self._target.make_cache()[-1:]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        layer = self.layers[0]
        embedding = (layer.embed_tokens if "embed_tokens" in self._own else self._target.embed)(tokens)
        x = layer.eh_proj(mx.concatenate([layer.enorm(embedding), layer.hnorm(hidden)], axis=-1))
        mask = create_attention_mask(x, first_leaf(cache[0]), return_array=True)
        if self._latent:
            self._latent.on = 1 < x.shape[1] <= ABSORBED
        return self.normed(layer.block(x, mask, cache[0]), layer.norm, for_logits=False)

    def logits(self, states: mx.array) -> mx.array:
        full = self.output if "lm_head" in self._own else self._target.project
        project = self.draft_output or full
        logits: mx.array = project(self.normed(states, self.layers[0].norm, for_logits=True))
        return logits

    @property
    def output(self) -> Any:
        return self.layers[0].lm_head if "lm_head" in self._own else self._target.output

    def prepare(self) -> None:
        _ = self._latent  # before the module is split by sequence
        super().prepare()

    @cached_property
    def _latent(self) -> LatentAttention | None:
        attention = self.layers[0].block.self_attn
        return LatentAttention(attention) if has_latents(attention) else None


def build(weights: dict[str, mx.array], target: Target, **_: Any) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights by the module's names."""
    found, block = _sorted(weights)
    if "eh_proj.weight" not in found:
        raise HeadError("the head's tensors have no eh_proj; they are not a nextn layer")
    shared = {"embed_tokens": target.embedding, "lm_head": target.output}
    own = {name for name, matrix in shared.items() if not _is_shared(name, found, matrix)}
    for name in shared.keys() - own:
        found = {key: weight for key, weight in found.items() if not key.startswith(f"{name}.")}
    # the trunk's `sanitize` stacks experts and splits latent projections, as of the trunk's first layer
    block = target.model.sanitize({f"model.{LAYER}{name}": weight for name, weight in block.items()})
    found |= {f"block.{name.removeprefix(f'model.{LAYER}')}": weight for name, weight in block.items()}
    head = NextNHead(target, moe="block.mlp.gate.weight" in found, own=own)
    return head, {LAYER + name: weight for name, weight in found.items()}


def _sorted(weights: dict[str, mx.array]) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return the tensors outside the block by the module's names, and the block's by the trunk layer's names."""
    found: dict[str, mx.array] = {}
    block: dict[str, mx.array] = {}
    names = OUTSIDE | {name: name for name in OUTSIDE.values()} | {"shared_head_norm.": "norm."}  # ours, and mlx-vlm's
    for name, weight in weights.items():
        name = name.removeprefix(LAYER).removeprefix("model.").removeprefix("mtp_block.")  # the latter are mlx-vlm's
        for stored, ours in names.items():
            if name.startswith(stored):
                found[ours + name.removeprefix(stored)] = weight
                break
        else:
            block[name.removeprefix("block.")] = weight
    return found, block


def _is_shared(name: str, found: dict[str, mx.array], matrix: nn.Module) -> bool:
    """Return whether the layer lacks a matrix or has the trunk's; a quantised trunk's may differ by its rounding."""
    weight = found.get(f"{name}.weight")
    if weight is None:
        return True
    if f"{name}.scales" in found:
        return False
    ids = mx.arange(0, weight.shape[0], max(1, weight.shape[0] // COMPARED_ROWS))
    ours, theirs = matrix_rows(matrix, ids).astype(mx.float32), weight[ids].astype(mx.float32)
    if ours.shape != theirs.shape:
        return False
    error = mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)
    return float(error) < (0.3 if hasattr(matrix, "scales") else 1e-2)


NEXTN = Family(NextNHead.family, TRUNKS, build)
