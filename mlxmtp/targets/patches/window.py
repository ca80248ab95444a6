"""Sliding windows that can be rolled back, and show each row of a pass what plain decoding would show it.

mlx-lm's `RotatingKVCache` overwrites its oldest row, so a rejected draft would destroy a row that is still needed.
After it has wrapped, one row reads its keys in the order of the ring, several rows in the order of time; the sums round
differently. Here every row of a verify pass gets the ring that it would find in plain decoding.
"""

from collections.abc import Callable, Iterable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp.targets.patches.observe import rebind, uses

_attention: Callable[..., mx.array] = scaled_dot_product_attention


class WindowCache(RotatingKVCache):
    """A `RotatingKVCache` for one sequence that, while `in_pass`, can go back to any row of the last pass.

    A pass over m > 1 rows that the window cannot hold reads keys and values [m, heads, window, D], one ring per row.
    The slot that is written next is dead: no later row sees its content.
    """

    in_pass = False
    _rings: tuple[mx.array, mx.array] | None = None
    """Keys and values after each row of the last pass; None: its rows were appended, and a trim rolls them back."""
    _slots: list[int]
    """Slots of the rows of the last pass, and of the row after it."""

    @classmethod
    def like(cls, cache: RotatingKVCache) -> "WindowCache":
        """Return an empty cache for the same window."""
        return cls(cache.max_size, cache.keep)

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:  # noqa: ARG002
        self.in_pass = True

    def end_pass(self) -> None:
        self.in_pass = False

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        rows = keys.shape[2]
        self._rings = None
        if not self.in_pass or rows == 1 or self.offset + rows <= self.max_size:
            fetched: tuple[mx.array, mx.array] = super().update_and_fetch(keys, values)  # type: ignore[no-untyped-call]
            return fetched
        old: Any = (keys[:, :, :0], values[:, :, :0]) if self.keys is None else (self.keys, self.values)
        self._slots, slot = [], self._idx
        for _ in range(rows + 1):
            slot = self.keep if slot >= self.max_size else slot
            self._slots.append(slot)
            slot += 1
        old_keys, old_values = map(self._ring, old)
        rings = _written(old_keys, keys, self._slots), _written(old_values, values, self._slots)
        self.offset += rows
        self._restore_ring(rings, rows)
        self._rings = rings
        return rings

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return what the newest rows attend to; layers that share another layer's keys call it."""
        if self.in_pass and self._rings is not None:
            return self._rings
        fetched: tuple[mx.array, mx.array] = super().keys_and_values()  # type: ignore[no-untyped-call]
        return fetched

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:  # noqa: N803
        """Return mlx-lm's mask, or for rings the filled slots [m, 1, 1, window] of each row; None: all."""
        if not self.in_pass or N == 1 or self.offset + N <= self.max_size:
            return super().make_mask(N, window_size, return_array)
        if self.offset >= self.max_size:
            return None
        newest = mx.arange(self.offset, self.offset + N)
        return (mx.arange(self.max_size) <= newest[:, None])[:, None, None]

    def commit(self, rows: int, of: int) -> None:
        """Go back to the state after the first `rows` of the last pass's `of` rows."""
        if self._rings is None:
            self.trim(of - rows)  # type: ignore[no-untyped-call]
            return
        self.offset -= of - rows
        self._restore_ring(self._rings, rows)
        del self._rings  # their memory would be held until the next pass

    def _ring(self, kept: mx.array) -> mx.array:
        """Return the buffer as mlx-lm makes it before it overwrites a row: as many rows as the window has."""
        if self.offset >= self.max_size:
            ring: mx.array = self._trim(kept.shape[2] - self.max_size, kept)  # type: ignore[no-untyped-call]
            return ring
        empty = mx.zeros((*kept.shape[:2], self.max_size - self.offset, kept.shape[3]), kept.dtype)
        return mx.concatenate([kept[:, :, : self.offset], empty], axis=2)

    def _restore_ring(self, rings: tuple[mx.array, mx.array], rows: int) -> None:
        last = max(rows, 1) - 1  # before the first row, the ring after it serves: its slot is dead
        # a view would keep the other rows' rings alive
        self.keys, self.values = (mx.contiguous(ring[last : last + 1]) for ring in rings)
        self._idx = self._slots[rows]


def _written(ring: mx.array, new: mx.array, slots: list[int]) -> mx.array:
    """Return the ring [1, heads, window, D] after each of the rows `new` [1, heads, m, D]: [m, heads, window, D]."""
    rings = mx.repeat(ring, new.shape[2], axis=0)
    for row in range(new.shape[2]):
        rings[row:, :, slots[row]] = new[:, :, row]
    return rings


def patch_windows(modules: Iterable[nn.Module], windows: int) -> bool:
    """Make a model's attention accept the rings that `WindowCache` returns; return whether all of it does.

    Every module that reads a cache must attend by mlx-lm's function, and by nothing of its own.

    Args:
        windows: the number of the model's windows, each of which a module reads.
    """
    readers = [module for module in modules if uses(module, "update_and_fetch")]
    known = [
        module
        for module in readers
        if uses(module, scaled_dot_product_attention.__name__) and not getattr(module, "attn_logit_softcapping", None)
    ]
    if not windows <= len(readers) == len(known):
        return False
    for module in known:
        rebind(module, scaled_dot_product_attention=_attend)
    return True


def _attend(queries: mx.array, keys: mx.array, values: mx.array, *rest: Any, **options: Any) -> mx.array:
    if keys.shape[0] == queries.shape[0]:
        return _attention(queries, keys, values, *rest, **options)
    if (filled := options.get("mask")) is None:
        rows_as_batch = queries.transpose(2, 1, 0, 3)  # [m, heads, 1, D]
        return _attention(rows_as_batch, keys, values, *rest, **options).transpose(2, 1, 0, 3)
    # The one pass of a sequence that fills the window: a mask would have other kernels than fewer keys without one.
    rows, outputs = {**options, "mask": None}, []
    counts: Any = mx.sum(filled, axis=(1, 2, 3)).tolist()
    for i, count in enumerate(counts):
        own_keys, own_values = (kept[i : i + 1, :, :count] for kept in (keys, values))
        outputs.append(_attention(queries[:, :, i : i + 1], own_keys, own_values, *rest, **rows))
    return mx.concatenate(outputs, axis=2)
