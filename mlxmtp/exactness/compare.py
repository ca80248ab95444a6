"""Comparisons of the logits of passes over several tokens with those of one token at a time, bit for bit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlxmtp.exactness.strategy import Strategy
from mlxmtp.exactness.variants import TRIALS, Kernel
from mlxmtp.machine import usable_memory
from mlxmtp.targets import CacheState, is_trimmable, leaf_caches, restore, snapshot

if TYPE_CHECKING:
    from mlxmtp.targets import Cache, Target

PREFIX_TOKENS = 32
"""Tokens that are prefilled; a longer context repeats their keys."""
MEMORY_FRACTION = 1 / 3
"""A context may take this part of the memory that the model leaves; two copies of it exist."""
NO_ROOM = "it takes too much memory"

OnPass = Callable[[int, int], None]
"""Called with the passes that are done, and the total as far as it is known. An exception of it ends the comparison."""


@dataclass(frozen=True)
class Finding:
    """The comparison of passes over several tokens with passes over one, at one length of context.

    Args:
        context: tokens before the passes.
        num_tokens: length of the longest pass that was to be compared.
        agreed: passes of up to this many tokens, each of the lengths to compare, had equal bits.
        difference: the largest between two logits.
        error: why nothing could be compared; else empty.
    """

    context: int
    num_tokens: int
    agreed: int
    difference: float = 0.0
    error: str = ""

    @property
    def equal(self) -> bool:
        """Whether all logits had the same bits."""
        return self.agreed == self.num_tokens

    @property
    def description(self) -> str:
        """The result in words."""
        after = f"after {self.context:,} tokens"
        if self.error:
            return f"could not be compared in passes of up to {self.num_tokens} rows {after}: {self.error}"
        if self.equal:
            return f"the same bits in passes of up to {self.num_tokens} rows {after}"
        return f"logits differ by up to {self.difference:.2g} in passes of {self.agreed + 1} rows {after}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values under the keys of `mlxmtp doctor --json`."""
        return {
            "context": self.context,
            "rows": self.num_tokens,
            "equal": self.equal,
            "agreed": self.agreed,
            "difference": self.difference,
            "error": self.error,
        }


