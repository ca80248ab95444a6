"""One pass over several sequences: every matrix product sees all rows, and each sequence keeps caches of its own.

A view takes the place of a layer's cache in mlx-lm's models. It hands each sequence's rows to its own cache, and
returns what they attend to as one array for each sequence. Attention then runs sequence by sequence: without padding,
and without a mask for foreign lengths. States of other layers are stacked for the pass.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import scaled_dot_product_attention
from mlx_lm.models.cache import ArraysCache, CacheList

from mlxmtp.targets.patches.latent import has_latents
from mlxmtp.targets.patches.observe import methods, rebind, uses, wrap_call

ATTENTION = scaled_dot_product_attention.__name__
Attention = Callable[..., mx.array]


class BySequence(tuple[Any, ...]):
    """Arrays of different shapes in place of one, one for each sequence. Only attention takes them."""

    @property
    def shape(self) -> tuple[int, ...]:
        raise TypeError("a model's code asks for the shape of keys that several sequences have")


class LayerView:
    """The caches of one layer, one for each sequence, in place of a single cache."""

    def __init__(self, caches: Sequence[Any]) -> None:
        self.caches = caches

    def __len__(self) -> int:
        return len(self.caches)

    def __getitem__(self, i: int) -> LayerView:
        """Return the view of one of a layer's several caches."""
        return LayerView([layer[i] for layer in self.caches])

    @property
    def offset(self) -> mx.array:
        """The sequences' offsets [B]."""
        return mx.array([cache.offset for cache in self.caches])

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[BySequence, BySequence]:
        """Append each sequence's rows of [B, heads, m, D] to its own cache; return the keys and values of each."""
        rows = zip(mx.split(keys, len(self)), mx.split(values, len(self)), strict=True)
        fetched = [cache.update_and_fetch(*own) for cache, own in zip(self.caches, rows, strict=True)]
        return _each(fetched)

    def keys_and_values(self) -> tuple[BySequence, BySequence]:
        """Return what the newest rows attend to, for layers that share another layer's keys."""
        fetched = [cache.keys_and_values() for cache in self.caches]
        return _each(fetched)

    def fetch(self, rows: int) -> tuple[tuple[BySequence, BySequence], BySequence | None]:
        """Return the keys and values of each sequence and their masks, as `SharedKVCache.fetch`."""
        keys, masks = zip(*(cache.fetch(rows) for cache in self.caches), strict=True)
        return _each(keys), _one_or_each(masks)

    def make_mask(self, *args: Any, **options: Any) -> Any:
        """Return the mask of m rows of one sequence where all have the same, or else one for each."""
        return _one_or_each([cache.make_mask(*args, **options) for cache in self.caches])


class StackedStates:
    """The states [B, ...] of one layer, of all sequences of a pass.

    They are kept for the next pass: where that has the same sequences, and none has gone back, nothing is copied.

    Args:
        from_zeros: the states of a sequence that has read nothing are zeros.
    """

    def __init__(self, *, from_zeros: bool) -> None:
        self._from_zeros = from_zeros
        self._states: list[mx.array | None] = []
        self._parts: list[list[mx.array | None]] = []

    def stack(self, caches: Sequence[Any]) -> Any:
        """Return one cache with the states of all; where some have states of another shape, or none, a view."""
        stacked: Any = ArraysCache(len(caches[0].cache))
        own = [cache.cache for cache in caches]
        if not (self._from_zeros or all(map(_same_shapes, zip(*own, strict=True)))):
            return LayerView(caches)
        kept = len(own) == len(self._parts) and all(map(_same_arrays, own, self._parts))
        stacked.cache = [*self._states] if kept else [_stack(states) for states in zip(*own, strict=True)]
        return stacked

    def release(self) -> None:
        """Keep no states."""
        self._states, self._parts = [], []

    def unstack(self, stacked: Any, caches: Sequence[Any]) -> None:
        """Give the states after a pass to the sequences' own caches."""
        if isinstance(stacked, LayerView):
            return
        self._states = [*stacked.cache]
        parts = zip(*(mx.split(state, len(caches)) for state in stacked.cache), strict=True)
        self._parts = [[*own] for own in parts]
        for cache, own in zip(caches, self._parts, strict=True):
            cache.cache = [*own]


class SharedCaches:
    """Caches of a model that stand for those of several sequences, pass after pass.

    Args:
        cache: an empty cache of the model.
        from_zeros: layers whose states are zeros before the first token.
    """

    def __init__(self, cache: Sequence[Any], from_zeros: Container[int] = ()) -> None:
        states = (i for i, layer in enumerate(cache) if isinstance(layer, ArraysCache))
        self._stacked = {i: StackedStates(from_zeros=i in from_zeros) for i in states}

    @contextmanager
    def joined(self, caches: Sequence[list[Any]]) -> Iterator[list[Any]]:
        """Yield one cache for one pass over these sequences; a single sequence's own."""
        if len(caches) == 1:
            for states in self._stacked.values():
                states.release()
            yield caches[0]
            return
        shared = shared_cache(caches, self._stacked)
        yield shared
        for i, states in self._stacked.items():
            states.unstack(shared[i], [cache[i] for cache in caches])


