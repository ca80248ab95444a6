"""The few-row products of this machine: their time, and whether each row has the bits that it has alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmtp.exactness.variants import STOCK, Kernel, MatmulVariant, quantised_variants

ROWS = (1, 2, 3, 4, 5, 6, 8)
"""Rows of a product: a plain step, and passes with drafts."""
CHAIN = 20
"""Products in one timed run: one alone takes less than its launch on a GPU."""
REPEATS = 5


def few_row_products(
    size: int, kernels: Sequence[Kernel], *, bits: int = 4, group_size: int = 64
) -> list[dict[str, Any]]:
    """Return for each variant and number of rows: seconds of a product, and whether its rows have one-row bits.

    The variants take turns; a time is the median of `REPEATS` runs.

    Args:
        size: side of the square quantised matrix, such as the hidden size of a model; a multiple of `group_size`.
        kernels: further variants.
    """
    matrix = nn.QuantizedLinear(size, size, bias=False, group_size=group_size, bits=bits)
    matrix.set_dtype(mx.bfloat16)
    mx.eval(matrix.parameters())
    variants: dict[str, MatmulVariant] = {STOCK: lambda module, x: module(x), **quantised_variants(kernels)}
    found = []
    for rows in ROWS:
        x = mx.random.normal((1, rows, size), key=mx.random.key(rows)).astype(mx.bfloat16)
        alone = mx.concatenate([matrix(x[:, i : i + 1]) for i in range(rows)], axis=1)
        mx.eval(x, alone)
        possible = {name: variant for name, variant in variants.items() if _runs(variant, matrix, x)}
        times: dict[str, list[float]] = {name: [] for name in possible}
        for _ in range(REPEATS):
            for name, variant in possible.items():
                times[name].append(_seconds(variant, matrix, x))
        for name, variant in possible.items():
            equal = bool(mx.array_equal(variant(matrix, x), alone))
            found.append({"variant": name, "rows": rows, "seconds": statistics.median(times[name]), "equal": equal})
    return found


def _runs(variant: MatmulVariant, matrix: nn.Module, x: mx.array) -> bool:
    try:
        mx.eval(variant(matrix, x))
    except (ValueError, RuntimeError):
        return False  # this backend has no such kernel
    return True


def _seconds(variant: MatmulVariant, matrix: nn.Module, x: mx.array) -> float:
    start = time.perf_counter()
    mx.eval([variant(matrix, x) for _ in range(CHAIN)])
    return (time.perf_counter() - start) / CHAIN
