"""Copy the state of a sequence's caches, and restore it.

A cache that only grows is trimmed to go back. A recurrent state, or a window that has wrapped, cannot be trimmed, and
its whole state is kept. The functions take single caches; `leaf_caches` finds them in a model's cache.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, CacheList, ChunkedKVCache, KVCache, RotatingKVCache

from mlxmtp.targets.shared_kv import SharedKVCache


@dataclass(frozen=True)
class CacheState:
    """The state of one cache.

    Args:
        arrays: keys and values [1, heads, T, D], or what else the cache holds; None before the first token.
        offset: tokens that the cache has seen; 0 for a recurrent layer's states.
        slot: where a window writes its next row; of attention in chunks, the position of the first row.
    """

    arrays: tuple[mx.array | None, ...]
    offset: int = 0
    slot: int = 0

    @property
    def nbytes(self) -> int:
        return sum(0 if array is None else array.nbytes for array in self.arrays)


def leaf_caches(layers: Iterable[Any]) -> list[Any]:
    """Return the single caches in a model's cache: a `CacheList` has several per layer."""
    return [
        cache for layer in layers for cache in (leaf_caches(layer.caches) if isinstance(layer, CacheList) else [layer])
    ]


def is_trimmable(cache: Any) -> bool:
    """Return whether a cache only grows, so that a trim rolls it back."""
    return isinstance(cache, (KVCache, SharedKVCache))


def can_snapshot(cache: Any) -> bool:
    """Return whether `snapshot` supports this kind of cache."""
    if is_trimmable(cache) or isinstance(cache, (RotatingKVCache, ArraysCache)):
        return True
    return hasattr(cache, "offset") and all(isinstance(v, mx.array | int | None) for v in vars(cache).values())


def expected_bytes(caches: Iterable[Any], tokens: int) -> int:
    """Return the bytes that single caches of another sequence are expected to have after `tokens` tokens.

    Args:
        caches: of a sequence that has read something.
    """
    total = 0
    for cache in caches:
        keys = getattr(cache, "keys", None) if is_trimmable(cache) else None
        total += cache.nbytes if keys is None else cache.nbytes * tokens // keys.shape[2]
    return total


def snapshot(cache: Any, rows: int | None = None) -> CacheState:
    """Return the state of a cache, lazily; later passes do not change it.

    Args:
        rows: of a trimmable cache, copy only the first `rows` tokens; None: all.
    """
    if isinstance(cache, SharedKVCache):
        return CacheState(())
    if isinstance(cache, ArraysCache):
        return CacheState(tuple(None if array is None else mx.contiguous(array) for array in cache.cache))
    if isinstance(cache, RotatingKVCache):
        return _window(cache)
    if not is_trimmable(cache):
        held = (getattr(cache, name) for name in _arrays(cache))
        copies = tuple(None if array is None else mx.contiguous(array) for array in held)
        return CacheState(copies, cache.offset, getattr(cache, "start_position", 0))
    rows = cache.offset if rows is None else rows
    if cache.keys is None or not rows:
        return CacheState((None, None))
    return CacheState((cache.keys[:, :, :rows], cache.values[:, :, :rows]), rows)


def restore(cache: Any, state: CacheState) -> None:
    """Set a cache to `state`, which later passes do not change."""
    # another array of the same memory: a cache writes rows into the array that it has
    arrays: list[Any] = [None if array is None else mx.contiguous(array) for array in state.arrays]
    if isinstance(cache, ArraysCache):
        cache.cache = arrays
    elif not isinstance(cache, SharedKVCache):
        for name, array in zip(_arrays(cache), arrays, strict=True):
            setattr(cache, name, array)
        cache.offset = state.offset
    if isinstance(cache, RotatingKVCache):
        cache._idx = state.slot
    elif isinstance(cache, ChunkedKVCache):
        cache.start_position = state.slot


def detach(cache: Any) -> None:
    """Give a recurrent layer arrays of its own in place of parts of those of a shared pass."""
    if isinstance(cache, ArraysCache):
        restore(cache, snapshot(cache))


def _arrays(cache: Any) -> list[str]:
    """Return the names of the attributes that hold a cache's arrays."""
    if isinstance(cache, (KVCache, RotatingKVCache)):
        return ["keys", "values"]
    return [name for name, value in vars(cache).items() if not isinstance(value, int)]


def _window(cache: RotatingKVCache) -> CacheState:
    """Return the state of a window; after a chunk longer than the window, its newest rows in the order of time."""
    if cache.keys is None:
        return CacheState((None, None), cache.offset, cache._idx)
    kept: Any = (cache.keys, cache.values)
    slot, surplus = cache._idx, cache.keys.shape[2] - cache.max_size
    if surplus > 0:
        kept = (cache._trim(surplus, rows) for rows in kept)
        slot = cache.max_size
    elif cache.offset < cache.keys.shape[2]:
        kept = (rows[:, :, : cache.offset] for rows in kept)
    return CacheState(tuple(mx.contiguous(rows) for rows in kept), cache.offset, slot)
