"""The exactness probe: compare the logits of passes over several tokens with those of one token at a time, bit for bit.

MLX selects kernels by the number of rows and of keys, and a kernel adds in one order whatever the values are. Two
kernels that add in different orders differ at once in some of a vocabulary's logits. Few passes of each length are
therefore enough, and a long context can be made from the repeated keys of a short one. See docs/exactness.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
from mlx_lm.models.cache import KVCache, RotatingKVCache

from mlxmtp.exactness.batch_invariant import BatchInvariant, Kernel
from mlxmtp.exactness.guarantee import Guarantee, Identity, Promise
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.machine import usable_memory
from mlxmtp.targets import CacheState, check_ids, is_trimmable, leaf_caches, restore, snapshot

if TYPE_CHECKING:
    from mlxmtp.targets import Cache, Target

GPU_TOKENS = 8
"""Tokens of the longest pass with a promise on a GPU: for more, attention leaves its fast kernel on Apple's."""
MAX_TOKENS = MAX_DEPTH + 1
"""Tokens of the longest possible pass: promised on devices whose kernels do not depend on its length."""
PREFIX_TOKENS = 32
"""Tokens that are prefilled; a longer context repeats their keys."""
MEMORY_FRACTION = 1 / 3
"""A context may take this part of the memory that the model leaves; two copies of it exist."""
NO_ROOM = "it takes too much memory"

ProbePlan = tuple[tuple[int, tuple[int, ...]], ...]
"""Lengths of context in tokens, and the lengths of the passes to compare at each."""

EVERY = tuple(range(2, GPU_TOKENS + 1))
"""All lengths of passes with a promise on a GPU."""
QUICK: ProbePlan = ((PREFIX_TOKENS, EVERY), (1100, (2, 5, 8)), (4200, (2, 8)), (16_800, (2, 8)))
"""The plan at load: every length, and Metal's bounds of attention over many keys (1024, 4096); some 60 passes."""
LONG_PASSES: ProbePlan = ((PREFIX_TOKENS, tuple(range(GPU_TOKENS + 1, MAX_TOKENS + 1))), (1100, (MAX_TOKENS,)))
"""The further plan on devices without other kernels for longer passes; as many passes again."""
FULL: ProbePlan = tuple((context, EVERY) for context in (PREFIX_TOKENS, 300, 1100, 4200, 8400, 16_800, 33_600))
"""The plan of `mlxmtp doctor`, which takes minutes."""


@dataclass(frozen=True)
class Strategy:
    """One way to compute a target's passes.

    Args:
        promise: what holds if passes are then equal; "identical-one-row" runs them batch-invariantly.
        min_tokens: every pass is padded to this many tokens; 1: no padding.
        row_by_row: with "identical-one-row": every matrix product runs row by row.
    """

    promise: Promise
    min_tokens: int = 1
    row_by_row: bool = False

    def apply(self, target: Target, kernels: Sequence[Kernel] = ()) -> None:
        """Make the target compute this way from now on."""
        target.min_tokens = self.min_tokens
        on = self.promise == "identical-one-row"
        patches = [listener for listener in target.listeners if isinstance(listener, BatchInvariant)]
        if on and not patches:
            patches = [BatchInvariant(target, kernels)]
            target.listeners += patches
        for patch in patches:
            patch.on, patch.row_by_row = on, self.row_by_row


NATIVE = Strategy("identical")
"""MLX's own arithmetic."""
STRATEGIES: dict[Identity, tuple[Strategy, ...]] = {
    "fast": (NATIVE,),
    "strict": (NATIVE, Strategy("identical-one-row"), Strategy("identical-one-row", row_by_row=True)),
    "canonical": (NATIVE, Strategy("identical-canonical", 2), Strategy("identical-canonical", GPU_TOKENS)),
}
"""The strategies that are tried for each choice of the user, the cheapest first."""


@dataclass(frozen=True)
class Finding:
    """The comparison of passes over several tokens with passes over one, at one length of context.

    Args:
        context: tokens before the passes.
        num_tokens: length of the longest pass.
        equal: whether all logits had the same bits.
        difference: the largest between two logits.
        error: why nothing could be compared; else empty.
    """

    context: int
    num_tokens: int
    equal: bool
    difference: float = 0.0
    error: str = ""

    @property
    def description(self) -> str:
        """The result in words."""
        where = f"in passes of up to {self.num_tokens} rows behind {self.context:,} tokens"
        if self.error:
            return f"could not be compared {where}: {self.error}"
        if self.equal:
            return f"the same bits {where}"
        return f"logits differ by up to {self.difference:.2g} {where}"

    def as_json(self) -> dict[str, Any]:
        """Return plain values under the keys of `mlxmtp doctor --json`."""
        return {"rows" if name == "num_tokens" else name: value for name, value in asdict(self).items()}


