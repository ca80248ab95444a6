"""A target's keys and values as the cache of a head that has none of its own."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.base import create_causal_mask


class SharedKVCache:
    """Read-only view of the keys and values [1, heads, T, D] of one layer of the target."""

    state = ()
    nbytes = 0

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @property
    def offset(self) -> int:
        """Tokens in the target's cache."""
        rows: int = self._layer.offset
        return rows

    def trim(self, rows: int) -> None:
        """Do nothing: drafts append nothing."""

    def fetch(self, rows: int) -> tuple[tuple[mx.array, mx.array], mx.array | None]:
        """Return keys and values for the newest `rows` positions, and their mask, or None if all are seen.

        More than one row is possible only directly after the target has read them.
        """
        layer, window = self._layer, getattr(self._layer, "max_size", None)
        count = min(layer.offset, layer.keys.shape[2])
        keys = layer.keys[:, :, :count], layer.values[:, :, :count]
        if rows == 1 and (window is None or layer.offset < window):
            return keys, None
        if rows == 1 and count == window:  # a ring; the row in the slot that is written next is outside the window
            dead = layer._idx if layer._idx < window else layer.keep
            return keys, mx.arange(window) != dead
        return keys, create_causal_mask(rows, count - rows, window and window - 1)
