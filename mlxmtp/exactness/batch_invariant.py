"""Batch-invariant passes: each row of a verify pass has the bits that it has alone, mostly by stock MLX operations.

On Apple GPUs a matrix product of several rows uses other kernels than a product of one row, which add in another order.
The kernel for one row runs many rows in one launch if each is an expert's only row: `gather_qmm` and `gather_mm` with
all-zero indices. Modules without such a variant run row by row.

The stock product of several rows is never used, even if it seems equal: in half precision most differences in the order
of addition are rounded away, and a small matrix has too few outputs to show the rest.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from mlxmtp.targets.patches.observe import rebind, replace_call

if TYPE_CHECKING:
    from mlxmtp.targets import Target

Call = Callable[..., Any]
"""A module's method: (module, x [..., m, D], *others [..., m, _])."""
MatmulVariant = Callable[[nn.Module, mx.array], mx.array]
"""One way to multiply rows x [..., m, K] by a matrix: (matrix, x)."""
Kernel = Callable[[mx.array, mx.array, mx.array, mx.array, int, int], mx.array]
"""Multiplies x [m, K] by an affine matrix: (x, w, scales, biases, group_size, bits); ValueError if unsupported."""

ATTENTION = "scaled_dot_product_attention"
"""The function that attention modules of mlx-lm call."""
TRIALS = 4
"""Random inputs on which a variant must be equal, and runs of which the fastest counts."""


class BatchInvariant:
    """Patches a target's modules; while `on`, each row of a pass over several tokens has the bits it has alone.

    At the first pass of each length, every matrix selects the fastest variant that has the bits of its rows alone, with
    its own weights. Other modules run row by row; attention too, for rows that are equal at a short context may differ
    at a long one.

    Args:
        target: its modules are patched for good; nothing changes while `on` is False.
        kernels: further variants for affine matrices.

    Attributes:
        on: whether the patches are active.
        row_by_row: matrices run row by row too.
    """

    def __init__(self, target: Target, kernels: Sequence[Kernel] = ()) -> None:
        self.on = self.row_by_row = False
        self._rows = 0
        self._latents = target.latent
        self._selected: dict[Any, MatmulVariant] = {}
        for module in target.model.modules():
            self._patch_module(module, kernels)

    def begin_pass(self, num_tokens: int) -> None:
        self._set_rows(num_tokens if self.on and num_tokens > 1 else 0)

    def end_pass(self) -> None:
        self._set_rows(0)

    def _set_rows(self, rows: int) -> None:
        self._rows = rows
        for latent in self._latents:
            latent.row_by_row = rows > 0

    def _patch_module(self, module: nn.Module, kernels: Sequence[Kernel]) -> None:
        kind: Any = type(module)
        if isinstance(module, nn.QuantizedLinear):
            self._patch_matrix(module, [_gathered_quantised, *map(_by_kernel, kernels)])
        elif isinstance(module, nn.Linear):
            self._patch_matrix(module, [_gathered])
        elif isinstance(module, nn.QuantizedEmbedding):
            self._patch_matrix(module, [_gathered_quantised, *map(_by_kernel, kernels)], method="as_linear")
        elif isinstance(module, nn.Embedding):
            self._patch_matrix(module, [_gathered], method="as_linear")
        elif isinstance(module, SwitchGLU | SwitchMLP) or kind.__name__ == "MoEGate":
            self._patch_matrix(module, [])
        elif ATTENTION in getattr(getattr(kind.__call__, "__code__", None), "co_names", ()):
            rebind(module, **{ATTENTION: self._attention(kind.__call__.__globals__[ATTENTION])})

    def _patch_matrix(self, module: nn.Module, variants: Sequence[MatmulVariant], method: str = "__call__") -> None:
        """Let a method select among `variants` and the original method row by row."""
        original: Call = getattr(type(module), method)
        by_rows = _row_by_row(original)
        weights: Any = tree_flatten(module.parameters())
        kind = type(module).__name__, method, tuple((name, w.shape, w.dtype) for name, w in weights)

        def call(module: nn.Module, x: mx.array, *others: mx.array) -> Any:
            if not self._rows or x.ndim < 2 or x.shape[-2] != self._rows:
                return original(module, x, *others)
            if self.row_by_row or not variants:
                return by_rows(module, x, *others)
            seen = kind, x.shape, x.dtype
            if seen not in self._selected:
                self._selected[seen] = _fastest_equal(variants, by_rows, module, x)
            return self._selected[seen](module, x)

        replace_call(module, call, method)

    def _attention(self, original: Call) -> Call:
        def attend(queries: mx.array, keys: mx.array, values: mx.array, *rest: Any, **options: Any) -> Any:
            rows = queries.shape[2]
            if not self._rows or rows != self._rows:
                return original(queries, keys, values, *rest, **options)
            mask, outputs = options.pop("mask", None), []
            for i in range(rows):
                own_keys, own_values, own_mask = _visible(i, rows, keys, values, mask)
                row = queries[:, :, i : i + 1]
                outputs.append(original(row, own_keys, own_values, *rest, mask=own_mask, **options))
            return mx.concatenate(outputs, axis=2)

        return attend