def probe(
    target: Target,
    tokens: Sequence[int],
    identity: Identity = "fast",
    plan: ProbePlan = QUICK,
    kernels: Sequence[Kernel] = (),
    on_finding: Callable[[Strategy, Finding], None] | None = None,
) -> Guarantee:
    """Apply the first strategy of an identity whose passes are equal, or else `NATIVE`; return the guarantee.

    Args:
        target: it computes by that strategy from now on.
        tokens: some text, at least one token.
        identity: what the user asks for.
        plan: which passes are compared.
        kernels: matrix products that the strategies of "strict" may use if they are equal and faster.
        on_finding: called with each comparison and its strategy.
    """
    for strategy in STRATEGIES[identity]:
        for finding in compare(target, tokens, strategy, plan, kernels):
            if on_finding:
                on_finding(strategy, finding)
            if not finding.equal:
                break
        else:
            unbounded = target.max_fast_tokens >= MAX_TOKENS
            longer = unbounded and _all_equal(target, tokens, strategy, LONG_PASSES, kernels)
            num_tokens = MAX_TOKENS if longer else GPU_TOKENS
            return Guarantee(strategy.promise, num_tokens, finding.context, strategy.min_tokens, strategy.row_by_row)
    NATIVE.apply(target)
    complete = finding.error in ("", NO_ROOM)
    return Guarantee("distribution", GPU_TOKENS, finding.context, because=finding.description, complete=complete)


def apply_guarantee(target: Target, guarantee: Guarantee, kernels: Sequence[Kernel] = ()) -> None:
    """Make a target compute by the strategy for which a guarantee was shown."""
    _strategy(guarantee).apply(target, kernels)


def still_holds(target: Target, tokens: Sequence[int], guarantee: Guarantee, kernels: Sequence[Kernel]) -> bool:
    """Return whether passes at a short context are equal in this process, which selects kernels anew."""
    return _all_equal(target, tokens, _strategy(guarantee), QUICK[:1], kernels)


def _strategy(guarantee: Guarantee) -> Strategy:
    if not guarantee.identical:
        return NATIVE
    return Strategy(guarantee.promise, guarantee.min_tokens, guarantee.row_by_row)


def _all_equal(
    target: Target, tokens: Sequence[int], strategy: Strategy, plan: ProbePlan, kernels: Sequence[Kernel]
) -> bool:
    return all(finding.equal for finding in compare(target, tokens, strategy, plan, kernels))


def compare(
    target: Target, tokens: Sequence[int], strategy: Strategy, plan: ProbePlan, kernels: Sequence[Kernel]
) -> Iterator[Finding]:
    """Yield the comparison at each context of the plan.

    Contexts that the model is too short for are left out, and those beyond `QUICK` that the memory is too small for.

    Raises:
        PromptError: the embedding has no row for a token.
    """
    check_ids(tokens, target.vocab_size)
    limit = target.context or plan[-1][0] + 2 * GPU_TOKENS
    for number, (context, lengths) in enumerate(plan):
        if number and context + 2 * GPU_TOKENS > limit:
            return
        try:
            strategy.apply(target, kernels)
            finding = _compare_at(target, tokens, context, lengths)
        except Exception as error:  # after any error, nothing has been shown
            finding = Finding(context, max(lengths), equal=False, error=f"{type(error).__name__}: {error}")
        if finding is None and context > QUICK[-1][0]:
            return
        yield finding or Finding(context, max(lengths), equal=False, error=NO_ROOM)


def _compare_at(target: Target, tokens: Sequence[int], context: int, lengths: Sequence[int]) -> Finding | None:
    """Compare passes of each length, and the token after them, with passes of one token. None: too little memory."""
    cache = _cache_of(target, tokens, context)
    if cache is None:
        return None
    text, equal, difference = _repeat(tokens, PREFIX_TOKENS, max(lengths) + 1), True, 0.0
    one_by_one = _logits(target, deepcopy(cache), [[token] for token in text])
    for m in lengths:
        several, expected = _logits(target, deepcopy(cache), [text[:m], [text[m]]]), one_by_one[: m + 1]
        if not bool(mx.array_equal(several, expected)):
            largest = float(mx.where(several == expected, 0, mx.abs(several - expected)).max())
            if not math.isfinite(largest):
                raise ValueError("the model's logits are not finite")
            equal, difference = False, max(difference, largest)
    return Finding(context, max(lengths), equal, difference)


def _logits(target: Target, cache: Cache, passes: list[list[int]]) -> mx.array:
    """Return logits [T, V] in float32 of passes that follow one another."""
    rows = []
    for tokens in passes:
        opened = target.open(mx.array([tokens]), cache)
        opened.commit(len(tokens))
        rows.append(opened.logits[0].astype(mx.float32))
        mx.eval(rows[-1])
    return mx.concatenate(rows)


def _cache_of(target: Target, tokens: Sequence[int], context: int) -> Cache | None:
    """Return a cache of `context` tokens; None: it would take too much memory."""
    cache = target.make_cache()
    target.forward(mx.array([_repeat(tokens, 0, PREFIX_TOKENS)]), cache)
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


def _lengthened(rows: mx.array | None, count: int) -> mx.array | None:
    return None if rows is None else mx.take(rows, mx.arange(count) % rows.shape[2], axis=2)


def _repeat(tokens: Sequence[int], start: int, count: int) -> list[int]:
    """Return `count` tokens of the endlessly repeated text, from `start`."""
    return [tokens[i % len(tokens)] for i in range(start, start + count)]
