"""The exactness probe: which strategy gives equal passes on this machine, and up to how many tokens.

MLX selects kernels by the number of rows and of keys, and a kernel adds in one order whatever the values are. Two
kernels that add in different orders differ at once in some of a vocabulary's logits. One pass of each length after each
class of context is therefore enough, and a long context can be made from the repeated keys of a short one. See
docs/exactness.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from mlxmtp.exactness.compare import NO_ROOM, PREFIX_TOKENS, Finding, OnPass, PassComparison
from mlxmtp.exactness.guarantee import Guarantee, Identity
from mlxmtp.exactness.strategy import NATIVE, Strategy, batch_invariant, strategies, strategy_of
from mlxmtp.exactness.variants import Kernel
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.targets import check_ids, leaf_caches
from mlxmtp.targets.patches.window import WindowCache
from mlxmtp.targets.sharing import share_whole_attention

if TYPE_CHECKING:
    from mlxmtp.targets import Target

GPU_TOKENS = 8
"""Tokens of the longest pass with a promise on a GPU: for more, attention leaves its fast kernel on Apple's."""
MAX_TOKENS = MAX_DEPTH + 1
"""Tokens of the longest possible pass: promised on devices whose kernels do not depend on its length."""
ENOUGH_TOKENS = 4
"""Tokens of a pass at depth 3. A strategy that holds for fewer is taken only where no other holds for as many."""


@dataclass(frozen=True)
class ProbePlan:
    """After which contexts, in tokens, passes are compared.

    Args:
        every_commit: keep a part of each pass after every context; else after the first and at windows alone, for what
            a rollback does does not depend on the number of keys.
    """

    contexts: tuple[int, ...]
    every_commit: bool = False


QUICK = ProbePlan((PREFIX_TOKENS, 1100, 4200, 16_800))
"""The plan at load: Metal's bounds of attention over many keys (1024, 4096), and a long context."""
FULL = ProbePlan((PREFIX_TOKENS, 300, 1100, 4200, 8400, 16_800, 33_600), every_commit=True)
"""The plan of `mlxmtp doctor`, which takes minutes."""
LONG_LENGTHS = {PREFIX_TOKENS: tuple(range(GPU_TOKENS + 1, MAX_TOKENS + 1)), 1100: (MAX_TOKENS,)}
"""Further passes after each context, on devices without other kernels for longer passes."""


@dataclass
class _Shown:
    """What was shown of a strategy: passes of 2 to `num_tokens` tokens are equal after each context; 1: none."""

    strategy: Strategy
    num_tokens: int
    findings: list[Finding] = field(default_factory=list)


def probe(
    target: Target,
    tokens: Sequence[int],
    identity: Identity = "fast",
    plan: ProbePlan = QUICK,
    kernels: Sequence[Kernel] = (),
    on_finding: Callable[[Strategy, Finding], None] | None = None,
    on_pass: OnPass = lambda *_: None,
) -> Guarantee:
    """Apply the best strategy of an identity whose passes are equal, or else `NATIVE`; return the guarantee.

    The best is the first that holds for `ENOUGH_TOKENS`, or as many as the target uses; else the one that holds for
    most. With kernels of ours "strict" also measures whether they are faster than MLX's arithmetic, where both hold.

    Args:
        target: it computes by that strategy from now on.
        tokens: some text, at least one token.
        identity: what the user asks for.
        plan: which passes are compared.
        kernels: matrix products that the strategies of "strict" may use if they are equal and faster.
        on_finding: called with each comparison and its strategy.
        on_pass: called with (done, total) passes. An exception of it ends the probe.

    Raises:
        PromptError: the embedding has no row for a token.
    """
    check_ids(tokens, target.vocab_size)
    most = min(target.max_fast_tokens, GPU_TOKENS)
    enough = min(most, ENOUGH_TOKENS)
    compared = PassComparison(target, tokens, kernels, on_pass)
    shown: list[_Shown] = []
    for strategy in strategies(target, identity, most):
        shown.append(_show(compared, strategy, plan, most, on_finding))
        holds = shown[-1].num_tokens >= enough
        if holds and not (strategy == NATIVE and identity == "strict" and kernels):
            break
    best = _best(compared, shown, enough)
    if best.num_tokens < 2:
        NATIVE.apply(target)
        last = shown[-1].findings[-1]
        complete = last.error in ("", NO_ROOM)
        return Guarantee("distribution", GPU_TOKENS, last.context, because=last.description, complete=complete)
    strategy, num_tokens = best.strategy, best.num_tokens
    if target.max_fast_tokens >= MAX_TOKENS and num_tokens == GPU_TOKENS and _long_passes_equal(compared, strategy):
        num_tokens = MAX_TOKENS
    strategy.apply(target, kernels)
    patch = batch_invariant(target)
    return Guarantee(
        strategy.promise,
        num_tokens,
        max(finding.context for finding in best.findings),
        strategy.min_tokens,
        strategy.row_by_row,
        strategy.stock,
        strategy.attention,
        ways=dict(patch.ways) if patch and patch.on else {},
    )


