"""What a round costs here: passes of the target over a few rows, draft steps, and what a round takes besides."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling

if TYPE_CHECKING:
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.heads import Head
    from mlxmtp.targets import Target

STEPS = 2
"""Draft steps in which two timed chains differ: what both pay for waiting falls out."""
ROUND_DEPTH = 3
SPARE_ROUNDS = 8
"""Rounds that are not counted: the first two, and those that are timed in parts, one in 64."""


@dataclass(frozen=True)
class CostCurve:
    """Seconds, at one length of context, on this machine (decoding.md 2).

    Args:
        context: tokens that the caches hold; of several curves, their mean.
        rows: of a pass over m rows at index m - 1.
        draft: of a draft step. other: of a round besides its pass and its drafts. Both 0.0 without a head.
    """

    context: float
    rows: tuple[float, ...]
    draft: float
    other: float

    @property
    def curve(self) -> tuple[float, ...]:
        """C(m) in passes over one row."""
        return tuple(seconds / self.rows[0] for seconds in self.rows)

    @property
    def d(self) -> float:
        """A draft step in passes over one row."""
        return self.draft / self.rows[0]


def measure_cost(target: Target, head: Head | None, sequence: Sequence, most_rows: int, repeats: int = 5) -> CostCurve:
    """Time passes over 1 to `most_rows` rows, draft steps and whole greedy rounds, each the median of `repeats`.

    All take turns, after once that is not counted: what drifts, drifts in all of them. `sequence` is left as it is.

    Args:
        target: reversible. head: of `sequence`, which has rows pending for it.

    Raises:
        ValueError: `most_rows` or `repeats` is below 1, or nothing is pending for the head.
    """
    if most_rows < 1 or repeats < 1:
        raise ValueError(f"most_rows is {most_rows} and repeats {repeats}; expected at least 1")
    twin = sequence.fork()
    chain = _Chain(head, twin) if head else None
    depth = min(ROUND_DEPTH, most_rows - 1)
    count = (2 * repeats + SPARE_ROUNDS) * (depth + 1)
    rounds = _rounds(target, head, sequence.fork(), depth, count) if head and depth else None
    measured: list[tuple[float, ...]] = []
    for _ in range(repeats + 1):
        rows = [_pass(target, twin, m) for m in range(1, most_rows + 1)]
        draft = chain.step() if chain else 0.0
        other = next(rounds) - rows[depth] - depth * draft if rounds else 0.0
        measured.append((*rows, draft, other))
    *medians, draft, other = map(statistics.median, zip(*measured[1:], strict=True))
    return CostCurve(len(sequence.tokens), tuple(medians), max(0.0, draft), max(0.0, other))


def _pass(target: Target, sequence: Sequence, m: int) -> float:
    """Seconds of a pass over m rows, taken back afterwards; the text's own tokens, as experts depend on them."""
    text = sequence.tokens[-m:]
    tokens = mx.array([(text * m)[:m]])
    start = time.perf_counter()
    rows = target.open(tokens, sequence.cache)
    mx.eval(rows.logits)
    seconds = time.perf_counter() - start
    rows.commit(0)
    return seconds


class _Chain:
    """Draft steps behind the first, which feeds the head what is pending."""

    def __init__(self, head: Head, sequence: Sequence) -> None:
        pending = sequence.take_pending()
        if pending is None:
            raise ValueError("nothing is pending for the head; expected a sequence that it goes along with")
        self._head = head
        self._cache = sequence.head_cache
        states = head(*pending, self._cache)[:, -1:]
        self._hidden = head.next_hidden(states)
        self._token = mx.argmax(head.logits(states), axis=-1)
        mx.eval(self._hidden, self._token)

    def step(self) -> float:
        """Seconds of one more step in a chain."""
        alone = self._time(1)
        return (self._time(1 + STEPS) - alone) / STEPS

    def _time(self, steps: int) -> float:
        hidden, token = self._hidden, self._token
        start = time.perf_counter()
        for _ in range(steps):
            states = self._head(hidden, token, self._cache)
            token, hidden = mx.argmax(self._head.logits(states), axis=-1), self._head.next_hidden(states)
            mx.async_eval(token)
        mx.eval(token)
        seconds = time.perf_counter() - start
        for layer in self._cache:
            layer.trim(steps)
        return seconds


def _rounds(target: Target, head: Head, sequence: Sequence, depth: int, tokens: int) -> Iterator[float]:
    """Seconds of greedy rounds, without those that are evaluated in parts, and the first, which begins a text."""
    rounds = generate(target, MTPChain(head), sequence, Sampler(Sampling()), FixedDepth(depth), never_stop, tokens)
    next(rounds)
    while True:
        start = time.perf_counter()
        one = next(rounds)
        if one.phases is None:
            yield time.perf_counter() - start
