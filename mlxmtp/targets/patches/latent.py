"""Latent attention (MLA) of a few rows in the order of products that mlx-lm has for one row.

For one row, mlx-lm projects the queries by `embed_q`, and the latents are keys and values. For several rows it expands
every latent of the context into keys and values. That rounds in another way, and at a long context it is most of the
pass's work.
Source: DeepSeek-V2 (2405.04434), section 2.1; mlx-lm's `models.deepseek_v3`.
"""

from collections.abc import Callable
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from mlxmtp.targets.patches.observe import rebind, replace_call, uses

_attention: Callable[..., mx.array] = scaled_dot_product_attention


class LatentAttention:
    """One attention module of mlx-lm that, while `on`, uses the latents as keys and values for several rows too.

    Its weights must be loaded: a quantisation after this would undo it.

    Args:
        split_rows: run rows one at a time if `row_by_row` is set, if attention joins the expanded keys with their
            positions, and if it is sparse (DSA) and has more keys than it selects. For one row mlx-lm gathers the
            selected latents, for several it masks the others, and in half precision it selects by other sums.
    """

    def __init__(self, attention: nn.Module, *, split_rows: bool = False) -> None:
        self.on = self.row_by_row = False
        self._attention: Any = attention  # not its projections: a quantisation replaces them
        self._embed_q: Any = type(attention.embed_q).__call__
        self._unembed_out: Any = type(attention.unembed_out).__call__

        def keys(module: nn.Module, x: mx.array, transpose: bool = True) -> mx.array:
            # queries go in with transpose True, latents [B, 1, T, R] are expanded with False
            return x if self.on and not transpose else self._embed_q(module, x, transpose)

        def values(module: nn.Module, x: mx.array) -> mx.array:
            return x if self.on else self._unembed_out(module, x)

        replace_call(attention.embed_q, keys)
        replace_call(attention.unembed_out, values)
        rebind(attention, scaled_dot_product_attention=self._attend)
        if split_rows:
            self._split_rows(attention)

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:  # noqa: ARG002
        self.on = num_tokens > 1

    def end_pass(self) -> None:
        self.on = False

    def _split_rows(self, attention: nn.Module) -> None:
        together: Any = type(attention).__call__
        names = list(signature(together).parameters)
        joins = uses(attention, mx.concatenate.__name__)

        def call(module: nn.Module, *args: Any, **options: Any) -> Any:
            if not self.on:
                return together(module, *args, **options)
            given = dict(zip(names, (module, *args), strict=False)) | options | {"mask": None}
            rows = given["x"].shape[1]
            selects = hasattr(module, "indexer") and given["cache"][0].offset + rows > module.indexer.index_topk
            if not (self.row_by_row or joins or selects):
                return together(module, *args, **options)
            by_rows = {name: value for name, value in given.items() if isinstance(value, mx.array)}
            self.on = False
            try:
                each = ({name: x[..., i : i + 1, :] for name, x in by_rows.items()} for i in range(rows))
                return mx.concatenate([together(**given | row) for row in each], axis=1)
            finally:
                self.on = True

        replace_call(attention, call)

    def _attend(self, queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        """Attend with queries [B, heads, m, D]; while `on`, keys and values are the latents."""
        if not self.on:
            return _attention(queries, keys, values, **options)
        queries = self._embed_q(self._attention.embed_q, queries)
        out: mx.array = self._unembed_out(self._attention.unembed_out, _attention(queries, keys, values, **options))
        return out


def has_latents(attention: nn.Module) -> bool:
    """Return whether a module is mlx-lm's latent attention."""
    return hasattr(attention, "embed_q") and hasattr(attention, "unembed_out")
