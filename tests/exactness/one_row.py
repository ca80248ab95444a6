"""MLX's one-row quantised product on Metal, as a reference: every addition in its place, in numpy's float32.

The order (mlx 0.32.4, kernels `qmv_fast` and `qmv`): see `one_row`. Written apart from the kernel under test.
"""

import mlx.core as mx
import numpy as np

LANES = 32


def one_row(x: np.ndarray, q: np.ndarray, scales: np.ndarray, biases: np.ndarray, bits: int, each: int) -> np.ndarray:
    """[N] float32, not yet rounded to the output's type.

    Args:
        x: [K] float32. q: [N, K] integers. scales, biases: [N, groups] float32.
        each: inputs of a block that a lane takes; a block has 32 times as many.
    """
    assert all(array.dtype == np.float32 for array in (x, scales, biases))
    outputs, inputs = q.shape
    group = inputs // scales.shape[1]
    totals = np.zeros((outputs, LANES), np.float32)
    for lane in range(LANES):
        for start in range(lane * each, inputs, LANES * each):
            own = slice(start, start + each)
            dots, total = _partial(x[own], q[:, own].astype(np.float32), bits)
            scale, bias = scales[:, start // group], biases[:, start // group]
            totals[:, lane] = totals[:, lane] + (scale * dots + total * bias)
    return _sum_of_lanes(totals)


def _partial(x: np.ndarray, q: np.ndarray, bits: int) -> tuple[np.ndarray, np.float32]:
    """[N], sums of x * q; and the sum of x. Four bits are taken by fours, eight one by one."""
    dots, total = np.zeros(len(q), np.float32), np.float32(0)
    if bits == 8:
        for i in range(len(x)):
            dots, total = dots + x[i] * q[:, i], total + x[i]
        return dots, total
    for i in range(0, len(x), 4):
        a, b, c, d = (x[i + j] / np.float32(16**j) for j in range(4))
        qa, qb, qc, qd = (q[:, i + j] * np.float32(16**j) for j in range(4))
        dots = dots + (((a * qa + b * qb) + c * qc) + d * qd)
        total = total + (((x[i] + x[i + 1]) + x[i + 2]) + x[i + 3])
    return dots, total


def _sum_of_lanes(totals: np.ndarray) -> np.ndarray:
    """Metal does not say in which order a SIMD-group adds its lanes; here, and in the harness, by halves."""
    while totals.shape[1] > 1:
        half = totals.shape[1] // 2
        totals = totals[:, :half] + totals[:, half:]
    return totals[:, 0]


def reference(x: mx.array, q: np.ndarray, scales: mx.array, biases: mx.array, bits: int, each: int) -> mx.array:
    """Every row of x alone: [m, N] of x's type."""
    wide = [np.array(array.astype(mx.float32)) for array in (x, scales, biases)]
    rows = [one_row(row, q, wide[1], wide[2], bits, each) for row in wide[0]]
    return mx.array(np.stack(rows)).astype(x.dtype)


def packed(q: np.ndarray, bits: int) -> mx.array:
    """[N, K * bits / 32] uint32, the first of the integers in the lowest bits."""
    per_word = 32 // bits
    words = q.astype(np.uint64).reshape(q.shape[0], -1, per_word)
    shifts = np.arange(per_word, dtype=np.uint64) * np.uint64(bits)
    return mx.array((words << shifts).sum(-1).astype(np.uint32))
