"""What of a sequence's caches has to be kept so that they can go back to where they stand.

A cache that only grows goes back by being cut; a recurrent state and a window that has wrapped do not, and are kept
whole. A model's layers, and the parts of a layer that has several (`CacheList`), are looked at one by one.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, KVCache, RotatingKVCache

from mlxmtp.targets.shared import SharedRows


@dataclass(frozen=True)
class CacheState:
    """One part's arrays, None before there are any.

    Args:
        arrays: keys and values [1, heads, rows, D], or a recurrent layer's states.
        offset: rows that keys and values have seen. slot: where a window writes its next row.
    """

    arrays: tuple[mx.array | None, ...]
    offset: int = 0
    slot: int = 0

    @property
    def nbytes(self) -> int:
        return sum(0 if array is None else array.nbytes for array in self.arrays)


def leaf_caches(cache: Iterable[Any]) -> list[Any]:
    """The single caches that a model's cache consists of."""
    return [
        part for layer in cache for part in (leaf_caches(layer.caches) if isinstance(layer, CacheList) else [layer])
    ]


def is_trimmable(part: Any) -> bool:
    """Whether a part only grows, so that cutting its end takes rows back; a view of another does as that one does."""
    return isinstance(part, (KVCache, SharedRows))


def can_snapshot(part: Any) -> bool:
    """Whether `snapshot` knows this kind of cache."""
    return is_trimmable(part) or isinstance(part, (RotatingKVCache, ArraysCache))


def snapshot(part: Any, rows: int | None = None) -> CacheState:
    """What `restore` makes an equal part from, lazy; later passes over the part do not change it.

    Args:
        rows: of a part that is_trimmable, take only its first so many.
    """
    if isinstance(part, SharedRows):
        return CacheState(())
    if isinstance(part, ArraysCache):
        return CacheState(tuple(None if array is None else mx.contiguous(array) for array in part.cache))
    if isinstance(part, RotatingKVCache):
        return _window(part)
    rows = part.offset if rows is None else rows
    if part.keys is None or not rows:
        return CacheState((None, None))
    return CacheState((part.keys[:, :, :rows], part.values[:, :, :rows]), rows)


def restore(part: Any, state: CacheState) -> None:
    """Make a part stand where `state` was taken. Its arrays are shared: a pass writes into copies of them."""
    if hasattr(part, "cache"):
        part.cache = list(state.arrays)
    elif not isinstance(part, SharedRows):
        part.keys, part.values = state.arrays
        part.offset = state.offset
    if isinstance(part, RotatingKVCache):
        part._idx = state.slot


def _window(part: RotatingKVCache) -> CacheState:
    """A window's rows; after a chunk that was longer than it, its newest, in the order of time."""
    if part.keys is None:
        return CacheState((None, None), part.offset, part._idx)
    kept: Any = (part.keys, part.values)
    slot, surplus = part._idx, part.keys.shape[2] - part.max_size
    if surplus > 0:
        kept = (part._trim(surplus, rows) for rows in kept)
        slot = part.max_size
    elif part.offset < part.keys.shape[2]:
        kept = (rows[:, :, : part.offset] for rows in kept)
    return CacheState(tuple(mx.contiguous(rows) for rows in kept), part.offset, slot)
