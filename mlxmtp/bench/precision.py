"""Whether this machine computes faster in float16 than in bfloat16, as GPUs do that have no bfloat16 of their own."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

ROWS = (1, 256)
"""Of a decoding step, and enough of a prompt to show its pace."""
FASTER, AS_FAST = 0.9, 1.05
"""Of bfloat16's time: what makes float16 worth it, and what it must not cost at another number of rows."""


def float16_times(size: int, quantization: Mapping[str, Any] | None = None, repeats: int = 5) -> dict[int, float]:
    """The time of float16 products to that of bfloat16 ones, by rows: the median of pairs that take turns.

    Args:
        size: of the square matrix, as the hidden size of a model. quantization: as in its config; None: dense.
    """
    how = {name: value for name, value in (quantization or {}).items() if name in ("group_size", "bits", "mode")}
    return {rows: statistics.median(_pairs(rows, size, how, repeats)) for rows in ROWS}


def pays(times: dict[int, float]) -> bool:
    """Whether a model is better converted to float16."""
    return min(times.values()) <= FASTER and max(times.values()) <= AS_FAST


def _pairs(rows: int, size: int, how: Mapping[str, Any], repeats: int) -> list[float]:
    x, matrix = mx.random.normal((rows, size)), mx.random.normal((size, size))
    products = [_product(x.astype(kind), matrix.astype(kind), how) for kind in (mx.float16, mx.bfloat16)]
    measured = [[_seconds(product) for product in products] for _ in range(repeats + 1)]
    return [half / brain for half, brain in measured[1:]]  # the first time may compile kernels


def _product(x: mx.array, matrix: mx.array, how: Mapping[str, Any]) -> Callable[[], mx.array]:
    if not how:
        mx.eval(x, matrix)
        return lambda: x @ matrix.T
    parts = mx.quantize(matrix, **how)
    mx.eval(x, parts)
    return lambda: mx.quantized_matmul(x, *parts, transpose=True, **how)


def _seconds(product: Callable[[], mx.array]) -> float:
    start = time.perf_counter()
    mx.eval(product())
    return time.perf_counter() - start
