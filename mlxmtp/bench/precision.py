"""Whether float16 is faster than bfloat16 on this machine, as on GPUs without native bfloat16."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import mlx.core as mx

CHAINS = {1: 20, 256: 1}
"""Tokens of a product, of a decoding step and of a part of a prompt, and how many products are timed together: one of
few tokens takes less than its launch on a GPU."""
FASTER = 0.9
"""Time of float16 in times of bfloat16. At or below it, in one of the two, float16 pays."""
AS_FAST = 1.05
"""The same. Above it, in either of the two, float16 does not pay."""


def float16_times(size: int, quantization: Mapping[str, Any] | None = None, repeats: int = 5) -> dict[int, float]:
    """Return the time of a float16 product in times of a bfloat16 one, by number of tokens.

    The products take turns; each ratio is the median of `repeats` pairs.

    Args:
        size: side of the square matrix, such as the hidden size of a model.
        quantization: `quantization` of the model's config, or None for a dense matrix.
    """
    packing = {name: value for name, value in (quantization or {}).items() if name in ("group_size", "bits", "mode")}
    return {count: statistics.median(_pairs(count, size, packing, repeats)) for count in CHAINS}


def pays(times: dict[int, float]) -> bool:
    """Return whether a model should be converted to float16."""
    return min(times.values()) <= FASTER and max(times.values()) <= AS_FAST


def _pairs(num_tokens: int, size: int, packing: Mapping[str, Any], repeats: int) -> list[float]:
    x, matrix = mx.random.normal((num_tokens, size)), mx.random.normal((size, size))
    products = [_product(x.astype(dtype), matrix.astype(dtype), packing) for dtype in (mx.float16, mx.bfloat16)]
    measured = [[_seconds(product, CHAINS[num_tokens]) for product in products] for _ in range(repeats + 1)]
    return [float16 / bfloat16 for float16, bfloat16 in measured[1:]]  # the first pair may compile kernels


def _product(x: mx.array, matrix: mx.array, packing: Mapping[str, Any]) -> Callable[[], mx.array]:
    if not packing:
        mx.eval(x, matrix)
        return lambda: x @ matrix.T
    quantized = mx.quantize(matrix, **packing)
    mx.eval(x, quantized)
    return lambda: mx.quantized_matmul(x, *quantized, transpose=True, **packing)


def _seconds(product: Callable[[], mx.array], count: int) -> float:
    start = time.perf_counter()
    mx.eval([product() for _ in range(count)])
    return time.perf_counter() - start
