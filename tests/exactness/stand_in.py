"""A backend whose results depend on the number of rows, as Apple GPUs' do, made of MLX's CPU backend.

Products of one row stay as they are, and so does each expert of a gathered product; several rows are added up in
another order. What a product of so many rows is made of can be chosen, so that a test can take any promise away.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import pytest

Law = Callable[[int], int]
"""The order of addition for so many rows: the number of slices that are summed one after the other; 1: MLX's own."""


def wide(rows: int) -> int:
    """One order for one row, another for all wider passes."""
    return 1 if rows < 2 else 3


def own(rows: int) -> int:
    """An order for each width."""
    return rows


def narrow(rows: int) -> int:
    """Nothing depends on rows."""
    return 1


def only(width: int) -> Law:
    """Another order in passes of so many rows, and in no others."""
    return lambda rows: 3 if rows == width else 1


@contextmanager
def backend(
    law: Law = wide, *, gathered: Law = narrow, norms: Law = narrow, attends: Callable[[int, int], int] | None = None
) -> Iterator[None]:
    """MLX with other orders of addition.

    Args:
        law: of products with matrices, dense and quantised. gathered: of gathered products, by the rows in a launch.
        norms: of RMSNorm, by its rows. attends: of attention, by rows and keys; None: by rows, as `law`.
    """
    attends = attends or (lambda rows, _: law(rows))
    stock: Any = {name: getattr(mx, name) for name in ("quantized_matmul", "addmm", "gather_qmm", "gather_mm")}
    dot, attention, norm = mx.array.__matmul__, mx.fast.scaled_dot_product_attention, mx.fast.rms_norm

    def sliced(a: mx.array, b: mx.array, pieces: int) -> mx.array:
        """a @ b, slice by slice from the end, each rounded to the dtype of a, as kernels do that split a sum."""
        b, size = b.astype(a.dtype), -(-a.shape[-1] // pieces)
        total = None
        for start in reversed(range(0, a.shape[-1], size)):
            part = dot(a[..., start : start + size], b[..., start : start + size, :])
            total = part if total is None else total + part
        return total

    def rows_of(a: mx.array, ndim: int) -> int:
        return a.size // a.shape[-1] if ndim == 2 else a.shape[-2]

    def matmul(a: mx.array, b: mx.array) -> mx.array:
        pieces = law(rows_of(a, b.ndim)) if a.ndim > 1 else 1
        return dot(a, b) if pieces == 1 else sliced(a, b, pieces)

    def addmm(c: mx.array, a: mx.array, b: mx.array, *rest: Any, **options: Any) -> mx.array:
        pieces = law(rows_of(a, b.ndim))
        return stock["addmm"](c, a, b, *rest, **options) if pieces == 1 else c + sliced(a, b, pieces)

    def quantized_matmul(x: mx.array, w: mx.array, scales: mx.array, *rest: Any, **options: Any) -> mx.array:
        pieces = law(rows_of(x, w.ndim))
        if pieces == 1:
            return stock["quantized_matmul"](x, w, scales, *rest, **options)
        transpose = options.pop("transpose", True)
        biases = rest[0] if rest else options.pop("biases", None)
        matrix = mx.dequantize(w, scales, biases, **options)
        return sliced(x, matrix.swapaxes(-1, -2) if transpose else matrix, pieces)

    def perturbing(name: str) -> Callable[..., mx.array]:
        def product(x: mx.array, *rest: Any, **options: Any) -> mx.array:
            y = stock[name](x, *rest, **options)
            return y if gathered(x.size // x.shape[-1]) == 1 else y * (1 + 2.0**-6)

        return product

    def attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **rest: Any) -> mx.array:
        rows, keys = q.shape[2], k.shape[2]
        if attends(rows, keys) == 1:
            return attention(q, k, v, scale=scale, mask=mask, **rest)
        if isinstance(mask, str):
            mask = mx.arange(keys - rows, keys)[:, None] >= mx.arange(keys)[None]
        backwards = None if mask is None else mask[..., ::-1]
        return attention(q, k[:, :, ::-1], v[:, :, ::-1], scale=scale, mask=backwards, **rest)

    def rms_norm(x: mx.array, weight: Any, eps: float, **rest: Any) -> mx.array:
        rows = x.shape[1] if x.ndim > 2 else 1
        y = norm(x, weight, eps, **rest)
        return y if norms(rows) == 1 else y * (1 + min(norms(rows), 16) * 2.0**-8)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mx.array, "__matmul__", matmul)
        patch.setattr(mx, "addmm", addmm)
        patch.setattr(mx, "quantized_matmul", quantized_matmul)
        patch.setattr(mx, "gather_qmm", perturbing("gather_qmm"))
        patch.setattr(mx, "gather_mm", perturbing("gather_mm"))
        patch.setattr(mx.fast, "scaled_dot_product_attention", attend)
        patch.setattr(mx.fast, "rms_norm", rms_norm)
        yield
