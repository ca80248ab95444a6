"""The identity probe: logits of one row at a time held against those of passes over several, bit for bit.

Kernels are chosen by the number of rows and of keys, and a kernel adds in the same order whatever the numbers are:
two that differ show it in some of a vocabulary's logits at once (decoding.md 5). So a few passes for each number of
rows are enough, and a long context can be made by repeating a short one's keys.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.exactness.one_row import Kernel, OneRow
from mlxmtp.exactness.verdict import Guarantee, Identity, Promise
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.machine import usable_memory
from mlxmtp.targets import CacheState, is_trimmable, leaf_caches, restore, snapshot

if TYPE_CHECKING:
    from mlxmtp.targets import Cache, Target

ROWS = 8
"""The widest pass that promises are made for on GPUs: above it, attention leaves its fast kernel on Apple's."""
MOST_ROWS = MAX_DEPTH + 1
"""The widest that there can be, for devices whose kernels do not depend on it."""
READ = 32
"""Tokens that are read for the context; a longer one repeats their keys."""
SHARE = 3
"""A context may take one part in so many of the memory that the model leaves; it is there twice."""
NO_ROOM = "it takes too much memory"

Plan = tuple[tuple[int, tuple[int, ...]], ...]
"""Lengths of context, and the numbers of rows to look at there."""

EVERY = tuple(range(2, ROWS + 1))
QUICK: Plan = ((READ, EVERY), (1100, (2, 5, 8)), (4200, (2, 8)), (16_800, (2, 8)))
"""Every number of rows, and Metal's bounds of attention over many keys (1024, 4096): some 60 passes in all."""
MORE: Plan = ((READ, tuple(range(ROWS + 1, MOST_ROWS + 1))), (1100, (MOST_ROWS,)))
"""For devices that take no other kernels for more rows; as many passes again."""
FULL: Plan = tuple((context, EVERY) for context in (READ, 300, 1100, 4200, 8400, 16_800, 33_600))
"""What `mlxmtp doctor` takes the time for."""


@dataclass(frozen=True)
class Strategy:
    """One way to compute a target's passes, and what it promises where rows are then equal."""

    promise: Promise
    width: int = 1
    alone: bool = False

    def apply(self, target: Target, kernels: Sequence[Kernel] = ()) -> None:
        """Have the target compute this way from now on."""
        target.min_tokens = self.width
        found = [watcher for watcher in target.listeners if isinstance(watcher, OneRow)]
        if self.promise == "identical-one-row" and not found:
            found = [OneRow(target, kernels)]
            target.listeners += found
        for one_row in found:
            one_row.on, one_row.alone = self.promise == "identical-one-row", self.alone


NATIVE = Strategy("identical")
STRATEGIES: dict[Identity, tuple[Strategy, ...]] = {
    "fast": (NATIVE,),
    "strict": (NATIVE, Strategy("identical-one-row"), Strategy("identical-one-row", alone=True)),
    "canonical": (NATIVE, Strategy("identical-canonical", 2), Strategy("identical-canonical", ROWS)),
}
"""What is tried for each choice of the user's, the cheapest first."""


@dataclass(frozen=True)
class Finding:
    """Passes of several rows, held against one row behind a context of so many tokens.

    Args:
        rows: the widest of the passes. difference: between logits, at most. error: why there was nothing to compare.
    """

    context: int
    rows: int
    equal: bool
    difference: float = 0.0
    error: str = ""

    @property
    def told(self) -> str:
        """What was found, in words."""
        where = f"in passes of up to {self.rows} rows behind {self.context:,} tokens"
        if self.error:
            return f"could not be compared {where}: {self.error}"
        if self.equal:
            return f"the same bits {where}"
        return f"logits differ by up to {self.difference:.2g} {where}"


def probe(
    target: Target,
    tokens: Sequence[int],
    identity: Identity = "fast",
    plan: Plan = QUICK,
    kernels: Sequence[Kernel] = (),
    tell: Callable[[Strategy, Finding], None] | None = None,
) -> Guarantee:
    """Find what holds, and leave the target computing that way; as it is, where nothing does.

    Args:
        tokens: some text, of any length but 0.
        kernels: of our own, which strict identity may use where they are equal and faster (exactness/one_row.py).
        tell: told each finding.
    """
    for rung in STRATEGIES[identity]:
        for finding in findings_of(target, tokens, rung, plan, kernels):
            if tell:
                tell(rung, finding)
            if not finding.equal:
                break
        else:
            more = target.max_fast_tokens >= MOST_ROWS and _holds(target, tokens, rung, MORE, kernels)
            return Guarantee(rung.promise, MOST_ROWS if more else ROWS, finding.context, rung.width, rung.alone)
    NATIVE.apply(target)
    complete = finding.error in ("", NO_ROOM)
    return Guarantee("distribution", ROWS, finding.context, because=finding.told, complete=complete)


