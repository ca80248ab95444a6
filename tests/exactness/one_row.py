"""MLX's one-row quantised product on Metal, as a reference: every addition in its place, in numpy's float32.

The order (mlx 0.32.4, kernels `qmv_fast` and `qmv`): see `one_row`. Written apart from the kernel under test.
"""

import mlx.core as mx
import numpy as np

LANES = 32


def one_row(
    x: np.ndarray, q: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, each: int, *, fused: bool = False
) -> np.ndarray:
    """[N] float32, not yet rounded to the output's type.

    Args:
        x: [K] float32. q: [N, K] integers. scales, biases: [N, groups] float32.
        each: inputs of a block that a lane takes; a block has 32 times as many.
        fused: the first of two products, and every product that goes into a sum, is added without being rounded.
    """
    assert all(array.dtype == np.float32 for array in (x, scales, biases))
    outputs, inputs = q.shape
    group = inputs // scales.shape[1]
    totals = np.zeros((outputs, LANES), np.float32)
    for lane in range(LANES):
        for start in range(lane * each, inputs, LANES * each):
            own = slice(start, start + each)
            dots, total = _partial(x[own], q[:, own].astype(np.float32), bits, fused=fused)
            scale, bias = scales[:, start // group], biases[:, start // group]
            shift = total * bias
            totals[:, lane] = totals[:, lane] + (fma(scale, dots, shift) if fused else scale * dots + shift)
    return _sum_of_lanes(totals)


def fma(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a * b + c in float32, rounded once.

    The product of two float32 is exact in float64. Their sum is rounded to odd there, by the error that a sum leaves
    (Knuth's), so that the second rounding, to float32, is that of the exact value.
    """
    product, c = a.astype(np.float64) * b.astype(np.float64), np.asarray(c, np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = total.view(np.int64) % 2 == 0
    odd = np.nextafter(total, np.copysign(np.inf, error))
    return np.where((error != 0) & even, odd, total).astype(np.float32)


def _partial(x: np.ndarray, q: np.ndarray, bits: int, *, fused: bool) -> tuple[np.ndarray, np.float32]:
    """[N], sums of x * q; and the sum of x. Four bits are taken by fours, eight one by one."""
    dots, total = np.zeros(len(q), np.float32), np.float32(0)
    if bits == 8:
        for i in range(len(x)):
            dots = fma(x[i], q[:, i], dots) if fused else dots + x[i] * q[:, i]
            total = total + x[i]
        return dots, total
    for i in range(0, len(x), 4):
        a, b, c, d = (x[i + j] / np.float32(16**j) for j in range(4))
        qa, qb, qc, qd = (q[:, i + j] * np.float32(16**j) for j in range(4))
        if fused:
            dots = dots + fma(d, qd, fma(c, qc, fma(a, qa, b * qb)))
        else:
            dots = dots + (((a * qa + b * qb) + c * qc) + d * qd)
        total = total + (((x[i] + x[i + 1]) + x[i + 2]) + x[i + 3])
    return dots, total


def _sum_of_lanes(totals: np.ndarray) -> np.ndarray:
    """Metal does not say in which order a SIMD-group adds its lanes; here, and in the harness, by halves."""
    while totals.shape[1] > 1:
        half = totals.shape[1] // 2
        totals = totals[:, :half] + totals[:, half:]
    return totals[:, 0]


def reference(
    x: mx.array, q: np.ndarray, scales: mx.array, biases: mx.array, bits: int, each: int, *, fused: bool = False
) -> mx.array:
    """Every row of x alone: [m, N] of x's type."""
    wide = [np.array(array.astype(mx.float32)) for array in (x, scales, biases)]
    rows = [one_row(row, q, wide[1], wide[2], bits, each, fused=fused) for row in wide[0]]
    return mx.array(np.stack(rows)).astype(x.dtype)


def packed(q: np.ndarray, bits: int) -> mx.array:
    """[N, K * bits / 32] uint32, the first of the integers in the lowest bits."""
    per_word = 32 // bits
    words = q.astype(np.uint64).reshape(q.shape[0], -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    return mx.array((words << shifts).sum(-1).astype(np.uint32))