def shared_cache(caches: Sequence[list[Any]], stacked: Mapping[int, StackedStates] = MappingProxyType({})) -> list[Any]:
    """Return a model's cache that stands for the caches of several sequences, for one pass.

    Args:
        stacked: of the layers with states, by layer.
    """
    layers = enumerate(zip(*caches, strict=True))
    return [stacked[i].stack(own) if i in stacked else LayerView(own) for i, own in layers]


def first_leaf(layer: Any) -> Any:
    """Return the first of a layer's several caches, or its one cache; of a view, a view."""
    several = isinstance(layer.caches[0] if isinstance(layer, LayerView) else layer, CacheList)
    return layer[0] if several else layer


def share_attention(modules: Iterable[nn.Module], *, whole: bool = False) -> None:
    """Have attention modules accept views.

    Modules that hand keys from their cache on to attention as they are need their attention alone split. Others, with
    latents or with an attention of their own, run once for each sequence.

    Args:
        whole: every module that reads a cache runs once for each sequence.
    """
    for module in modules:
        reads, attention = uses(module, "update_and_fetch"), attention_of(module)
        if has_latents(module) or (whole and (reads or attention)) or (reads and not attention):
            wrap_call(module, _by_sequence)
        elif attention:
            rebind(module, **{ATTENTION: split_attention(attention)})


def split_attention(attention: Attention) -> Attention:
    """Return the attention that runs sequence by sequence where keys are `BySequence`."""

    def attend(queries: mx.array, keys: Any, values: Any, *rest: Any, **options: Any) -> mx.array:
        if not isinstance(keys, BySequence):
            return attention(queries, keys, values, *rest, **options)
        outputs = []
        for b, own_queries in enumerate(mx.split(queries, len(keys))):
            own = {name: _of_sequence(value, b) for name, value in options.items()}
            others = (_of_sequence(value, b) for value in rest)
            outputs.append(attention(own_queries, keys[b], values[b], *others, **own))
        return mx.concatenate(outputs, axis=0)

    return attend


def attention_of(module: nn.Module) -> Attention | None:
    """Return the function that a module's methods call for attention; None: they call none of mlx-lm's."""
    scopes = (call.__globals__ for call in methods(module).values() if ATTENTION in call.__code__.co_names)
    return next((scope[ATTENTION] for scope in scopes if ATTENTION in scope), None)


def _by_sequence(call: Callable[..., Any], module: nn.Module, *args: Any, **options: Any) -> Any:
    """Run a module once for each sequence, with its rows and its own caches."""
    counts = {len(value) for value in (*args, *options.values()) if isinstance(value, LayerView | BySequence)}
    if not counts:
        return call(module, *args, **options)
    outputs = []
    for b in range(counts.pop()):
        own = (_rows_of(value, b) for value in args)
        outputs.append(call(module, *own, **{name: _rows_of(value, b) for name, value in options.items()}))
    return joined(outputs)


def _rows_of(value: Any, b: int) -> Any:
    """Return one sequence's part of an argument; arrays of three axes or more have one row for each sequence."""
    return value[b : b + 1] if isinstance(value, mx.array) and value.ndim > 2 else _of_sequence(value, b)


def _of_sequence(value: Any, b: int) -> Any:
    if isinstance(value, BySequence):
        return value[b]
    return value.caches[b] if isinstance(value, LayerView) else value


def joined(outputs: list[Any], axis: int = 0) -> Any:
    """Return what a module returned in parts, an array or a tuple of them, as one."""
    if isinstance(outputs[0], tuple):
        return tuple(joined([*parts], axis) for parts in zip(*outputs, strict=True))
    return mx.concatenate(outputs, axis=axis) if isinstance(outputs[0], mx.array) else outputs[0]


def _each(pairs: Iterable[tuple[mx.array, mx.array]]) -> tuple[BySequence, BySequence]:
    """Return the keys of each sequence, and the values of each."""
    keys, values = zip(*pairs, strict=True)
    return BySequence(keys), BySequence(values)


def _one_or_each(masks: Sequence[Any]) -> Any:
    if any(isinstance(mask, mx.array) for mask in masks) or any(mask != masks[0] for mask in masks):
        return BySequence(masks)
    return masks[0]


def _same_arrays(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return all(a is b for a, b in zip(one, other, strict=True))


def _same_shapes(states: Sequence[mx.array | None]) -> bool:
    shapes = {None if state is None else tuple(state.shape) for state in states}
    return len(shapes) == 1 and None not in shapes


def _stack(states: Sequence[mx.array | None]) -> mx.array | None:
    """Return states [1, ...] as one [B, ...]; a sequence that has read nothing has zeros."""
    some = next((state for state in states if state is not None), None)
    if some is None:
        return None
    return mx.concatenate([mx.zeros_like(some) if state is None else state for state in states])
