"""A backend whose results depend on the number of rows, as Apple GPUs' do, made of MLX's CPU backend.

Products of one row stay as they are, and so does each expert of a gathered product; several rows are added up in
another order. What a product of so many rows is made of can be chosen, so that a test can take any promise away.
`machine` is the backend of an Apple GPU: rows at which bits change, limits of its kernels, and costs on a clock of its
own. The numbers were read in MLX 0.32.4 and not measured.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
import pytest

from mlxmtp.exactness import compare, variants
from mlxmtp.targets import Target

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


@dataclass
class Clock:
    """Seconds in which a product of one row with any matrix takes 1; every operation adds its cost when it is built."""

    now: float = 0.0

    def spend(self, seconds: float) -> None:
        self.now += seconds

    def __call__(self) -> float:
        return self.now


@dataclass(frozen=True)
class Machine:
    """An Apple GPU, as a table says of its products with affine matrices.

    Args:
        generation: 13 is M1, 15 M3, 17 M5.
        chip: its class, "g", "s" (Max) or "d" (Ultra).
        order: of addition, by the rows of a product.
        cost: of a product of so many rows, in products of one row.
    """

    generation: int
    chip: str
    order: Law
    cost: Callable[[int], float]


def _m1_order(most: int) -> Law:
    """The kernel for one row up to `most` rows, then another."""
    return lambda rows: 1 if rows <= most else 3


def _m3_order(rows: int) -> int:
    """A kernel for one row, one for a tile of up to 5 rows, one for two tiles."""
    return 1 if rows < 2 else 3 if rows < 6 else 2


M1 = Machine(13, "g", _m1_order(5), lambda rows: 1 + (rows - 1) / 4 if rows < 6 else 3.0)
M1_MAX = Machine(13, "s", _m1_order(6), M1.cost)
M1_ULTRA = Machine(13, "d", _m1_order(11), M1.cost)
M3 = Machine(15, "g", _m3_order, lambda rows: 1.0 if rows < 2 else 1.1 if rows < 6 else 2.1)
M5 = Machine(17, "g", _m3_order, lambda rows: 1.0 if rows < 2 else 1.05 if rows < 6 else 2.0)
LAUNCH = 0.01
"""Cost of any operation besides its products."""


def blocks(chip: str, simds: int, keys: int) -> int:
    """The blocks of attention's two passes over keys, by rows times query heads a key head; 0: one pass."""
    if keys < (1024 if chip in ("s", "d") else 4096):
        return 0
    if chip == "s":
        bounds = 1024, 8192, 32_768, 65_536
        return 64 if simds <= 4 else 64 << sum(keys > bound for bound in bounds)
    if chip == "d":
        few, many = 256 if keys > 8192 else 128, 1024 if keys >= 65_536 else 512 if keys >= 16_384 else 128
        return few if simds <= 2 else many if simds >= 6 else 128
    return 64 if simds >= 4 else 32


@contextmanager
def machine(which: Machine, heads_per_key: int = 6, **laws: Any) -> Iterator[Clock]:
    """The backend of a machine; `laws` as in `backend`. Yields the clock that replaces the time of passes."""
    clock = Clock()

    def attends(rows: int, keys: int) -> int:
        if rows > 8 or rows * heads_per_key > 32:
            return 3
        return 1 if blocks(which.chip, rows * heads_per_key, keys) == blocks(which.chip, heads_per_key, keys) else 3

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mlxmtp.targets.target.on_metal", lambda: True)
        patch.setattr("mlxmtp.targets.target.apple_gpu", lambda: (which.generation, which.chip))
        patch.setattr(Target, "_heads_per_key", property(lambda _: heads_per_key))
        for module in (variants, compare):
            patch.setattr(module, "time", SimpleNamespace(perf_counter=clock))
        with backend(which.order, **{"attends": attends, "spend": clock.spend, "cost": which.cost, **laws}):
            yield clock


def only(width: int) -> Law:
    """Another order in passes of so many rows, and in no others."""
    return lambda rows: 3 if rows == width else 1


@contextmanager
def backend(
    law: Law = wide,
    *,
    gathered: Law = narrow,
    norms: Law = narrow,
    dense: Law | None = None,
    attends: Callable[[int, int], int] | None = None,
    spend: Callable[[float], None] = lambda _: None,
    cost: Callable[[int], float] = float,
) -> Iterator[None]:
    """MLX with other orders of addition.

    Args:
        law: of products with matrices, dense and quantised. dense: of dense ones, if that is another.
        gathered: of gathered products, by the rows in a launch.
        norms: of RMSNorm, by its rows. attends: of attention, by rows and keys; None: by rows, as `law`.
        spend: called with the cost of each operation. cost: of a product with a matrix, by rows.
    """
    attends, dense = attends or (lambda rows, _: law(rows)), dense or law
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
        rows = rows_of(a, b.ndim) if a.ndim > 1 else 1
        spend(LAUNCH + cost(rows) * (b.ndim == 2))
        pieces = dense(rows)
        return dot(a, b) if pieces == 1 else sliced(a, b, pieces)

    def addmm(c: mx.array, a: mx.array, b: mx.array, *rest: Any, **options: Any) -> mx.array:
        pieces = dense(rows_of(a, b.ndim))
        return stock["addmm"](c, a, b, *rest, **options) if pieces == 1 else c + sliced(a, b, pieces)

    def quantized_matmul(x: mx.array, w: mx.array, scales: mx.array, *rest: Any, **options: Any) -> mx.array:
        rows = rows_of(x, w.ndim)
        pieces = law(rows)
        spend(LAUNCH + cost(rows))
        if pieces == 1:
            return stock["quantized_matmul"](x, w, scales, *rest, **options)
        transpose = options.pop("transpose", True)
        biases = rest[0] if rest else options.pop("biases", None)
        matrix = mx.dequantize(w, scales, biases, **options)
        return sliced(x, matrix.swapaxes(-1, -2) if transpose else matrix, pieces)

    def perturbing(name: str) -> Callable[..., mx.array]:
        def product(x: mx.array, *rest: Any, **options: Any) -> mx.array:
            y = stock[name](x, *rest, **options)
            spend(LAUNCH + x.size // x.shape[-1])  # the weights are read once for each row
            return y if gathered(x.size // x.shape[-1]) == 1 else y * (1 + 2.0**-6)

        return product

    def attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **rest: Any) -> mx.array:
        rows, keys = q.shape[2], k.shape[2]
        spend(LAUNCH)
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
