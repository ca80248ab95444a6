"""One-row arithmetic: each row of a verify pass with the bits that it would have alone, by stock MLX operations mostly.

On Apple GPUs a matrix product of several rows runs through other kernels than that of one, which add in another
order (decoding.md 5). A decode step's kernel takes many rows in one launch where each is an expert's only row:
`gather_qmm`, `gather_mm` with all-zero indices. What that does not reach goes through row by row.

The stock product of several rows is never taken, though it may look equal: in half precision most differences in the
order are rounded away, and a small matrix has too few outputs to show the others.
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

Way = Callable[..., Any]
"""One of several ways to call a module: (module, x [..., m, D], *others [..., m, _]), and of a matrix: (matrix, x)."""
Kernel = Callable[[mx.array, mx.array, mx.array, mx.array, int, int], mx.array]
"""x [m, K] by an affine matrix: (x, w, scales, biases, group_size, bits); ValueError where it has no such kernel."""

ATTENTION = "scaled_dot_product_attention"
TRIALS = 4


class OneRow:
    """A target's modules taught one-row arithmetic; `on` switches it, for passes over several rows only.

    Of the ways to multiply by a matrix, the fastest is taken that gives the bits of its rows alone: found out on the
    first pass of so many rows, with the weights that are there. All else goes row by row; attention too, for what is
    equal over a short context need not be so over a long one.

    Args:
        kernels: further ways for affine matrices.

    `alone`: matrices go row by row as well.
    """

    def __init__(self, target: Target, kernels: Sequence[Kernel] = ()) -> None:
        self.on = self.alone = False
        self._rows = 0
        self._latent = target.latent
        self._decided: dict[Any, Way] = {}
        for module in target.model.modules():
            self._teach(module, kernels)

    def begin_pass(self, num_tokens: int) -> None:
        self._set_rows(num_tokens if self.on and num_tokens > 1 else 0)

    def end_pass(self) -> None:
        self._set_rows(0)

    def _set_rows(self, rows: int) -> None:
        self._rows = rows
        for latent in self._latent:
            latent.row_by_row = rows > 0

    def _teach(self, module: nn.Module, kernels: Sequence[Kernel]) -> None:
        kind: Any = type(module)
        if isinstance(module, nn.QuantizedLinear):
            self._offer(module, [_gathered_quantised, *map(_by_kernel, kernels)])
        elif isinstance(module, nn.Linear):
            self._offer(module, [_gathered])
        elif isinstance(module, nn.QuantizedEmbedding):
            self._offer(module, [_gathered_quantised, *map(_by_kernel, kernels)], method="as_linear")
        elif isinstance(module, nn.Embedding):
            self._offer(module, [_gathered], method="as_linear")
        elif isinstance(module, SwitchGLU | SwitchMLP) or kind.__name__ == "MoEGate":
            self._offer(module, [])
        elif ATTENTION in getattr(getattr(kind.__call__, "__code__", None), "co_names", ()):
            rebind(module, **{ATTENTION: self._attention(kind.__call__.__globals__[ATTENTION])})

    def _offer(self, module: nn.Module, ways: Sequence[Way], method: str = "__call__") -> None:
        """Have a method choose among `ways` and its own row by row."""
        together: Way = getattr(type(module), method)
        alone = _alone(together)
        weights: Any = tree_flatten(module.parameters())
        kind = type(module).__name__, method, tuple((name, w.shape, w.dtype) for name, w in weights)

        def call(module: nn.Module, x: mx.array, *others: mx.array) -> Any:
            if not self._rows or x.ndim < 2 or x.shape[-2] != self._rows:
                return together(module, x, *others)
            if self.alone or not ways:
                return alone(module, x, *others)
            met = kind, x.shape, x.dtype
            if met not in self._decided:
                self._decided[met] = _fastest_equal(ways, alone, module, x)
            return self._decided[met](module, x)

        replace_call(module, call, method)

    def _attention(self, together: Way) -> Way:
        def attend(queries: mx.array, keys: mx.array, values: mx.array, *rest: Any, **options: Any) -> Any:
            rows = queries.shape[2]
            if not self._rows or rows != self._rows:
                return together(queries, keys, values, *rest, **options)
            mask, outputs = options.pop("mask", None), []
            for i in range(rows):
                own_keys, own_values, own_mask = _seen(i, rows, keys, values, mask)
                row = queries[:, :, i : i + 1]
                outputs.append(together(row, own_keys, own_values, *rest, mask=own_mask, **options))
            return mx.concatenate(outputs, axis=2)

        return attend


def _seen(i: int, rows: int, keys: mx.array, values: mx.array, mask: Any) -> tuple[mx.array, mx.array, Any]:
    """What row i attends to: keys and values [1, heads, _, D] and a mask, as plain decoding would have them.

    Keys come as [1, heads, T, D], the newest those of the rows, or as a ring for each row (targets/patches/window.py).
    """
    if keys.shape[0] == rows:
        keys, values = keys[i : i + 1], values[i : i + 1]
        # a mask says that the ring is not full yet, which is so in one pass of a sequence
        filled = keys.shape[2] if mask is None else int(mx.sum(mask[i]))
        return keys[:, :, :filled], values[:, :, :filled], None
    last = keys.shape[2] - rows + 1 + i
    own = mask[..., i : i + 1, :last] if isinstance(mask, mx.array) else None
    return keys[:, :, :last], values[:, :, :last], own


# -- ways -----------------------------------------------------------------------------------------------------


def _alone(together: Way) -> Way:
    """Row by row: equal by definition, with a launch for each row."""

    def by_rows(module: nn.Module, *inputs: mx.array) -> Any:
        axis, rows = inputs[0].ndim - 2, range(inputs[0].shape[-2])
        outputs = [together(module, *(x[..., i : i + 1, :] for x in inputs)) for i in rows]
        if isinstance(outputs[0], tuple):
            return tuple(mx.concatenate(list(parts), axis) for parts in zip(*outputs, strict=True))
        return mx.concatenate(outputs, axis)

    return by_rows


def _gathered(matrix: nn.Module, x: mx.array) -> mx.array:
    """A dense matrix as the only expert of as many tokens."""
    rows = x.reshape(-1, 1, x.shape[-1])
    y = mx.gather_mm(rows, matrix["weight"].T[None], rhs_indices=_zeros(rows))
    return _finished(matrix, x, y)


def _gathered_quantised(matrix: nn.Module, x: mx.array) -> mx.array:
    """A quantised matrix as the only expert of as many tokens."""
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


def _by_kernel(kernel: Kernel) -> Way:
    """An affine matrix by a kernel of our own."""

    def way(matrix: nn.Module, x: mx.array) -> mx.array:
        packing = _any(matrix)
        if packing.mode != "affine":
            raise ValueError(f"the matrix is packed in mode {packing.mode!r}; expected affine")
        weights = matrix["weight"], matrix["scales"], matrix["biases"]
        y = kernel(x.reshape(-1, x.shape[-1]), *weights, packing.group_size, packing.bits)
        return _finished(matrix, x, y)

    return way


def _finished(matrix: nn.Module, x: mx.array, y: mx.array) -> mx.array:
    y = y.reshape(*x.shape[:-1], y.shape[-1])
    return y + matrix["bias"] if "bias" in matrix else y


def _zeros(rows: mx.array) -> mx.array:
    return mx.zeros(rows.shape[:1], mx.uint32)


def _any(matrix: nn.Module) -> Any:
    """For attributes that `nn.Module` does not declare."""
    return matrix


# -- which ----------------------------------------------------------------------------------------------------


def _fastest_equal(ways: Sequence[Way], alone: Way, matrix: nn.Module, x: mx.array) -> Way:
    """The fastest of the ways that give, bit for bit, what `alone` gives: of x, and of random rows of uneven sizes."""
    noise = [mx.random.normal((2, *x.shape), key=mx.random.key(trial)) for trial in range(TRIALS)]
    inputs = [x, *((values * mx.exp(sizes)).astype(x.dtype) for values, sizes in noise)]
    mx.eval(inputs)
    equal = [way for way in ways if all(_same(way, alone, matrix, one) for one in inputs)]
    return min((*equal, alone), key=lambda way: _seconds(way, matrix, x))


def _same(way: Way, alone: Way, matrix: nn.Module, x: mx.array) -> bool:
    try:
        found, expected = way(matrix, x), alone(matrix, x)
        mx.eval(found, expected)
    except (ValueError, RuntimeError):
        return False  # this backend has no such kernel for it
    return found.dtype == expected.dtype and bool(mx.array_equal(found, expected))


def _seconds(way: Way, matrix: nn.Module, x: mx.array) -> float:
    times = []
    for _ in range(TRIALS):
        start = time.perf_counter()
        mx.eval(way(matrix, x))
        times.append(time.perf_counter() - start)
    return min(times)
