"""Draft from a part of the vocabulary: with a large one, reading the output matrix is most of a draft step.

Only the draft distribution changes, so the output stays exact. Source: FR-Spec (Zhao et al. 2502.14856).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class DraftOutput:
    """The output matrix restricted to some tokens; other tokens get -inf.

    Args:
        matrix: an output or embedding matrix [V, H], also quantised; the tokens' rows are copied.
        tokens: ids that may be drafted.
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
        """Return logits [B, T, V] of normed hidden states [B, T, H]."""
        rows, packing = self._rows, self._packing
        if packing:
            options = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
            few = mx.quantized_matmul(states, rows["weight"], rows["scales"], rows.get("biases"), **options)
        else:
            few = states @ rows["weight"].T
        few = few + rows["bias"] if "bias" in rows else few
        excluded = mx.full((*states.shape[:-1], self._vocabulary), -mx.inf, few.dtype)
        return mx.put_along_axis(excluded, mx.broadcast_to(self._tokens, few.shape), few, axis=-1)