def use(target: Target, verdict: Guarantee, kernels: Sequence[Kernel] = ()) -> None:
    """Have a target compute as a verdict of it says."""
    _rung_of(verdict).apply(target, kernels)


def still_holds(target: Target, tokens: Sequence[int], verdict: Guarantee, kernels: Sequence[Kernel]) -> bool:
    """Whether it does in this process, which chooses among kernels anew; behind a short context."""
    return _holds(target, tokens, _rung_of(verdict), QUICK[:1], kernels)


def _rung_of(verdict: Guarantee) -> Strategy:
    return Strategy(verdict.promise, verdict.width, verdict.alone) if verdict.identical else NATIVE


def _holds(target: Target, tokens: Sequence[int], rung: Strategy, plan: Plan, kernels: Sequence[Kernel]) -> bool:
    return all(finding.equal for finding in findings_of(target, tokens, rung, plan, kernels))


def findings_of(
    target: Target, tokens: Sequence[int], rung: Strategy, plan: Plan, kernels: Sequence[Kernel]
) -> Iterator[Finding]:
    """Compare at each context of the plan that the model has room for, and beyond `QUICK` the machine."""
    most = target.text_config.get("max_position_embeddings") or plan[-1][0] + 2 * ROWS
    for number, (context, rows) in enumerate(plan):
        if number and context + 2 * ROWS > most:
            return
        try:
            rung.apply(target, kernels)
            finding = _compare(target, tokens, context, rows)
        except Exception as error:  # whatever it is, nothing has been shown
            finding = Finding(context, max(rows), equal=False, error=f"{type(error).__name__}: {error}")
        if finding is None and context > QUICK[-1][0]:
            return
        yield finding or Finding(context, max(rows), equal=False, error=NO_ROOM)


def _compare(target: Target, tokens: Sequence[int], context: int, rows: Sequence[int]) -> Finding | None:
    """Passes of m rows, and the row after them, against the same rows one at a time. None: memory is too small."""
    cache = _behind(target, tokens, context)
    if cache is None:
        return None
    text, equal, difference = _endless(tokens, READ, max(rows) + 1), True, 0.0
    alone = _logits(target, deepcopy(cache), [[token] for token in text])
    for m in rows:
        several, expected = _logits(target, deepcopy(cache), [text[:m], [text[m]]]), alone[: m + 1]
        if not bool(mx.array_equal(several, expected)):
            most = float(mx.where(several == expected, 0, mx.abs(several - expected)).max())
            if not math.isfinite(most):
                raise ValueError("the model's logits are not finite")
            equal, difference = False, max(difference, most)
    return Finding(context, max(rows), equal, difference)


def _logits(target: Target, cache: Cache, passes: list[list[int]]) -> mx.array:
    """Logits [rows, V] in float32 of one pass after the other."""
    rows = []
    for tokens in passes:
        opened = target.open(mx.array([tokens]), cache)
        opened.commit(len(tokens))
        rows.append(opened.logits[0].astype(mx.float32))
        mx.eval(rows[-1])
    return mx.concatenate(rows)


def _behind(target: Target, tokens: Sequence[int], context: int) -> Cache | None:
    """A cache of so many tokens; None: it would take too much memory."""
    cache = target.make_cache()
    target.forward(mx.array([_endless(tokens, 0, READ)]), cache)
    mx.eval([layer.state for layer in cache])
    grows = sum(snapshot(part).nbytes for part in leaf_caches(cache) if is_trimmable(part))
    if context > READ and grows // READ * context > (usable_memory() - mx.get_active_memory()) // SHARE:
        return None
    for part in leaf_caches(cache) if context > READ else ():
        state = snapshot(part)
        if state.offset:  # of keys and values, that is; a recurrent state has the size that it has
            held = min(context, getattr(part, "max_size", context))
            restore(part, CacheState(tuple(_repeated(rows, held) for rows in state.arrays), context, held))
    mx.eval([layer.state for layer in cache])
    return cache


def _repeated(rows: mx.array | None, count: int) -> mx.array | None:
    return None if rows is None else mx.take(rows, mx.arange(count) % rows.shape[2], axis=2)


def _endless(tokens: Sequence[int], start: int, count: int) -> list[int]:
    return [tokens[i % len(tokens)] for i in range(start, start + count)]
