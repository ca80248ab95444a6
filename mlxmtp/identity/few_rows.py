"""A quantised product over two to eight rows in which every row has the bits it has alone. Metal only.

On Apple GPUs from M3 on, `mx.quantized_matmul` takes another kernel for two rows than for one, with another order of
addition. The kernel here (few_rows.metal) keeps the order that MLX 0.32.4 has for one row and reads the weights once
for all rows. It was written without a Mac: its arithmetic is tested on the host, but its speed is not known, nor
whether Metal's compiler, which may fuse products with sums, does so here where it does in MLX's own kernel. `check`
finds out, on the machine and with the weights at hand; it can also differ by number of rows, so check each.

Where rounding comes from: a lane takes 4, 8 or 16 inputs of each block (`lane_values`), and 32 lanes are added last.
Shapes: x [..., K] with m rows in all, w [N, K * bits / 32] as uint32, scales and biases [N, K / group_size].
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from math import prod
from typing import cast

import mlx.core as mx

from mlxmtp.errors import OptionError

MOST_ROWS = 8
BITS = (4, 8)
GROUP_SIZES = (32, 64, 128)
DTYPES = (mx.float16, mx.bfloat16, mx.float32)
OTHER_ORDER = (64, 128)  # inputs; for so few, MLX multiplies one row with yet another kernel
SIMD_GROUPS = 2  # of 32 lanes, in a threadgroup
FASTER = 0.97  # of the best other way's time; less of a gain is noise

Launch = Callable[..., list[mx.array]]
"""Called as what `mx.fast.metal_kernel` returns."""


def why_not() -> str:
    """What keeps the kernel from running on this machine; empty where nothing does."""
    if not hasattr(mx.fast, "metal_kernel"):
        return "this MLX has no mx.fast.metal_kernel"
    if not mx.metal.is_available():
        return "no Metal device"
    if mx.default_device() != mx.gpu:
        return f"MLX runs on {mx.default_device()}, not on the GPU"
    return ""


def available() -> bool:
    """Whether this machine has what the kernel runs on. That it compiles and is right, `check` alone can say."""
    return not why_not()


def lane_values(inputs: int, bits: int) -> int:
    """How many inputs of a block a lane takes, in MLX's kernel for one row: twice as many where blocks fill K."""
    wide = 64 // bits
    return wide if inputs % (32 * wide) == 0 else wide // 2


def refusal(
    rows: int, dtype: mx.Dtype, w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int
) -> str:
    """Why the kernel does not take this product; empty where it does."""
    if not 2 <= rows <= MOST_ROWS:
        return f"it takes 2 to {MOST_ROWS} rows, not {rows}"
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
) -> mx.array:
    """x · dequantised(w)ᵀ, [..., N] of x's type. Use it only where `check` has found it usable.

    Args:
        x: [..., K], 2 to 8 rows in all; of one type with scales and biases: float16, bfloat16 or float32.
        launch: in place of the Metal kernel.

    Raises:
        OptionError: a product that the kernel does not take, or, without `launch`, no Metal GPU; the message says why.
    """
    rows = prod(x.shape[:-1])
    reason = refusal(rows, x.dtype, w, scales, biases, group_size, bits)
    inputs = w.shape[-1] * 32 // bits
    if not reason and x.shape[-1] != inputs:
        reason = f"rows of {x.shape[-1]} values do not fit weights of {inputs} inputs"
    if not reason and launch is None:
        reason = why_not()
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
            ("LANE", lane_values(inputs, bits)),
        ],
        grid=(32, SIMD_GROUPS * groups, 1),
        threadgroup=(32, SIMD_GROUPS, 1),
        output_shapes=[(rows, outputs)],
        output_dtypes=[x.dtype],
    )
    return y.reshape(*x.shape[:-1], outputs)


@cache
def _metal() -> Launch:
    """The kernel; MLX compiles it at the first evaluation of each template."""
    body = files("mlxmtp.identity").joinpath("few_rows.metal").read_text(encoding="utf-8")
    kernel = mx.fast.metal_kernel(
        name="mlxmtp_few_rows", input_names=["x", "w", "scales", "biases"], output_names=["y"], source=body
    )
    return cast(Launch, kernel)


@dataclass(frozen=True)
class Way:
    """One way to compute the product, on this machine.

    Args:
        exact: whether every row had the bits of `mx.quantized_matmul` over that row alone, in all trials.
        seconds: of one product, median.
    """

    name: str
    exact: bool
    seconds: float


@dataclass(frozen=True)
class Finding:
    """What the kernel is worth for one matrix and one number of rows.

    Args:
        usable: it was exact, and faster than every other exact way.
        reason: one line for the user.
        ways: what was measured, the kernel first; empty where it could not run or was not exact.
    """

    rows: int
    usable: bool
    reason: str
    ways: tuple[Way, ...] = ()


