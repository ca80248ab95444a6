"""The MTP head of Qwen3-Next and Qwen 3.5 / 3.6 / 3.8, dense and MoE (families.md 1 and 5).

    z_p = fc([norm_e(E[x_{p+1}]); norm_h(h_p)]),  y = block(z),  out = norm(y),  logits = the trunk's output matrix

The hidden state fed is the trunk's after its final norm, and `out` is what goes on to the next depth: post-norm in
both places, as vLLM's `qwen3_5_mtp.py` and SGLang's have it. The block is a full-attention layer of the trunk.
"""

from dataclasses import fields, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import qwen3_5, qwen3_next
from mlx_lm.models.cache import KVCache

from mlxmtp.targets import Cache, Target

FAMILY = "qwen-mtp"
TRUNKS = ("qwen3_5", "qwen3_5_text", "qwen3_5_moe", "qwen3_5_moe_text", "qwen3_next")
NORM_OFFSET = 1.0  # raw checkpoints store w, the layer multiplies by 1 + w


class QwenHead(nn.Module):
    """One MTP layer. Embedding and output matrices are the target's own, shared and not copied.

    Args:
        target: the trunk.
        moe: whether the head's block has experts: read from its tensors, not from the config.
    """

    family = FAMILY

    def __init__(self, target: Target, *, moe: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        args = target.text_model.args
        size, eps = args.hidden_size, args.rms_norm_eps
        self.pre_fc_norm_embedding = nn.RMSNorm(size, eps=eps)
        self.pre_fc_norm_hidden = nn.RMSNorm(size, eps=eps)
        self.fc = nn.Linear(2 * size, size, bias=False)
        self.layers = [_block(args, moe)]
        self.norm = nn.RMSNorm(size, eps=eps)
        self._embed = target.embed
        self._project = target.project

    def make_cache(self) -> Cache:
        return [KVCache()]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        embedding = self.pre_fc_norm_embedding(self._embed(tokens))
        x = self.fc(mx.concatenate([embedding, self.pre_fc_norm_hidden(hidden)], axis=-1))
        mask = cache[0].make_mask(x.shape[1], return_array=False, window_size=None)
        out: mx.array = self.norm(self.layers[0](x, mask, cache[0]))
        return out

    def logits(self, hidden: mx.array) -> mx.array:
        return self._project(hidden)


def _block(args: Any, moe: bool) -> Any:
    """A layer of the trunk's own class, made to be full attention, with or without experts."""
    known = {field.name for field in fields(args)}
    changes: dict[str, Any] = {"full_attention_interval": 1, "mlp_only_layers": [], "decoder_sparse_step": 1}
    if not moe:
        changes["num_experts"] = 0
    args = replace(args, **{name: value for name, value in changes.items() if name in known})
    next_args = isinstance(args, qwen3_next.ModelArgs)
    layer: Any = qwen3_next.Qwen3NextDecoderLayer if next_args else qwen3_5.DecoderLayer
    return layer(args, layer_idx=0)
