"""Ways to compute several rows with the bits that each has alone, and the selection of the fastest by comparison.

On Apple GPUs a matrix product of several rows can use another kernel than a product of one row, which adds in another
order. The kernel for one row runs many rows in one launch if each is an expert's only row: `gather_qmm` and `gather_mm`
with all-zero indices.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

Call = Callable[..., Any]
"""A module's method: (module, x [..., m, D], *others [..., m, _])."""
MatmulVariant = Callable[..., Any]
"""One way to compute all rows x [..., m, K] of a module: (module, x, *others)."""
Kernel = Callable[[mx.array, mx.array, mx.array, mx.array, int, int], mx.array]
"""Multiplies x [m, K] by an affine matrix: (x, w, scales, biases, group_size, bits); ValueError if unsupported."""

ROW_BY_ROW = "row by row"
STOCK = "stock"
TRIALS = 4
"""Random inputs on which a variant must be equal, and runs of which the fastest counts."""
SORTED_INDICES = 64
"""Rows times chosen experts from which on mlx-lm sorts them, and MLX may multiply an expert's rows together."""
CHAIN = 4
"""Products in one timed run: one alone takes less than its launch."""


def dense_variants() -> dict[str, MatmulVariant]:
    """Return the variants of a dense matrix, by name."""
    return {"gathered": _gathered}


def quantised_variants(kernels: Sequence[Kernel]) -> dict[str, MatmulVariant]:
    """Return the variants of a quantised matrix, by name."""
    own = {getattr(kernel, "__name__", type(kernel).__name__): _by_kernel(kernel) for kernel in kernels}
    return {"gathered": _gathered_quantised, **own}


def row_by_row(original: Call) -> Call:
    """Return a call of `original` for each row: equal by definition, at one launch per row."""

    def by_rows(module: nn.Module, *inputs: mx.array) -> Any:
        axis, rows = inputs[0].ndim - 2, range(inputs[0].shape[-2])
        outputs = [original(module, *(x[..., i : i + 1, :] for x in inputs)) for i in rows]
        if isinstance(outputs[0], tuple):
            return tuple(mx.concatenate(list(parts), axis) for parts in zip(*outputs, strict=True))
        return mx.concatenate(outputs, axis)

    return by_rows


def in_parts(experts: Call) -> MatmulVariant:
    """Return a call of `experts` for as many rows at a time as are not sorted by their experts."""

    def variant(module: nn.Module, x: mx.array, indices: mx.array) -> mx.array:
        axis, count = x.ndim - 2, max((SORTED_INDICES - 1) // indices.shape[-1], 1)
        starts = range(0, x.shape[axis], count)
        parts = [experts(module, x[..., i : i + count, :], indices[..., i : i + count, :]) for i in starts]
        return parts[0] if len(parts) == 1 else mx.concatenate(parts, axis)

    return variant


def _gathered(matrix: nn.Module, x: mx.array) -> mx.array:
    """Multiply by a dense matrix as the only expert of every row."""
    rows = x.reshape(-1, 1, x.shape[-1])
    y = mx.gather_mm(rows, matrix["weight"].T[None], rhs_indices=_zeros(rows))
    return _finished(matrix, x, y)


def _gathered_quantised(matrix: nn.Module, x: mx.array) -> mx.array:
    """Multiply by a quantised matrix as the only expert of every row."""
    rows, packing, biases = x.reshape(-1, 1, x.shape[-1]), _any(matrix), matrix.get("biases")
    y = mx.gather_qmm(
        rows,
        matrix["weight"][None],
        matrix["scales"][None],
        None if biases is None else biases[None],
        rhs_indices=_zeros(rows),
        group_size=packing.group_size,
        bits=packing.bits,
        mode=packing.mode,
    )
    return _finished(matrix, x, y)


def _by_kernel(kernel: Kernel) -> MatmulVariant:
    """Return the variant that multiplies by an affine matrix with `kernel`."""

    def variant(matrix: nn.Module, x: mx.array) -> mx.array:
        packing = _any(matrix)
        if packing.mode != "affine":
            raise ValueError(f"the matrix is packed in mode {packing.mode!r}; expected affine")
        weights = matrix["weight"], matrix["scales"], matrix["biases"]
        y = kernel(x.reshape(-1, x.shape[-1]), *weights, packing.group_size, packing.bits)
        return _finished(matrix, x, y)

    return variant


def _finished(matrix: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y + matrix["bias"] if "bias" in matrix else y


def _zeros(rows: mx.array) -> mx.array:
    return mx.zeros(rows.shape[:1], mx.uint32)


def _any(matrix: nn.Module) -> Any:
    """Return the matrix, for attributes that `nn.Module` does not declare."""
    return matrix


# -- selection ----------------------------------------------------------------------------------------------------


def fastest_equal(
    variants: Mapping[str, MatmulVariant], by_rows: MatmulVariant, module: nn.Module, x: mx.array, *others: mx.array
) -> str:
    """Return the name of the fastest variant with the bits of `by_rows`, for x and for random rows of uneven sizes."""
    noise = [mx.random.normal((2, *x.shape), key=mx.random.key(trial)) for trial in range(TRIALS)]
    inputs = [x, *((values * mx.exp(sizes)).astype(x.dtype) for values, sizes in noise)]
    mx.eval(inputs)
    equal = {
        name: variant
        for name, variant in variants.items()
        if all(_same(variant, by_rows, module, rows, *others) for rows in inputs)
    }
    choice = {**equal, ROW_BY_ROW: by_rows}
    return min(choice, key=lambda name: _seconds(choice[name], module, x, *others))


def _same(variant: MatmulVariant, by_rows: MatmulVariant, module: nn.Module, *inputs: mx.array) -> bool:
    try:
        found, expected = variant(module, *inputs), by_rows(module, *inputs)
        mx.eval(found, expected)
    except (ValueError, RuntimeError):
        return False  # this backend has no such kernel
    return found.dtype == expected.dtype and bool(mx.array_equal(found, expected))


def _seconds(variant: MatmulVariant, module: nn.Module, *inputs: mx.array) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        mx.eval([variant(module, *inputs) for _ in range(CHAIN)])
        times.append(time.perf_counter() - start)
    return min(times)