def _visible(i: int, rows: int, keys: mx.array, values: mx.array, mask: Any) -> tuple[mx.array, mx.array, Any]:
    """Return what row i attends to in plain decoding: keys and values [1, heads, _, D] and a mask.

    Keys are [1, heads, T, D], with the rows' own at the end, or one ring per row (targets/patches/window.py).
    """
    if keys.shape[0] == rows:
        keys, values = keys[i : i + 1], values[i : i + 1]
        # a mask: the ring is not full yet, which happens in one pass of a sequence
        filled = keys.shape[2] if mask is None else int(mx.sum(mask[i]))
        return keys[:, :, :filled], values[:, :, :filled], None
    last = keys.shape[2] - rows + 1 + i
    own = mask[..., i : i + 1, :last] if isinstance(mask, mx.array) else None
    return keys[:, :, :last], values[:, :, :last], own


# -- variants -----------------------------------------------------------------------------------------------------


def _row_by_row(original: Call) -> Call:
    """Return a call of `original` for each row: equal by definition, at one launch per row."""

    def by_rows(module: nn.Module, *inputs: mx.array) -> Any:
        axis, rows = inputs[0].ndim - 2, range(inputs[0].shape[-2])
        outputs = [original(module, *(x[..., i : i + 1, :] for x in inputs)) for i in rows]
        if isinstance(outputs[0], tuple):
            return tuple(mx.concatenate(list(parts), axis) for parts in zip(*outputs, strict=True))
        return mx.concatenate(outputs, axis)

    return by_rows


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


def _fastest_equal(
    variants: Sequence[MatmulVariant], by_rows: MatmulVariant, matrix: nn.Module, x: mx.array
) -> MatmulVariant:
    """Return the fastest variant with the bits of `by_rows`, for x and for random rows of uneven sizes."""
    noise = [mx.random.normal((2, *x.shape), key=mx.random.key(trial)) for trial in range(TRIALS)]
    inputs = [x, *((values * mx.exp(sizes)).astype(x.dtype) for values, sizes in noise)]
    mx.eval(inputs)
    equal = [variant for variant in variants if all(_same(variant, by_rows, matrix, rows) for rows in inputs)]
    return min((*equal, by_rows), key=lambda variant: _seconds(variant, matrix, x))


def _same(variant: MatmulVariant, by_rows: MatmulVariant, matrix: nn.Module, x: mx.array) -> bool:
    try:
        found, expected = variant(matrix, x), by_rows(matrix, x)
        mx.eval(found, expected)
    except (ValueError, RuntimeError):
        return False  # this backend has no such kernel
    return found.dtype == expected.dtype and bool(mx.array_equal(found, expected))


def _seconds(variant: MatmulVariant, matrix: nn.Module, x: mx.array) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        mx.eval(variant(matrix, x))
        times.append(time.perf_counter() - start)
    return min(times)
