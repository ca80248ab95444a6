"""Random quantised products, and the kernel's body run over one row of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.exactness.few_rows import MAX_ROWS, few_row_matmul, lane_values
from tests.exactness.host_kernel import HostKernel, as_bits, compiler
from tests.exactness.one_row import packed


def built(tmp_path_factory: pytest.TempPathFactory) -> HostKernel:
    if compiler() is None:
        pytest.skip("no C++ compiler (g++, clang++ or c++) to run the kernel's body with")
    return HostKernel.build(tmp_path_factory.mktemp("few_rows"))


@dataclass(frozen=True)
class Product:
    """A random product: x [8, K], integers q [N, K] and what MLX packs them into."""

    x: mx.array
    q: np.ndarray
    w: mx.array
    scales: mx.array
    biases: mx.array
    group_size: int
    bits: int

    def few(self, rows: int, launch: Callable[..., list[mx.array]] | None = None, *, fused: bool = False) -> mx.array:
        weights = self.w, self.scales, self.biases, self.group_size, self.bits
        return few_row_matmul(self.x[:rows], *weights, launch=launch, fused=fused)

    def alone(self, host: HostKernel, row: int, *, fused: bool = False) -> mx.array:
        weights = self.w, self.scales, self.biases, self.group_size, self.bits
        return one(host, self.x[row : row + 1], *weights, fused=fused)


def product(inputs: int, outputs: int, group_size: int, bits: int, dtype: mx.Dtype) -> Product:
    chance = np.random.default_rng(inputs + outputs)
    q = chance.integers(0, 2**bits, (outputs, inputs))
    x, scales, biases = (
        mx.array(chance.normal(size=shape)).astype(dtype)
        for shape in ((MAX_ROWS, inputs), *2 * [(outputs, inputs // group_size)])
    )
    return Product(x, q, packed(q, bits), scales, biases, group_size, bits)


def one(
    host: HostKernel,
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array,
    group_size: int,
    bits: int,
    *,
    fused: bool = False,
) -> mx.array:
    """The body for one row, which `few_row_matmul` leaves to MLX."""
    names = {"T": x.dtype, "ROWS": 1, "OUTPUTS": 4, "BITS": bits, "GROUP": group_size, "FUSED": fused}
    (y,) = host(
        inputs=[x, w, scales, biases],
        template=[*names.items(), ("LANE", lane_values(x.shape[1], bits))],
        grid=(32, 2 * -(-w.shape[0] // 8), 1),
        threadgroup=(32, 2, 1),
        output_shapes=[(1, w.shape[0])],
        output_dtypes=[x.dtype],
    )
    return y


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and np.array_equal(as_bits(a), as_bits(b))
