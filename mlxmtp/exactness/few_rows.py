"""A batch-invariant quantised matrix product: each of two to eight rows has the bits it has alone. Metal only.

On Apple GPUs from M3 on, `mx.quantized_matmul` uses different kernels for one row and for two, which add in different
orders. The kernel here (few_rows.metal) adds in the order that MLX 0.32.4 has for one row, and reads the weights once
for all rows. It was written without a Mac: its arithmetic is tested on the host. Its speed is not known, nor whether
Metal's compiler fuses the same products with sums as in MLX's own kernel. There are two variants for that reason, one
with the fused products written out. `BatchInvariant` (exactness/batch_invariant.py) compares them on the machine, with
the weights, for each number of rows.

The order of addition: a lane takes 4, 8 or 16 inputs of each block (`lane_values`), and the 32 lanes are added last.
Shapes: x [..., K] with m rows in all, w [N, K * bits / 32] as uint32, scales and biases [N, K / group_size].
"""

from collections.abc import Callable
from functools import cache
from importlib.resources import files
from math import prod
from typing import cast

import mlx.core as mx

from mlxmtp.errors import OptionError

MAX_ROWS = 8
"""Rows; more would need too many registers."""
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = (mx.float16, mx.bfloat16, mx.float32)
OTHER_ORDER = (64, 128)
"""Numbers of inputs for which MLX multiplies one row with another kernel; they are refused."""
SIMD_GROUPS = 2
"""SIMD-groups, of 32 lanes each, in a threadgroup."""

Launch = Callable[..., list[mx.array]]
"""A function with the signature of what `mx.fast.metal_kernel` returns."""


def unavailable_reason() -> str:
    """Return why this machine cannot run the kernel; empty if it can."""
    if not hasattr(mx.fast, "metal_kernel"):
        return "this MLX has no mx.fast.metal_kernel"
    if not mx.metal.is_available():
        return "no Metal device"
    if mx.default_device() != mx.gpu:
        return f"MLX runs on {mx.default_device()}, not on the GPU"
    return ""


def available() -> bool:
    """Return whether this machine can run the kernel; only a comparison shows that its bits are right."""
    return not unavailable_reason()


def lane_values(inputs: int, bits: int) -> int:
    """Return the inputs of a block that one lane takes, as in MLX's kernel for one row: doubled if blocks fill K."""
    wide = 64 // bits
    return wide if inputs % (32 * wide) == 0 else wide // 2


def unsupported_reason(
    rows: int, dtype: mx.Dtype, w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int
) -> str:
    """Return why the kernel does not support this product; empty if it does."""
    if not 2 <= rows <= MAX_ROWS:
        return f"it takes 2 to {MAX_ROWS} rows, not {rows}"
    if bits not in BITS or group_size not in GROUP_SIZES:
        return f"it takes 4 or 8 bits in groups of 32, 64 or 128, not {bits} bits in groups of {group_size}"
    if biases is None:
        return "it takes affine weights, and these have no biases"
    if w.ndim != 2 or w.dtype != mx.uint32:
        return f"it takes one matrix packed in uint32, not {w.dtype} of shape {w.shape}"
    outputs, inputs = w.shape[0], w.shape[1] * 32 // bits
    if scales.shape != (outputs, inputs // group_size) or biases.shape != scales.shape or inputs % group_size:
        return f"scales {scales.shape} and biases {biases.shape} do not fit {outputs} outputs of {inputs} inputs"
    if dtype not in DTYPES or scales.dtype != dtype or biases.dtype != dtype:
        return f"it takes rows, scales and biases of one float type, not {dtype}, {scales.dtype} and {biases.dtype}"
    if inputs in OTHER_ORDER:
        return f"MLX adds one row of {inputs} inputs in an order of its own"
    if max(w.size, rows * outputs) >= 2**31:
        return f"it counts in 32 bits, too few for {outputs} outputs of {inputs} inputs"
    return ""


def few_row_matmul(
    x: mx.array,
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    launch: Launch | None = None,
    *,
    fused: bool = False,
) -> mx.array:
    """Return x · dequantised(w)ᵀ, [..., N] of x's type. Use it only where a comparison showed equal bits.

    Args:
        x: [..., K], 2 to 8 rows in all; of one type with scales and biases: float16, bfloat16 or float32.
        launch: runs instead of the Metal kernel.
        fused: products are fused with sums explicitly, and not as the compiler likes.

    Raises:
        OptionError: the kernel does not support the product, or there is no Metal GPU and no `launch`.
    """
    rows = prod(x.shape[:-1])
    reason = unsupported_reason(rows, x.dtype, w, scales, biases, group_size, bits)
    inputs = w.shape[-1] * 32 // bits
    if not reason and x.shape[-1] != inputs:
        reason = f"rows of {x.shape[-1]} values do not fit weights of {inputs} inputs"
    if not reason and launch is None:
        reason = unavailable_reason()
    if reason:
        raise OptionError(f"The few-row kernel cannot run: {reason}. Use mx.quantized_matmul.")
    launch = launch or _metal()
    outputs = w.shape[0]
    each = 4 if rows <= 4 else 2  # outputs of a SIMD-group: at eight rows, four would need too many registers
    groups = -(-outputs // (SIMD_GROUPS * each))
    (y,) = launch(
        inputs=[x.reshape(rows, inputs), w, scales, biases],
        template=[
            *[("T", x.dtype), ("ROWS", rows), ("OUTPUTS", each), ("BITS", bits), ("GROUP", group_size)],
            *[("LANE", lane_values(inputs, bits)), ("FUSED", fused)],
        ],
        grid=(32, SIMD_GROUPS * groups, 1),
        threadgroup=(32, SIMD_GROUPS, 1),
        output_shapes=[(rows, outputs)],
        output_dtypes=[x.dtype],
    )
    return y.reshape(*x.shape[:-1], outputs)


def fused_few_row_matmul(
    x: mx.array, w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int
) -> mx.array:
    """As `few_row_matmul`, `fused`."""
    return few_row_matmul(x, w, scales, biases, group_size, bits, fused=True)


@cache
def _metal() -> Launch:
    """Return the kernel; MLX compiles it at the first evaluation of each template."""
    body = files("mlxmtp.exactness").joinpath("few_rows.metal").read_text(encoding="utf-8")
    kernel = mx.fast.metal_kernel(
        name="mlxmtp_few_rows", input_names=["x", "w", "scales", "biases"], output_names=["y"], source=body
    )
    return cast(Launch, kernel)
