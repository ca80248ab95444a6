"""Constraints: which tokens may come, by the tokens before them. The host decides, token by token."""

from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx


class Constraint(Protocol):
    """Allows and forbids the tokens of one turn; what is forbidden has probability 0."""

    def masks(self, drafts: Sequence[int]) -> mx.array:
        """True [k + 1, W] where a token may come: behind those that stand, then behind each of the k drafts.

        W is the constraint's own vocabulary; tokens beyond it are forbidden. Rows behind a draft that may not come
        are never reached and allow something. The constraint's state is unchanged afterwards.
        """

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens stand now."""


def forbid(logits: mx.array, masks: mx.array) -> mx.array:
    """Logits [B, m, V] with -inf where masks [m, W] forbid."""
    beyond = logits.shape[-1] - masks.shape[-1]
    allowed = mx.pad(masks, [(0, 0), (0, beyond)]) if beyond > 0 else masks[:, : logits.shape[-1]]
    return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))
