"""Draft from a part of the vocabulary: with a large one, reading the output matrix is most of a draft step.

Only the draft distribution changes, so the output stays exact. Source: FR-Spec (Zhao et al. 2502.14856).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Rows = dict[str, mx.array]


class DraftOutput:
    """The output matrix restricted to some tokens; other tokens get -inf.

    Args:
        matrix: an output or embedding matrix [V, H], also quantised.
        tokens: ids that may be drafted; their rows are copied.
        first: the ids below it may be drafted too; their rows are a part of the matrix as it is, without a copy.
    """

    def __init__(self, matrix: nn.Module, tokens: Sequence[int], first: int = 0) -> None:
        self._matrix: Any = matrix
        self._first = self._part(slice(first)) if first else None
        self.choose(tokens)

    def choose(self, tokens: Sequence[int]) -> None:
        """Draft these tokens from now on, besides the first ones."""
        self._tokens = mx.array(list(tokens))
        self._rows = self._part(self._tokens)

    def __call__(self, states: mx.array) -> mx.array:
        """Return logits [B, T, V] of normed hidden states [B, T, H]."""
        few = self._project(self._rows, states)
        first = [] if self._first is None else [self._project(self._first, states)]
        excluded = self._matrix["weight"].shape[0] - sum(part.shape[-1] for part in first)
        others = mx.full((*states.shape[:-1], excluded), -mx.inf, few.dtype)
        logits = mx.concatenate([*first, others], axis=-1)
        return mx.put_along_axis(logits, mx.broadcast_to(self._tokens, few.shape), few, axis=-1)

    def _part(self, rows: mx.array | slice) -> Rows:
        names = ("weight", "scales", "biases", "bias")
        part = {name: self._matrix[name][rows] for name in names if name in self._matrix}
        mx.eval(part)
        return part

    def _project(self, rows: Rows, states: mx.array) -> mx.array:
        if "scales" in rows:
            packing = self._matrix
            options = {"group_size": packing.group_size, "bits": packing.bits, "mode": packing.mode}
            out = mx.quantized_matmul(states, rows["weight"], rows["scales"], rows.get("biases"), **options)
        else:
            out = states @ rows["weight"].T
        return out + rows["bias"] if "bias" in rows else out
