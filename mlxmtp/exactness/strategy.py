"""Strategies: the ways to compute a target's passes that a user's choice of identity tries."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from mlxmtp.exactness.batch_invariant import BatchInvariant, offers_stock
from mlxmtp.exactness.guarantee import Guarantee, Identity, Promise
from mlxmtp.exactness.variants import Kernel

if TYPE_CHECKING:
    from mlxmtp.targets import Target


@dataclass(frozen=True)
class Strategy:
    """One way to compute a target's passes.

    Args:
        promise: what holds if passes are then equal; "identical-one-row" runs them batch-invariantly.
        min_tokens: every pass is padded to this many tokens; 1: no padding.
        row_by_row, stock, attention: with "identical-one-row": as in `BatchInvariant`.
    """

    promise: Promise
    min_tokens: int = 1
    row_by_row: bool = False
    stock: bool = False
    attention: bool = False

    def apply(self, target: Target, kernels: Sequence[Kernel] = (), ways: Mapping[str, str] | None = None) -> None:
        """Make the target compute this way from now on; `ways`: the variants that an earlier process selected."""
        target.min_tokens = self.min_tokens
        on = self.promise == "identical-one-row"
        patch = batch_invariant(target)
        if on and not patch:
            patch = BatchInvariant(target, kernels)
            target.listeners.append(patch)
        if patch:
            patch.on, patch.row_by_row, patch.stock, patch.attention = on, self.row_by_row, self.stock, self.attention
            patch.ways.update(ways or {})


def batch_invariant(target: Target) -> BatchInvariant | None:
    """Return what makes the target's passes batch-invariant, if a strategy has needed it so far."""
    return next((listener for listener in target.listeners if isinstance(listener, BatchInvariant)), None)


NATIVE = Strategy("identical")
"""MLX's own arithmetic."""
ONE_ROW = Strategy("identical-one-row")


def strategies(target: Target, identity: Identity, most: int) -> tuple[Strategy, ...]:
    """Return the strategies that an identity tries for passes of up to `most` tokens, the cheapest first.

    Each of the one-row strategies has a part of the choices of the one before it.
    """
    if identity == "strict":
        stock = offers_stock(target)
        one_row = replace(ONE_ROW, stock=stock, attention=True), replace(ONE_ROW, stock=stock), ONE_ROW
        return tuple(dict.fromkeys((NATIVE, *one_row, replace(ONE_ROW, row_by_row=True))))
    if identity == "canonical":
        return NATIVE, *(Strategy("identical-canonical", width) for width in sorted({2, most}))
    return (NATIVE,)


def strategy_of(guarantee: Guarantee) -> Strategy:
    """Return the strategy for which a guarantee was shown."""
    if not guarantee.identical:
        return NATIVE
    shown = guarantee
    return Strategy(shown.promise, shown.min_tokens, shown.row_by_row, shown.stock, shown.attention)
