"""How a model's caches go back to any row of a pass, each kind in its own way (docs/caches.md)."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

import mlx.core as mx
from mlx_lm.models.cache import ArraysCache, RotatingKVCache, make_prompt_cache

from mlxmtp.targets.passes import Commit, PassListener, in_pass
from mlxmtp.targets.patches.gated_delta import RecurrentLayer, is_gated_delta
from mlxmtp.targets.patches.window import WindowCache, patch_windows
from mlxmtp.targets.row_by_row import RowByRow, StateRows, state_readers
from mlxmtp.targets.shared_pass import SharedCaches
from mlxmtp.targets.states import CacheState, is_trimmable, leaf_caches, restore, snapshot

Cache = list[Any]
Outputs = tuple[mx.array, mx.array]
"""Logits [B, m, V] and hidden states [B, m, H]."""
Forward = Callable[[mx.array, Cache], Outputs]
"""Runs the model over tokens [B, m] of B sequences as a pass."""


class Rollback(Protocol):
    """Runs passes of a model, and keeps what takes each sequence's caches back."""

    def make_cache(self) -> Cache:
        """Return an empty cache for one sequence."""

    def run(self, forward: Forward, tokens: mx.array, caches: Sequence[Cache]) -> tuple[Outputs, list[list[Commit]]]:
        """Run tokens [B, m]; return what `forward` returns, and the commits of each sequence."""


def rollback_of(model: Any, listeners: Sequence[PassListener]) -> Rollback:
    """Return how a model's caches go back: by layers, where each has a way, or else row by row of the whole model.

    Args:
        listeners: of the model's passes; layers that run row by row tell them so.
    """
    cache = make_prompt_cache(model)
    windows = [layer for layer in cache if type(layer) is RotatingKVCache]
    patched = bool(windows) and patch_windows(model.modules(), len(windows))
    others = [leaf for leaf in leaf_caches(cache) if not (is_trimmable(leaf) or isinstance(leaf, ArraysCache))]
    readers = state_readers(model, cache) if others == (windows if patched else []) else None
    if readers is None:
        return ModelRows(model)
    gated = {
        i: layer.linear_attn
        for i, layer in enumerate(model.layers)
        if is_gated_delta(getattr(layer, "linear_attn", None))
    }
    rows = RowByRow([one for one in readers if all(one is not layer for layer in gated.values())], listeners)
    return LayerRollback(model, {i: RecurrentLayer(layer) for i, layer in gated.items()}, rows, windows=patched)


class LayerRollback:
    """Every layer's cache goes back by itself.

    Args:
        gated: gated-delta layers, by the number of their cache.
        rows: the other layers with states.
        windows: the model's attention reads `WindowCache`.
    """

    def __init__(self, model: Any, gated: dict[int, RecurrentLayer], rows: RowByRow, *, windows: bool) -> None:
        self._model = model
        self._gated = gated
        self._rows = rows
        self._windows = windows
        self._shared = SharedCaches(make_prompt_cache(model), from_zeros=gated)

    def make_cache(self) -> Cache:
        cache: Cache = make_prompt_cache(self._model)
        if self._windows:
            cache = [WindowCache.like(one) if type(one) is RotatingKVCache else one for one in cache]
        return cache

    def run(self, forward: Forward, tokens: mx.array, caches: Sequence[Cache]) -> tuple[Outputs, list[list[Commit]]]:
        before = {i: [(cache[i][0], cache[i][1]) for cache in caches] for i in self._gated}
        windows = [layer for cache in caches for layer in cache if isinstance(layer, WindowCache)]
        own: list[PassListener] = [*self._gated.values(), self._rows, *windows]
        with in_pass(own, tokens.shape[1], len(caches)), self._shared.joined(caches) as shared:
            outputs = forward(tokens, shared)
        gated, states = {i: layer.take(before[i]) for i, layer in self._gated.items()}, self._rows.take()
        commits: list[list[Commit]] = []
        for b, cache in enumerate(caches):
            commits.append([])
            for i, layer in enumerate(cache):
                if i in gated:
                    commits[b].append(partial(gated[i][b].commit, layer))
                else:
                    commits[b] += [_commit(leaf, shared[i], states, b) for leaf in leaf_caches([layer])]
        return outputs, commits


def _commit(leaf: Any, shared: Any, states: dict[int, StateRows], b: int) -> Commit:
    """Return what takes one cache of sequence b back.

    Args:
        shared: what stood for the layer's caches in the pass.
        states: of the layers that ran row by row.
    """
    if isinstance(leaf, WindowCache):
        return leaf.commit
    if not isinstance(leaf, ArraysCache):
        return partial(_trim, leaf)
    own = states.get(id(leaf))
    return partial(own.commit, leaf, None) if own else partial(states[id(shared)].commit, leaf, b)


def _trim(leaf: Any, rows: int, of: int) -> None:
    if rows < of:
        leaf.trim(of - rows)


class ModelRows:
    """The whole model runs row by row, and what its caches held after each row is kept.

    For caches that the model's own code reads, or of a kind that no other way is known for.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._shared = SharedCaches(make_prompt_cache(model))

    def make_cache(self) -> Cache:
        cache: Cache = make_prompt_cache(self._model)
        return cache

    def run(self, forward: Forward, tokens: mx.array, caches: Sequence[Cache]) -> tuple[Outputs, list[list[Commit]]]:
        states, outputs = [[_states(cache)] for cache in caches], []
        for row in mx.split(tokens, tokens.shape[1], axis=1):
            with self._shared.joined(caches) as shared:
                outputs.append(forward(row, shared))
            for own, cache in zip(states, caches, strict=True):
                own.append(_states(cache))
        logits, hidden = (mx.concatenate([*rows], axis=1) for rows in zip(*outputs, strict=True))
        return (logits, hidden), [[partial(_go_back, *own)] for own in zip(caches, states, strict=True)]


def _states(cache: Cache) -> list[CacheState]:
    return [snapshot(leaf) for leaf in leaf_caches(cache) if not is_trimmable(leaf)]


def _go_back(cache: Cache, states: list[list[CacheState]], rows: int, of: int) -> None:
    if rows == of:
        return
    kept = iter(states[rows])
    for leaf in leaf_caches(cache):
        if is_trimmable(leaf):
            leaf.trim(of - rows)
        else:
            restore(leaf, next(kept))
