"""Fewer rows of the output matrix for drafting: over a large vocabulary, reading it is most of a draft step.

Only the drafts' own law changes, so the output stays exact (FR-Spec, Zhao et al. 2502.14856).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class DraftOutput:
    """Logits of some tokens, and -inf for all others.

    Args:
        matrix: an output or embedding matrix [V, H], whole or quantised; its rows are copied as they are.
        tokens: those that may be drafted.
    """

    def __init__(self, matrix: nn.Module, tokens: Sequence[int]) -> None:
        self._tokens = mx.array(list(tokens))
        self._rows = {
            name: matrix[name][self._tokens] for name in ("weight", "scales", "biases", "bias") if name in matrix
        }
        self._packing: Any = matrix if "scales" in matrix else None
        self._vocabulary = matrix["weight"].shape[0]
        mx.eval(self._rows)

    def __call__(self, states: mx.array) -> mx.array:
        """Logits [B, T, V] of normed hidden states [B, T, H]."""
        rows, packing = self._rows, self._packing
        if packing:
            options = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
            few = mx.quantized_matmul(states, rows["weight"], rows["scales"], rows.get("biases"), **options)
        else:
            few = states @ rows["weight"].T
        few = few + rows["bias"] if "bias" in rows else few
        nothing = mx.full((*states.shape[:-1], self._vocabulary), -mx.inf, few.dtype)
        return mx.put_along_axis(nothing, mx.broadcast_to(self._tokens, few.shape), few, axis=-1)
