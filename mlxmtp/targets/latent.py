"""Latent attention (MLA) of a few rows in the order of products that mlx-lm has for one.

For one row, mlx-lm takes the queries through `embed_q`, so that the latents themselves are keys and values. For
several it expands every latent of the context into keys and values: other roundings, and at a long context far more
work than all the rest of the pass.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention

from mlxmtp.targets.observe import rebind, replace_call

_attention: Callable[..., mx.array] = scaled_dot_product_attention


class LatentAttention:
    """One attention module of mlx-lm that, while `on`, attends to the latents themselves in a pass over several rows.

    Its weights must be in place: quantising a module later would undo this.

    Args:
        rows_alone: rows go through one at a time where `alone` is set, and where attention is sparse (DSA) and has more
            keys than it may choose: for one row mlx-lm gathers the chosen latents, for several it masks the others,
            and in half precision it chooses by other sums.
    """

    def __init__(self, attention: nn.Module, *, rows_alone: bool = False) -> None:
        self.on = self.alone = False
        self._attention: Any = attention  # and not its projections: quantising puts others in their place
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
        if rows_alone:
            self._one_at_a_time(attention)

    def begin_pass(self, num_tokens: int) -> None:
        self.on = num_tokens > 1

    def end_pass(self) -> None:
        self.on = False

    def _one_at_a_time(self, attention: nn.Module) -> None:
        together: Any = type(attention).__call__

        def call(module: nn.Module, x: mx.array, mask: mx.array | None = None, cache: Any = None) -> Any:
            rows = x.shape[1]
            chooses = hasattr(module, "indexer") and self.on and cache[0].offset + rows > module.indexer.index_topk
            if not (self.on and (self.alone or chooses)):
                return together(module, x, mask, cache)
            self.on = False
            try:
                alone = [together(module, x[:, row : row + 1], None, cache) for row in range(rows)]
                return mx.concatenate(alone, axis=1)
            finally:
                self.on = True

        replace_call(attention, call)

    def _attend(self, queries: mx.array, keys: mx.array, values: mx.array, **options: Any) -> mx.array:
        """Queries [B, heads, m, D]; while `on`, keys and values are the latents."""
        if not self.on:
            return _attention(queries, keys, values, **options)
        queries = self._embed_q(self._attention.embed_q, queries)
        out: mx.array = self._unembed_out(self._attention.unembed_out, _attention(queries, keys, values, **options))
        return out


def has_latents(attention: nn.Module) -> bool:
    """Whether a module is of mlx-lm's kind of latent attention."""
    return hasattr(attention, "embed_q") and hasattr(attention, "unembed_out")
