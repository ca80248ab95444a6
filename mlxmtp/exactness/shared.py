"""Whether several sequences may share passes, and up to how many rows each then has the bits that it has alone.

A pass over B sequences of m tokens has B * m rows in its matrix products, and m in attention, which sees one sequence
at a time. Passes of one sequence have shown attention of m rows, after each class of context. So shared passes are
compared after short contexts alone, the fewest rows first: in every shape, or in few where no kernel depends on rows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.exactness.compare import PREFIX_TOKENS, OnPass, difference, repeat
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.exactness.probe import MAX_TOKENS, apply_guarantee
from mlxmtp.exactness.strategy import batch_invariant
from mlxmtp.targets.sharing import why_not_shared

if TYPE_CHECKING:
    from mlxmtp.targets import Pass, Target

MAX_ROWS = 32
"""Rows of the largest shared pass with a promise. Each number of rows up to it is compared, so more would take long."""


@dataclass(frozen=True)
class SharedRows:
    """What was found: shared passes of up to `num_rows` rows are equal; 1: none.

    Args:
        because: what differed in passes of one row more; empty: nothing differed.
        complete: no error kept passes from being compared.
    """

    num_rows: int
    because: str = ""
    complete: bool = True


def share(
    target: Target,
    tokens: Sequence[int],
    guarantee: Guarantee,
    num_sequences: int,
    apart: str | None,
    on_pass: OnPass = lambda *_: None,
) -> Guarantee:
    """Return a guarantee that also says what holds of passes over up to `num_sequences` sequences.

    Args:
        target: it computes by the guarantee's strategy.
        tokens, on_pass: as in `compare_shared`.
        apart: as `why_apart` returns.
    """
    if apart:
        return replace(guarantee, num_sequences=1, num_rows=0, not_shared=apart)
    # there is nothing to compare where the distribution alone is promised
    found = compare_shared(target, tokens, guarantee, num_sequences, on_pass) if guarantee.identical else SharedRows(0)
    patch = batch_invariant(target)
    shared = replace(
        guarantee,
        num_sequences=num_sequences,
        num_rows=found.num_rows,
        whole_attention=target.whole_attention,
        not_shared=found.because,
        complete=guarantee.complete and found.complete,
        ways=dict(patch.ways) if patch and patch.on else {},
    )
    apply_guarantee(target, shared)
    return shared


def why_apart(target: Target, identity: Identity, guarantee: Guarantee) -> str | None:
    """Return why sequences of a model share no passes; None: they can, and `share` finds up to how many rows."""
    if identity != "fast" and not guarantee.identical:
        return guarantee.because
    if guarantee.num_sequences > 1:
        return guarantee.not_shared if guarantee.max_sequences(1) < 2 else None
    return guarantee.not_shared or why_not_shared(target)


def shapes(num_sequences: int, num_tokens: int, min_tokens: int, *, every: bool = True) -> list[tuple[int, int]]:
    """Return sequences and tokens of each of all shared passes within the bounds, the fewest rows first.

    Args:
        every: else those with the fewest and with the most tokens, for each number of sequences.
    """
    found = set()
    for b in range(2, num_sequences + 1):
        lengths = range(min_tokens, min(num_tokens, MAX_ROWS // b) + 1)
        found |= {(b, m) for m in lengths if every or m in (lengths[0], lengths[-1])}
    return sorted(found, key=lambda shape: (prod(shape), shape))


def compare_shared(
    target: Target,
    tokens: Sequence[int],
    guarantee: Guarantee,
    num_sequences: int,
    on_pass: OnPass = lambda *_: None,
) -> SharedRows:
    """Compare shared passes of 2 to `num_sequences` sequences with each alone, up to the first that differs.

    Each pass keeps a part of its tokens, and the tokens after them are compared too.

    Args:
        target: it computes by the guarantee's strategy.
        tokens: some text, at least one token.
        guarantee: token-identical; what passes of one sequence have shown.
        on_pass: called with (done, total) shared passes. An exception of it ends the comparison.
    """
    every = target.max_fast_tokens < MAX_TOKENS  # else no kernel depends on the number of rows
    found, shown = shapes(num_sequences, guarantee.num_tokens, guarantee.min_tokens, every=every), 1
    steps = _differences(target, tokens, guarantee.num_tokens, num_sequences, found)
    for done, (b, m) in enumerate(found):
        below = b * m - 1 if every else shown
        where = f"in passes over {b} sequences of {m} tokens"
        try:
            largest = next(steps)
        except Exception as error:
            because = f"logits could not be compared {where}: {type(error).__name__}: {error}"
            return SharedRows(below, because, complete=False)
        on_pass(done + 1, len(found))
        if largest is not None:
            return SharedRows(below, f"logits differ by up to {largest:.2g} {where}")
        shown = b * m
    return SharedRows(shown)


def _differences(
    target: Target, tokens: Sequence[int], longest: int, num_sequences: int, found: Sequence[tuple[int, int]]
) -> Iterator[float | None]:
    """Run a shared pass of each shape, keep a part of it, and run one of one token each after it.

    Yields the largest difference between logits for each shape, None where all bits are equal.
    """
    members = [_Member(target, tokens, number, longest) for number in range(num_sequences)]
    for b, m in found:
        yield _shared_pass(target, members[:b], m) or _shared_pass(target, members[:b], 1)


def _shared_pass(target: Target, group: Sequence[_Member], count: int) -> float | None:
    """Run one shared pass over `count` tokens of each; return the largest difference, None where all bits are equal."""
    passes = target.open_shared([member.next_tokens(count) for member in group], [member.cache for member in group])
    pairs = [member.logits(one, count) for member, one in zip(group, passes, strict=True)]
    if not all(bool(mx.array_equal(together, alone)) for together, alone in pairs):
        return max(difference(*pair) for pair in pairs)
    for number, (member, one) in enumerate(zip(group, passes, strict=True)):
        member.keep(one, 1 + number % count)
    return None


class _Member:
    """One of the sequences: its caches in shared passes, and what it is alone.

    Args:
        longest: tokens of its passes alone, which have the bits of one token at a time.
    """

    def __init__(self, target: Target, tokens: Sequence[int], number: int, longest: int) -> None:
        self._target, self._text, self._longest = target, tokens, longest
        self._offset = PREFIX_TOKENS - number % PREFIX_TOKENS  # no two of few sequences have contexts of one length
        self._start = number  # nor the same text
        self.cache, self._alone = target.make_cache(), target.make_cache()
        for cache in (self.cache, self._alone):
            target.forward(self._tokens(0, self._offset), cache)
        self._read = self._offset
        self._rows: list[mx.array] = []
        """Logits [V] alone, from the offset on."""

    def next_tokens(self, count: int) -> mx.array:
        return self._tokens(self._offset, count)

    def logits(self, together: Pass, count: int) -> tuple[mx.array, mx.array]:
        """Return the logits [m, V] of a shared pass and those of the sequence alone, in float32."""
        while len(self._rows) < count:
            alone = self._target.open(self._tokens(self._read, self._longest), self._alone)
            alone.commit(self._longest)
            mx.eval(alone.logits)
            self._rows += list(alone.logits[0])
            self._read += self._longest
        found = together.logits[0].astype(mx.float32)
        return found, mx.stack(self._rows[:count]).astype(mx.float32)

    def keep(self, together: Pass, count: int) -> None:
        together.commit(count)
        self._offset += count
        del self._rows[:count]

    def _tokens(self, start: int, count: int) -> mx.array:
        return mx.array([repeat(self._text, self._start + start, count)])
