"""Sliding windows whose rows can be taken back, each row of a pass seeing what plain decoding would show it.

mlx-lm's `RotatingKVCache` overwrites its oldest row: a rejected draft would have destroyed rows that are still needed
(families.md 0.8). And once it has wrapped, one row reads its keys in the ring's order, several rows in that of time,
whose sums round differently. So every row of a verify pass gets the ring that it would find alone.
"""

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp.targets.observe import rebind

_attention: Callable[..., mx.array] = scaled_dot_product_attention


class WindowCache(RotatingKVCache):
    """A `RotatingKVCache` for one sequence that, while `in_pass`, can go back to any row of the pass just made.

    A pass over m > 1 rows that the window cannot hold reads keys and values [m, heads, window, D], one ring a row.
    The slot to be written next is dead: no row to come sees what is in it.
    """

    in_pass = False
    _rings: tuple[mx.array, mx.array] | None = None  # after each row; None: rows were appended, cutting takes them back
    _slots: list[int]  # where each row was written, and where the next one would be

    @classmethod
    def like(cls, cache: RotatingKVCache) -> "WindowCache":
        """An empty one for the same window."""
        return cls(cache.max_size, cache.keep)

    def begin_pass(self, num_tokens: int) -> None:  # noqa: ARG002
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
        self._stand(rings, rows)
        self._rings = rings
        return rings

    def make_mask(self, N: int, window_size: int | None = None, return_array: bool = False) -> Any:  # noqa: N803
        """As mlx-lm's, or for rings: the slots [m, 1, 1, window] that each row finds filled; None: all."""
        if not self.in_pass or N == 1 or self.offset + N <= self.max_size:
            return super().make_mask(N, window_size, return_array)
        if self.offset >= self.max_size:
            return None
        newest = mx.arange(self.offset, self.offset + N)
        return (mx.arange(self.max_size) <= newest[:, None])[:, None, None]

    def commit(self, rows: int, of: int) -> None:
        """Stand as if only the first `rows` of the `of` rows just fed had been."""
        if self._rings is None:
            self.trim(of - rows)  # type: ignore[no-untyped-call]
            return
        self.offset -= of - rows
        self._stand(self._rings, rows)
        del self._rings  # or they would live until the next pass

    def _ring(self, kept: mx.array) -> mx.array:
        """What mlx-lm makes of the buffer before it writes a row over another: as many rows as the window has."""
        if self.offset >= self.max_size:
            ring: mx.array = self._trim(kept.shape[2] - self.max_size, kept)  # type: ignore[no-untyped-call]
            return ring
        empty = mx.zeros((*kept.shape[:2], self.max_size - self.offset, kept.shape[3]), kept.dtype)
        return mx.concatenate([kept[:, :, : self.offset], empty], axis=2)

    def _stand(self, rings: tuple[mx.array, mx.array], rows: int) -> None:
        last = max(rows, 1) - 1  # before the first row as after it: the slot that it wrote is dead again
        # a view would keep the other rows' rings alive
        self.keys, self.values = (mx.contiguous(ring[last : last + 1]) for ring in rings)
        self._idx = self._slots[rows]


def _written(ring: mx.array, new: mx.array, slots: list[int]) -> mx.array:
    """The ring [1, heads, window, D] after each of the rows new [1, heads, m, D]: [m, heads, window, D]."""
    rings = mx.repeat(ring, new.shape[2], axis=0)
    for row in range(new.shape[2]):
        rings[row:, :, slots[row]] = new[:, :, row]
    return rings


def give_rows_their_rings(attention: nn.Module) -> None:
    """Teach one attention module of mlx-lm the keys that `WindowCache` hands out."""
    rebind(attention, scaled_dot_product_attention=_attend)


def has_windows(attention: nn.Module) -> bool:
    """Whether a module's `__call__` attends in the way that can be taught."""
    call: Any = type(attention).__call__
    return scaled_dot_product_attention.__name__ in call.__code__.co_names


def _attend(queries: mx.array, keys: mx.array, *rest: Any, **options: Any) -> mx.array:
    if keys.shape[0] == queries.shape[0]:
        return _attention(queries, keys, *rest, **options)
    rows_as_batch = queries.transpose(2, 1, 0, 3)  # [m, heads, 1, D]
    return _attention(rows_as_batch, keys, *rest, **options).transpose(2, 1, 0, 3)
