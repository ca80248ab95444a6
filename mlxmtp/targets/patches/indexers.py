"""Layers of sparse attention (DSA) that share an indexer: the keys of a row are those that the layer before chose.

mlx-lm gives every layer an indexer of its own. In GLM-5.2 three of four layers have none.
Source: IndexShare (2603.12201); transformers' `glm_moe_dsa`.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import deepseek_v32

from mlxmtp.targets.patches.observe import wrap_call

FULL, SHARED = "full", "shared"
"""The types of a layer's indexer, as configs state them."""


class Chosen:
    """The keys that one indexer chose in the calls of a pass; a pass may call it row by row, and for each sequence."""

    def __init__(self) -> None:
        self.calls: list[mx.array | None] = []

    def record(self, call: Callable[..., Any], module: nn.Module, *args: Any, **options: Any) -> mx.array | None:
        """Run the indexer."""
        keys: mx.array | None = call(module, *args, **options)
        self.calls.append(keys)
        return keys


class SharedIndexer(nn.Module):
    """In place of an indexer: each call returns what the same call of another layer's indexer chose.

    Args:
        chosen: of that indexer.
        index_topk: the number of keys.
    """

    def __init__(self, chosen: Chosen, index_topk: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.index_topk = index_topk
        self.chosen = chosen
        self.calls = 0

    def __call__(self, x: mx.array, qr: mx.array, mask: Any, cache: Any = None) -> mx.array | None:  # noqa: ARG002
        if cache is not None:  # mlx-lm expects something in it; its offset is the layer's
            rows = mx.zeros((x.shape[0], 1, x.shape[1], 1), x.dtype)
            cache.update_and_fetch(rows, rows)
        self.calls += 1
        return self.chosen.calls[self.calls - 1]


def share_indexers(model: nn.Module, types: Any) -> tuple[str, ...]:
    """Replace the indexers of layers that share one; return the prefixes of the tensors that these do not read.

    Args:
        types: the config's `indexer_types`, one for each layer; None: every layer has its own.

    Raises:
        ValueError: the types are no such list.
    """
    if types is None or not isinstance(model, deepseek_v32.Model):
        return ()
    layers: Any = model.model.layers
    known = isinstance(types, list) and len(types) >= len(layers) and all(one in (FULL, SHARED) for one in types)
    if not known or types[0] != FULL:
        found = f"its config has indexer_types {types!r:.80}"
        raise ValueError(f'{found}; expected "full" or "shared" for each layer, and "full" for the first')
    chosen: list[Chosen] = []
    sharing: dict[int, SharedIndexer] = {}
    for i, layer in enumerate(layers):
        attention = layer.self_attn
        if types[i] == FULL:
            chosen.append(Chosen())
            wrap_call(attention.indexer, chosen[-1].record)
        else:
            attention.indexer = sharing[i] = SharedIndexer(chosen[-1], attention.indexer.index_topk)

    def run(call: Callable[..., Any], module: nn.Module, *args: Any, **options: Any) -> Any:
        try:
            return call(module, *args, **options)
        finally:
            for one in chosen:
                one.calls.clear()
            for indexer in sharing.values():
                indexer.calls = 0

    wrap_call(model.model, run)
    return tuple(f"model.layers.{i}.self_attn.indexer." for i in sharing)
