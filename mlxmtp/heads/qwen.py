"""The MTP head of Qwen3-Next and Qwen 3.5 / 3.6 / 3.8, dense and MoE.

    z_p = fc([norm_e(E[x_{p+1}]); norm_h(h_p)]),  y = block(z),  out = norm(y),  logits = the trunk's output matrix

h_p is the trunk's hidden state after its final norm, and `out` is the hidden state of the next depth: post-norm in both
places. The block is a full-attention layer of the trunk. Source: vLLM's `qwen3_5_mtp.py`; SGLang's agrees.
"""

from dataclasses import fields, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3_5, qwen3_next
from mlx_lm.models.cache import KVCache

from mlxmtp.errors import HeadError
from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Recursion
from mlxmtp.targets import Cache, Target, stack_experts

TRUNKS = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")
SILENT = ("qwen3_next",)
"""Trunks whose configs do not declare the head, though all originals have one."""
NORM_OFFSET = 1.0
"""Raw checkpoints store w; the layer multiplies by w + NORM_OFFSET."""
UNDECIDED = 0.75 * NORM_OFFSET
"""Mean of the medians of a block's norms; raw ones of releases are 0.4 at most, shifted ones 0.95 at least."""
SHIFTED = 0.9 * NORM_OFFSET
"""The same next to a raw trunk, where only clearly shifted ones count as shifted."""
_BLOCK_NORMS = ("input_layernorm", "post_attention_layernorm", "q_norm", "k_norm")


class QwenHead(Recursion, nn.Module):
    """One MTP layer, which shares the target's embedding and output matrices.

    Args:
        target: the trunk.
        moe: whether the block has experts, by the head's tensors.
    """

    family = "qwen-mtp"

    def __init__(self, target: Target, *, moe: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        args = target.text_model.args
        size, eps = args.hidden_size, args.rms_norm_eps
        self.pre_fc_norm_embedding = nn.RMSNorm(size, eps=eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(size, eps=eps)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = [_block(args, moe)]
        self.norm = nn.RMSNorm(size, eps=eps)
        self._target = target

    def make_cache(self, target_cache: Cache) -> Cache:  # noqa: ARG002
        return [KVCache()]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        embedding = self.pre_fc_norm_embedding(self._target.embed(tokens))
        x = self.fc(mx.concatenate([embedding, self.pre_fc_norm_hidden(hidden)], axis=-1))
        mask = cache[0].make_mask(x.shape[1], return_array=False, window_size=None)
        return self.normed(self.layers[0](x, mask, cache[0]), self.norm, for_logits=False)

    def logits(self, states: mx.array) -> mx.array:
        project = self.draft_output or self._target.project
        return project(self.normed(states, self.norm, for_logits=True))

    @property
    def output(self) -> Any:
        return self._target.output


def build(
    weights: dict[str, mx.array], target: Target, *, trunk_is_raw: bool | None, stated: str | None = None, **_: Any
) -> tuple[Any, dict[str, mx.array]]:
    """Return the head's module without its weights, and its weights with norms shifted and experts stacked."""
    if not any(name.startswith("layers.0.") for name in weights):
        raise HeadError("the head's tensors have no layers.0.*; they are not a Qwen MTP head")
    if norms_are_raw(weights, trunk_is_raw=trunk_is_raw, stated=stated):
        weights = {name: w + NORM_OFFSET if _is_norm(name, w) else w for name, w in weights.items()}
    weights = stack_experts(weights)
    return QwenHead(target, moe=any(".mlp.switch_mlp." in name for name in weights)), weights


def norms_are_raw(weights: dict[str, mx.array], *, trunk_is_raw: bool | None, stated: str | None = None) -> bool:
    """Return whether norm weights lack their offset of 1.

    The block's four norms decide for all: their medians are a little above 0 if raw, above 1 if shifted. (The norms
    before `fc` are below 0.5 even if shifted, and the last norm is above 1 even if raw.) Next to a raw trunk the head
    is raw too, unless it was put there from a conversion, which the values show. Next to a converted trunk it may be
    either.

    Args:
        trunk_is_raw: whether the trunk is in the raw layout; None: unknown.
        stated: "raw" or "shifted", if the files say so; the values then only confirm it.

    Raises:
        HeadError: the values contradict the files.
    """
    medians = [
        float(mx.sort(w.astype(mx.float32))[w.size // 2])
        for name, w in weights.items()
        if _is_norm(name, w) and name.split(".")[-2] in _BLOCK_NORMS
    ]
    if not medians:
        raise HeadError("the head has no norm weights to tell its format from")
    mean = sum(medians) / len(medians)
    raw = mean < (SHIFTED if trunk_is_raw else UNDECIDED)
    if stated is not None and raw != (stated == "raw"):
        raise HeadError(
            f"the head's norm weights are said to be {stated}, but their median of {mean:.2f} contradicts it; "
            "make the head again (mlxmtp attach)"
        )
    return raw


def _is_norm(name: str, value: mx.array) -> bool:
    return value.ndim == 1 and (name.endswith("norm.weight") or name.startswith("pre_fc_norm"))


def _block(args: Any, moe: bool) -> Any:
    """Return a full-attention layer of the trunk's class, with or without experts."""
    known = {field.name for field in fields(args)}
    changes: dict[str, Any] = {"full_attention_interval": 1, "mlp_only_layers": [], "decoder_sparse_step": 1}
    if not moe:
        changes["num_experts"] = 0
    args = replace(args, **{name: value for name, value in changes.items() if name in known})
    next_args = isinstance(args, qwen3_next.ModelArgs)
    layer: Any = qwen3_next.Qwen3NextDecoderLayer if next_args else qwen3_5.DecoderLayer
    return layer(args, layer_idx=0)


QWEN = Family(QwenHead.family, TRUNKS, build, silent=SILENT, norms_are_raw=norms_are_raw)
