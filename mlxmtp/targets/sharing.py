"""Whether several sequences of a model can share a pass: tried once, on a few tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.limits import MAX_DEPTH
from mlxmtp.targets.shared_pass import share_attention

if TYPE_CHECKING:
    from mlxmtp.targets.rollback import Cache
    from mlxmtp.targets.target import Target

CONTEXTS = (3, 7, 5)
"""Tokens of the sequences before the shared passes. More sequences than tokens: a model that adds an array of
offsets to rows of the pass gets shapes that do not fit."""
PASSES = ((1, 1, 1), (2, 2, 1), (1, 1, 1))
"""Tokens of each sequence in the passes."""
KEPT = (1, 2, 0)
"""Tokens that each sequence keeps of a pass, at most those that it has."""
GPU_ERROR = 0.05
"""Largest difference on a GPU, in parts of the largest logit: kernels for more rows round in another way there."""


def why_not_shared(target: Target) -> str | None:
    """Return why sequences of a model cannot share a pass, after a try; None: they can.

    Attention modules that cannot be split inside are split as a whole.
    """
    if not target.reversible:
        return f"{target.irreversible} cannot be rolled back"
    try:
        same = _same(target)
    except (TypeError, AttributeError, ValueError, IndexError):
        share_whole_attention(target)
        try:
            same = _same(target)
        except (TypeError, AttributeError, ValueError, IndexError) as error:
            return f"mlx-lm's {target.model_type} does not run several contexts in one pass ({error})"
    return None if same else f"mlx-lm's {target.model_type} computes otherwise with several contexts in one pass"


def share_whole_attention(target: Target) -> None:
    """Run each attention module whole for each sequence of a shared pass."""
    target.whole_attention = True
    share_attention(target.model.modules(), whole=True)


def _same(target: Target) -> bool:
    """Return whether shared passes have the logits that each sequence's own passes have."""
    together, alone = ([_context(target, count) for count in CONTEXTS] for _ in range(2))
    for counts in PASSES:
        tokens = [_tokens(target, count, start=b) for b, count in enumerate(counts)]
        shared = target.open_shared(tokens, together)
        own = [target.open(*one) for one in zip(tokens, alone, strict=True)]
        exact = target.max_fast_tokens > MAX_DEPTH  # a device without other kernels for more rows
        if not all(_equal(one.logits, other.logits, exact=exact) for one, other in zip(shared, own, strict=True)):
            return False
        for b, count in enumerate(counts):
            for one in (shared[b], own[b]):
                one.commit(min(count, KEPT[b]))
    return True


def _context(target: Target, count: int) -> Cache:
    """Return caches that have read some tokens."""
    cache = target.make_cache()
    target.forward(_tokens(target, count, start=count), cache)
    return cache


def _tokens(target: Target, count: int, start: int) -> mx.array:
    return mx.array([[(7 * (start + i) ** 2 + 3) % target.vocab_size for i in range(count)]], mx.uint32)


def _equal(found: mx.array, expected: mx.array, *, exact: bool) -> bool:
    if exact:
        return mx.array_equal(found, expected, equal_nan=True).item() is True
    return bool(mx.abs(found - expected).max() <= GPU_ERROR * mx.abs(expected).max())
