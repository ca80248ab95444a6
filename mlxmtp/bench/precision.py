"""Whether this machine computes faster in float16 than in bfloat16, as GPUs do that have no bfloat16 of their own."""

from __future__ import annotations

import statistics
import time

import mlx.core as mx

ROWS = (1, 256)
"""Of a decoding step, and enough of a prompt to show its pace."""
FASTER, AS_FAST = 0.9, 1.05
"""Of bfloat16's time: what makes float16 worth it, and what it must not cost at another number of rows."""


def float16_times(size: int, repeats: int = 5) -> dict[int, float]:
    """The time of float16 products to that of bfloat16 ones, by rows: the median of pairs that take turns.

    Args:
        size: of the square matrix, as the hidden size of a model.
    """
    return {rows: statistics.median(_pairs(rows, size, repeats)) for rows in ROWS}


def pays(times: dict[int, float]) -> bool:
    """Whether a model is better converted to float16."""
    return min(times.values()) <= FASTER and max(times.values()) <= AS_FAST


def _pairs(rows: int, size: int, repeats: int) -> list[float]:
    kinds = (mx.float16, mx.bfloat16)
    x, matrix = mx.random.normal((rows, size)), mx.random.normal((size, size))
    operands = [(x.astype(kind), matrix.astype(kind)) for kind in kinds]
    mx.eval(operands)
    measured = [[_seconds(*pair) for pair in operands] for _ in range(repeats + 1)]
    return [half / brain for half, brain in measured[1:]]  # the first time may compile kernels


def _seconds(x: mx.array, matrix: mx.array) -> float:
    start = time.perf_counter()
    mx.eval(x @ matrix.T)
    return time.perf_counter() - start
