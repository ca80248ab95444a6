"""Layers with states (Mamba, KDA, lightning attention, short convolutions, n-grams) that can go back to any row.

In a pass, a module that reads such a cache runs row by row, and the arrays that the cache held after each row are
remembered: references, for mlx-lm puts new arrays in the place of old ones. Nothing needs to be known of the module.
All others run once for all rows. Its weights are read once for each row; sequences of a shared pass go together.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from inspect import signature
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from mlxmtp.targets.passes import PassListener
from mlxmtp.targets.patches.observe import wrap_call
from mlxmtp.targets.shared_pass import LayerView, joined
from mlxmtp.targets.states import leaf_caches

POSITION = "offset"
"""What mlx-lm calls the position of the first row, where a layer takes it from outside (Ling 2.5)."""
MASK = "mask"
"""One row of one sequence sees all that its cache holds."""
States = list[mx.array | None]


@dataclass(frozen=True)
class StateRows:
    """What a cache held before a pass and after each of its rows, by the modules that read it."""

    by_module: list[list[States]] = field(default_factory=list)

    def commit(self, cache: ArraysCache, sequence: int | None, rows: int, of: int) -> None:
        """Set `cache` to its state after the first `rows` of the pass's `of` rows.

        Args:
            sequence: the number of the cache's sequence where states are those of all; None: they are its own.
        """
        if rows == of:
            return
        for states in self.by_module:
            for i, (first, last) in enumerate(zip(states[0], states[-1], strict=True)):
                if first is not last:  # else another module's
                    kept = states[rows][i]
                    cache[i] = kept if sequence is None or kept is None else kept[sequence : sequence + 1]


class RowByRow:
    """Modules that run row by row between `begin_pass` and `end_pass`, and the states of their caches.

    Args:
        modules: each reads one `ArraysCache`, which it is called with.
        listeners: are told of each row as of a pass over one token.
    """

    def __init__(self, modules: Iterable[nn.Module], listeners: Sequence[PassListener]) -> None:
        self._listeners = listeners
        self._shape: tuple[int, int] | None = None
        self._states: dict[int, StateRows] = {}
        for module in modules:
            names = [*signature(type(module).__call__).parameters][1:]
            wrap_call(module, partial(self._call, names))

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:
        self._shape, self._states = (num_tokens, num_sequences), {}

    def end_pass(self) -> None:
        self._shape = None

    def take(self) -> dict[int, StateRows]:
        """Return what rolls back the caches of the pass that was just built, by their identity."""
        states, self._states = self._states, {}
        return states

    def _call(self, names: Sequence[str], call: Callable[..., Any], module: nn.Module, *args: Any, **given: Any) -> Any:
        if self._shape is None:
            return call(module, *args, **given)
        num_sequences = self._shape[1]
        given = dict(zip(names, args, strict=False)) | given
        if not any(isinstance(value, LayerView) for value in given.values()):
            return self._by_rows(partial(call, module), given, num_sequences)
        outputs = []
        for b in range(num_sequences):
            own = {name: _of_sequence(value, b, num_sequences) for name, value in given.items()}
            outputs.append(self._by_rows(partial(call, module), own, 1))
        return joined(outputs)

    def _by_rows(self, call: Callable[..., Any], given: dict[str, Any], num_sequences: int) -> Any:
        assert self._shape is not None
        rows, cache = self._shape[0], next(value for value in given.values() if isinstance(value, ArraysCache))
        outputs: list[Any] = []
        states: list[States] = [[*cache.cache]]
        with self._one_row(num_sequences):
            for t in range(rows):
                outputs.append(call(**{name: _row(name, value, t, rows) for name, value in given.items()}))
                states.append([*cache.cache])
        self._states.setdefault(id(cache), StateRows()).by_module.append(states)
        return joined(outputs, axis=1)

    @contextmanager
    def _one_row(self, num_sequences: int) -> Iterator[None]:
        assert self._shape is not None
        for listener in self._listeners:
            listener.begin_pass(1, num_sequences)
        yield
        for listener in self._listeners:
            listener.begin_pass(*self._shape)


def _row(name: str, value: Any, t: int, rows: int) -> Any:
    """Return row t's part of an argument; arrays of several axes have a pass's rows on the second."""
    if name == MASK:
        return None
    if name == POSITION:
        return value + t
    return value[:, t : t + 1] if isinstance(value, mx.array) and value.ndim > 1 and value.shape[1] == rows else value


def _of_sequence(value: Any, b: int, num_sequences: int) -> Any:
    if isinstance(value, LayerView):
        return value.caches[b]
    return value[b : b + 1] if isinstance(value, mx.array) and value.shape[:1] == (num_sequences,) else value


def state_readers(model: nn.Module, cache: list[Any]) -> list[nn.Module] | None:
    """Return the innermost modules that are called with an `ArraysCache`; None: one of these is given to no module.

    They are seen in a pass over one token that is built, and never evaluated.

    Args:
        cache: an empty cache of the model.
    """
    states = {id(leaf) for leaf in leaf_caches(cache) if isinstance(leaf, ArraysCache)}
    readers: dict[int, nn.Module] = {}
    handed_on: list[set[int]] = [set()]

    def watch(call: Callable[..., Any], module: nn.Module, *args: Any, **options: Any) -> Any:
        given = states & {id(value) for value in (*args, *options.values())}
        handed_on.append(set())
        outputs = call(module, *args, **options)
        inner = handed_on.pop()
        if given - inner:
            readers[id(module)] = module
        handed_on[-1] |= given | inner
        return outputs

    kinds = [(module, type(module)) for module in model.modules()] if states else []
    for module, _ in kinds:
        wrap_call(module, watch)
    try:
        if states:
            model(mx.array([[0]]), cache=cache)
    finally:
        for module, kind in kinds:
            module.__class__ = kind
    return [*readers.values()] if states == handed_on[0] else None
