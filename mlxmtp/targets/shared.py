"""A target's keys and values, read by a head that has none of its own."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask


class SharedRows:
    """Keys and values [1, heads, rows, D] of one layer of the target, in place of a cache of the head's own."""

    state = ()
    nbytes = 0

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def offset(self) -> int:
        """How many tokens the target has read."""
        rows: int = self._layer.offset
        return rows

    def trim(self, rows: int) -> None:
        """Drafts have left nothing."""

    def fetch(self, rows: int) -> tuple[tuple[mx.array, mx.array], mx.array | None]:
        """What the newest `rows` rows see, and its mask. Several rows: only where the target has just read them all."""
        layer, window = self._layer, getattr(self._layer, "max_size", None)
        count = min(layer.offset, layer.keys.shape[2])
        keys = layer.keys[:, :, :count], layer.values[:, :, :count]
        if rows == 1 and (window is None or layer.offset < window):
            return keys, None
        if rows == 1 and count == window:  # a ring; the slot that is written next holds a row out of sight
            dead = layer._idx if layer._idx < window else layer.keep
            return keys, mx.arange(window) != dead
        return keys, create_causal_mask(rows, count - rows, window and window - 1)
