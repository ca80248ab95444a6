"""Parts of a decoding round whose behaviour a test writes down: drafters, depths, targets from tables, key logs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp.decoding.depth import Observation, Plan
from mlxmtp.decoding.loop import StopDecision
from mlxmtp.decoding.sampler import Draft, Sampler, no_draft
from mlxmtp.decoding.sampling import Distribution
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round


class ScriptedDrafter:
    """Round r proposes as many tokens as the depth asks for: right for the first `right[r]`, wrong from there on.

    Needs a sequence without a head, whose true rows it therefore never touches. Drafts carry one-hot laws.

    Args:
        truth: the tokens of the whole sequence, prompt included, that plain decoding gives.
        right: one number a round; more than the depth means all right.
        vocabulary: how many tokens there are.
    """

    def __init__(self, truth: list[int], right: Iterable[int], vocabulary: int) -> None:
        self._truth = truth
        self._right = iter(right)
        self._vocabulary = vocabulary

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        assert sequence.take_pending() is None, "a scripted drafter leaves a head's rows unread"
        right = next(self._right)
        if not depth:
            return no_draft()
        truth = self._truth[len(sequence.tokens) : len(sequence.tokens) + depth]
        tokens = [t if i < right else (t + 1) % self._vocabulary for i, t in enumerate(truth)]
        return Draft(mx.array([tokens], mx.uint32), [one_hot(t, self._vocabulary) for t in tokens])


class Depths:
    """A depth policy that follows a list and remembers the rounds; the last depth stays."""

    def __init__(self, *depths: int) -> None:
        self._depths = depths
        self._planned = -1
        self.rounds: list[Round] = []

    why = ""
    max_lookup = 0

    def begin_turn(self, tokens: object = ()) -> None:
        pass

    def plan(self, matches: Iterable[int] = (0,)) -> list[Plan]:
        return [self._plan(match) for match in matches]

    def _plan(self, match: int) -> Plan:
        """A round that was planned or queued already is in flight: then the next one is asked for."""
        number = len(self.rounds)
        if self._planned == number:
            depth = self._depth_of(number + 1)
            self._planned += depth == 0  # the loop queues it
            return Plan(depth)
        self._planned = number
        return Plan(self._depth_of(number))

    def observe(self, observations: Iterable[Observation]) -> None:
        self.rounds += [one.round for one in observations]

    def _depth_of(self, number: int) -> int:
        return self._depths[min(number, len(self._depths) - 1)]


class KeepUntil:
    """The turn ends with its `last`-th token, counted from one, wherever in a round that is."""

    def __init__(self, last: int) -> None:
        self._left = last

    def __call__(self, tokens: list[int]) -> StopDecision:
        count = min(len(tokens), self._left)
        self._left -= count
        return StopDecision(count, None if self._left else "stop")


def one_hot(token: int, vocabulary: int) -> Distribution:
    """The distribution, over the whole vocabulary, of a draft that could only be `token`."""
    return Distribution(mx.where(mx.arange(vocabulary) == token, 0.0, -mx.inf)[None])


# -- cache states ---------------------------------------------------------------------------------------------


def snapshot(cache: list[Any]) -> list[mx.array]:
    """Everything in a cache that a later pass can see: KV rows up to the offset, convolution and recurrent state.

    Of a window, its rows in the order of time; of a full one, not the row in the slot that is written next.
    """
    parts: list[mx.array] = []
    for layer in (part for several in cache for part in getattr(several, "caches", [several])):
        if isinstance(layer, RotatingKVCache):
            parts.append(mx.array(layer.offset))
            rows = min(layer.offset, layer.max_size - 1) - layer.keep
            for kept in (layer.keys, layer.values) if layer.offset else ():
                ordered = layer._temporal_order(kept)
                parts += [ordered[:, :, : layer.keep], ordered[:, :, ordered.shape[2] - rows :]]
        elif hasattr(layer, "keys"):
            parts.append(mx.array(layer.offset))
            rows = layer.offset - getattr(layer, "start_position", 0)  # attention in chunks drops earlier rows
            parts += [x[..., :rows, :] for x in (layer.keys, layer.values)] if layer.offset else []
        else:
            held = layer.cache if hasattr(layer, "cache") else vars(layer).values()
            parts += [mx.array([]) if x is None else mx.array(x) for x in held]
    mx.eval(parts)
    return parts


def assert_same_state(found: list[mx.array], expected: list[mx.array], what: object = "") -> None:
    """Equal to the last bit, dtypes included."""
    assert len(found) == len(expected), what
    for i, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one.dtype == other.dtype, (what, i)
        assert mx.array_equal(one, other), (what, i)


# -- a target from a table ------------------------------------------------------------------------------------


class TokenCache:
    """All that a target from a table remembers: the tokens it was fed, [1, n]."""

    def __init__(self) -> None:
        self.fed = mx.zeros((1, 0), mx.int32)

    @property
    def state(self) -> mx.array:
        return self.fed

    def trim(self, rows: int) -> None:
        self.fed = self.fed[:, : self.fed.shape[1] - rows]


class TableTarget:
    """A target with two tokens of memory: the logits [V * V, V] of the next token by (last but one, last).

    Implements what the loop and `Sequence` ask of `Target`. Its hidden states [1, m, 1] are the table's row numbers.
    """

    reversible = True

    def __init__(self, table: mx.array) -> None:
        self.table = table
        self.vocab_size = table.shape[-1]

    def make_cache(self) -> list[Any]:
        return [TokenCache()]

    def longest_pass(self, *offsets: int) -> int:
        return 1 << 31

    def forward(self, tokens: mx.array, cache: list[Any]) -> tuple[mx.array, mx.array]:
        before = cache[0].fed[:, -1:]
        if before.shape[1] == 0:
            before = mx.zeros((1, 1), mx.int32)
        tokens = tokens.astype(mx.int32)
        cache[0].fed = mx.concatenate([cache[0].fed, tokens], axis=1)
        rows = mx.concatenate([before, tokens[:, :-1]], axis=1) * self.vocab_size + tokens
        return self.table[rows], rows[..., None]

    def open_shared(self, tokens: Iterable[mx.array], caches: Iterable[list[Any]]) -> list[TablePass]:
        return [TablePass(*self.forward(own, cache), cache) for own, cache in zip(tokens, caches, strict=True)]


class TablePass:
    """A pass of a `TableTarget`; see `mlxmtp.targets.Pass`."""

    def __init__(self, logits: mx.array, hidden: mx.array, cache: list[Any]) -> None:
        self.logits = logits
        self.hidden = hidden
        self._cache = cache

    def commit(self, rows: int) -> None:
        self._cache[0].trim(self.logits.shape[1] - rows)


class TableDrafter:
    """Drafts from a table of its own, drawn as the law of the turn says; the counterpart of `TableTarget`."""

    def __init__(self, table: mx.array) -> None:
        self._table = table

    def propose(self, sequence: Sequence, depth: int, sampler: Sampler) -> Draft:
        before, last = ([0, *sequence.tokens])[-2:]
        row = mx.array([before * self._table.shape[-1] + last])
        tokens, laws = [], []
        for _ in range(depth):
            token, q = sampler.draw_draft(self._table[row], len(sequence.tokens), tokens)
            tokens.append(token[:, None])
            laws += [] if q is None else [q]
            row = row % self._table.shape[-1] * self._table.shape[-1] + token
        return Draft(mx.concatenate(tokens, axis=1), laws) if depth else no_draft()


def random_table(vocabulary: int, seed: int, spread: float = 1.0) -> mx.array:
    """Logits [V * V, V] for a `TableTarget`."""
    rng = np.random.default_rng(seed)
    return mx.array(rng.normal(0, spread, (vocabulary**2, vocabulary)).astype(np.float32))


# -- what the device is asked for -----------------------------------------------------------------------------

_BLOCKING = ("tolist", "item", "__bool__", "__int__", "__float__", "__index__", "__array__", "__dlpack__")


@contextmanager
def counted_evaluations() -> Iterator[list[str]]:
    """Every call that waits for the device inside the block, by name: the methods that read an array, and `mx.eval`."""
    calls: list[str] = []

    def counting(name: str, function: Any) -> Any:
        def call(*args: Any, **options: Any) -> Any:
            calls.append(name)
            return function(*args, **options)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in _BLOCKING:
            patch.setattr(mx.array, name, counting(name, getattr(mx.array, name)))
        for name in ("eval", "synchronize"):
            patch.setattr(mx, name, counting(name, getattr(mx, name)))
        yield calls


def replaced(module: Any, **names: Any) -> SimpleNamespace:
    """A stand-in for `module` with some names replaced, to be put in its place where it is used."""
    public = {name: getattr(module, name) for name in dir(module) if not name.startswith("_")}
    return SimpleNamespace(**(public | names))


def chance_of_more(value: float, freedom: int) -> float:
    """P(chi-square with `freedom` degrees of freedom > value)."""
    half = value / 2
    start, tail = (1.0, 0.0) if freedom % 2 == 0 else (0.5, math.erfc(math.sqrt(half)))
    powers = (start - 1 + i for i in range(0 if freedom % 2 == 0 else 1, (freedom + 1) // 2))
    return tail + sum(math.exp(a * math.log(half) - half - math.lgamma(a + 1)) for a in powers if half)