@dataclass
class PassComparison:
    """Compares the passes of one target by any strategy; what one token at a time gives is computed once.

    Args:
        tokens: some text, at least one token.
        on_pass: called after each pass.

    Attributes:
        done, total: passes.
    """

    target: Target
    tokens: Sequence[int]
    kernels: Sequence[Kernel] = ()
    on_pass: OnPass = lambda *_: None
    done: int = 0
    total: int = 0
    _one_by_one: dict[tuple[int, int], mx.array] = field(default_factory=dict)
    """Logits [T, V] of one token at a time, by context and width."""

    def passes(self, strategy: Strategy, context: int, lengths: Sequence[int], *, commits: bool) -> int:
        """Return how many passes `at` needs."""
        known = self._one_by_one.get((context, strategy.min_tokens))
        needed = max(lengths) + commits
        return (0 if known is not None and len(known) >= needed else needed) + (1 + commits) * len(lengths)

    def at(self, strategy: Strategy, context: int, lengths: Sequence[int], *, commits: bool) -> Finding | None:
        """Compare passes of each length after `context` tokens, up to the first that differs. None: too little memory.

        Args:
            lengths: of the passes, ascending.
            commits: keep a part of each pass, and compare the token after it too.

        Raises:
            Exception: of `on_pass` alone; any other error is part of the finding, for then nothing has been shown.
        """
        steps = self._steps(strategy, context, lengths, commits=commits)
        while True:
            try:
                found = next(steps)
            except StopIteration as end:
                finding: Finding | None = end.value
                return finding
            except Exception as error:
                return Finding(context, max(lengths), 1, error=f"{type(error).__name__}: {error}")
            self.done += found
            self.total = max(self.total, self.done)
            self.on_pass(self.done, self.total)

    def seconds(self, strategy: Strategy, length: int) -> float:
        """Return the time of a pass over `length` tokens by a strategy, the fastest of a few."""
        strategy.apply(self.target, self.kernels)
        cache: Any = self._cache(PREFIX_TOKENS)
        text, times = repeat(self.tokens, PREFIX_TOKENS, length), []
        for _ in range(TRIALS):
            branch, start = deepcopy(cache), time.perf_counter()
            _logits(self.target, branch, text, 1)
            times.append(time.perf_counter() - start)
        return min(times)

    def _steps(self, strategy: Strategy, context: int, lengths: Sequence[int], *, commits: bool) -> Any:
        """As `at`; a generator of 1 after each pass."""
        strategy.apply(self.target, self.kernels)
        found = self._cache(context)
        if found is None:
            return None
        cache: Cache = found
        most, where = max(lengths), (context, strategy.min_tokens)
        text: Any = repeat(self.tokens, PREFIX_TOKENS, most + 1)
        if len(self._one_by_one.get(where, ())) < most + commits:
            branch, rows = deepcopy(cache), []
            for token in text[: most + commits]:
                rows.append(_logits(self.target, branch, [token], 1))
                yield 1
            self._one_by_one[where] = mx.concatenate(rows)
        expected, agreed = self._one_by_one[where], 1
        for length in lengths:
            branch, kept = deepcopy(cache), 1 + context % length if commits else length
            pairs = [(_logits(self.target, branch, text[:length], kept), expected[:length])]
            yield 1
            if commits:
                pairs.append((_logits(self.target, branch, [text[kept]], 1), expected[kept : kept + 1]))
                yield 1
            if not all(bool(mx.array_equal(several, alone)) for several, alone in pairs):
                return Finding(context, most, agreed, max(difference(*pair) for pair in pairs))
            agreed = length
        return Finding(context, most, agreed)

    def _cache(self, context: int) -> Cache | None:
        """Return a cache of `context` tokens; None: it would take too much memory."""
        target, prefix = self.target, min(context, PREFIX_TOKENS)
        cache = target.make_cache()
        target.forward(mx.array([repeat(self.tokens, 0, prefix)]), cache)
        mx.eval([layer.state for layer in cache])
        if context <= PREFIX_TOKENS:
            return cache
        leaves = leaf_caches(cache)
        token_bytes = sum(snapshot(leaf).nbytes for leaf in leaves if is_trimmable(leaf)) // PREFIX_TOKENS
        if token_bytes * context > MEMORY_FRACTION * (usable_memory() - mx.get_active_memory()):
            return None
        for leaf in leaves:
            state = snapshot(leaf)
            if state.offset and isinstance(leaf, (KVCache, RotatingKVCache)):  # other states have no row for each token
                length = min(context, getattr(leaf, "max_size", context))
                restore(leaf, CacheState(tuple(_lengthened(rows, length) for rows in state.arrays), context, length))
        mx.eval([layer.state for layer in cache])
        return cache


def _logits(target: Target, cache: Cache, tokens: Sequence[int], kept: int) -> mx.array:
    """Return logits [m, V] in float32 of a pass over m tokens, of which the cache keeps the first `kept`."""
    opened = target.open(mx.array([list(tokens)]), cache)
    opened.commit(kept)
    logits = opened.logits[0].astype(mx.float32)
    mx.eval(logits)
    return logits


def difference(found: mx.array, expected: mx.array) -> float:
    """Return the largest difference between logits."""
    largest = float(mx.where(found == expected, 0, mx.abs(found - expected)).max())
    if not math.isfinite(largest):
        raise ValueError("the model's logits are not finite")
    return largest


def _lengthened(rows: mx.array | None, count: int) -> mx.array | None:
    return None if rows is None else mx.take(rows, mx.arange(count) % rows.shape[2], axis=2)


def repeat(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """Return `count` tokens of the endlessly repeated text, from `start`."""
    return [tokens[i % len(tokens)] for i in range(start, start + count)]