def apply_guarantee(target: Target, guarantee: Guarantee, kernels: Sequence[Kernel] = ()) -> None:
    """Make a target compute by the strategy for which a guarantee was shown, with the variants that it selected.

    Where shared passes were compared, they keep within what was shown to be identical.
    """
    strategy_of(guarantee).apply(target, kernels, guarantee.ways)
    if guarantee.whole_attention and not target.whole_attention:
        share_whole_attention(target)
    if guarantee.identical and guarantee.num_sequences > 1:
        target.longest_shared = guarantee.max_tokens


def still_holds(target: Target, tokens: Sequence[int], guarantee: Guarantee, kernels: Sequence[Kernel]) -> bool:
    """Return whether passes at a short context are equal in this process, as the guarantee says."""
    lengths = range(2, min(guarantee.num_tokens, GPU_TOKENS) + 1)
    finding = PassComparison(target, tokens, kernels).at(strategy_of(guarantee), PREFIX_TOKENS, lengths, commits=False)
    return finding is not None and finding.equal


def _best(compared: PassComparison, shown: Sequence[_Shown], enough: int) -> _Shown:
    """Return the fastest of what holds for enough tokens; else the first of what holds for most."""
    holding = [one for one in shown if one.num_tokens >= enough]
    if len(holding) > 1:
        length = min(one.num_tokens for one in holding)
        return min(holding, key=lambda one: compared.seconds(one.strategy, length))
    return max(shown, key=lambda one: one.num_tokens)


def _show(
    compared: PassComparison,
    strategy: Strategy,
    plan: ProbePlan,
    most: int,
    on_finding: Callable[[Strategy, Finding], None] | None,
) -> _Shown:
    """Compare passes of 2 to `most` tokens, the longest that is equal after each context."""
    shown = _Shown(strategy, most)
    contexts = list(_contexts(compared.target, plan, most, strategy.min_tokens))
    for number, (context, commits) in enumerate(contexts):
        lengths = range(2, shown.num_tokens + 1)
        ahead = (compared.passes(strategy, c, lengths, commits=kept) for c, kept in contexts[number:])
        compared.total = compared.done + sum(ahead)
        finding = compared.at(strategy, context, lengths, commits=commits)
        if finding is None and context > QUICK.contexts[-1]:
            continue  # only the doctor asks for it
        finding = finding or Finding(context, shown.num_tokens, 1, error=NO_ROOM)
        if on_finding:
            on_finding(strategy, finding)
        shown.findings.append(finding)
        shown.num_tokens = finding.agreed
        if shown.num_tokens < 2:
            break
    return shown


def _contexts(target: Target, plan: ProbePlan, most: int, min_tokens: int) -> Iterator[tuple[int, bool]]:
    """Yield the contexts that the model is long enough for, and whether passes are kept in part there.

    A sliding window that a pass fills is a class of its own: its keys are cut, so that each row attends alone
    (targets/patches/window.py). Padded passes fill it at other tokens than the passes they are compared with do, from
    the last context on that a padded pass leaves room in.
    """
    limit = target.context or plan.contexts[-1] + 2 * GPU_TOKENS
    for number, context in enumerate(plan.contexts):
        if not number or context + 2 * GPU_TOKENS <= limit:
            yield context, plan.every_commit or not number
    windows = {leaf.max_size for leaf in leaf_caches(target.make_cache()) if isinstance(leaf, WindowCache)}
    for window in sorted(windows):
        if window - (most - 1) > 0 and window + GPU_TOKENS <= limit:
            yield window - min(3, most - 1), True
            if min_tokens > 1:
                yield window - min_tokens, True


def _long_passes_equal(compared: PassComparison, strategy: Strategy) -> bool:
    for context, lengths in LONG_LENGTHS.items():
        commits = context == PREFIX_TOKENS
        compared.total = compared.done + compared.passes(strategy, context, lengths, commits=commits)
        finding = compared.at(strategy, context, lengths, commits=commits)
        if finding is None or not finding.equal:
            return False
    return True