def check(
    w: mx.array,
    scales: mx.array,
    biases: mx.array | None,
    group_size: int,
    bits: int,
    rows: int,
    launch: Launch | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Finding:
    """Compare the kernel with one-row products bit for bit, then time it against MLX's own ways. Fails closed.

    MLX's ways: all rows at once, which counts only where it is exact too; row by row; and gathered, one row an expert.
    Takes a few dozen products of the matrix, and the compilation. An exception in the kernel is a finding, not raised.
    """

    def not_used(why: str, ways: tuple[Way, ...] = ()) -> Finding:
        return Finding(rows, False, f"not used: {why}", ways)

    refused = refusal(rows, scales.dtype, w, scales, biases, group_size, bits)
    if refused or (launch is None and (refused := why_not())):
        return not_used(refused)
    trials = _trials(rows, w.shape[1] * 32 // bits, scales.dtype)
    known = _known_ways(w, scales, biases, group_size, bits)
    expected = [known["row by row"](x) for x in trials]
    try:
        differing = _differing(
            [few_row_matmul(x, w, scales, biases, group_size, bits, launch) for x in trials], expected
        )
    except Exception as error:  # whatever the compiler or the driver has to say
        return not_used(
            f"the kernel failed: {str(error).strip().splitlines()[0] if str(error).strip() else repr(error)}"
        )
    if differing:
        return not_used(f"{differing} of {sum(y.size for y in expected)} values differ from one-row products")
    exact = {name: _differing([way(x) for x in trials], expected) == 0 for name, way in known.items()}

    def kernel(x: mx.array) -> mx.array:
        return few_row_matmul(x, w, scales, biases, group_size, bits, launch)

    seconds = _seconds({"the kernel": kernel, **known}, trials[0], clock)
    ways = (Way("the kernel", True, seconds["the kernel"]), *(Way(name, exact[name], seconds[name]) for name in known))
    own, best = ways[0], min((way for way in ways[1:] if way.exact), key=lambda way: way.seconds)
    compared = f"{1e6 * own.seconds:.0f} µs, {best.name} {1e6 * best.seconds:.0f} µs"
    if own.seconds > FASTER * best.seconds:
        return not_used(f"equal, but not faster: {compared}", ways)
    return Finding(rows, True, f"equal and faster: {compared}", ways)


def _trials(rows: int, inputs: int, dtype: mx.Dtype) -> list[mx.array]:
    """Rows that would tell if one leaked into another or were added up in another order: even, and of wild scales."""
    even, outliers, sizes = (mx.random.normal((rows, inputs), key=mx.random.key(seed)) for seed in range(3))
    wild = outliers * mx.exp(sizes) * 0.5 ** mx.arange(rows)[:, None]  # within float16
    return [even.astype(dtype), outliers.astype(dtype), wild.astype(dtype)]


def _known_ways(
    w: mx.array, scales: mx.array, biases: mx.array | None, group_size: int, bits: int
) -> dict[str, Callable[[mx.array], mx.array]]:
    def at_once(x: mx.array) -> mx.array:
        return mx.quantized_matmul(x, w, scales, biases, transpose=True, group_size=group_size, bits=bits)

    def row_by_row(x: mx.array) -> mx.array:
        return mx.concatenate([at_once(x[r : r + 1]) for r in range(x.shape[0])])

    def gathered(x: mx.array) -> mx.array:
        y = mx.gather_qmm(
            x[:, None],
            w[None],
            scales[None],
            None if biases is None else biases[None],
            rhs_indices=mx.zeros(x.shape[0], mx.uint32),
            transpose=True,
            group_size=group_size,
            bits=bits,
        )
        return y[:, 0]

    return {"row by row": row_by_row, "at once": at_once, "gathered": gathered}


def _differing(found: list[mx.array], expected: list[mx.array]) -> int:
    """How many values differ in any bit."""
    whole = mx.uint32 if expected[0].dtype == mx.float32 else mx.uint16
    differs = [mx.sum(a.view(whole) != b.view(whole)) for a, b in zip(found, expected, strict=True)]
    return int(cast(int, sum(differs, mx.array(0)).item()))


def _seconds(
    ways: Mapping[str, Callable[[mx.array], mx.array]], x: mx.array, clock: Callable[[], float]
) -> dict[str, float]:
    """The median over rounds in which the ways take turns; several products a turn, so that a launch counts little."""
    rounds, products = 7, 8
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = clock()
            mx.eval([way(x) for _ in range(products)])
            seconds[name].append((clock() - start) / products)
    return {name: statistics.median(taken) for name, taken in seconds.items()}
