"""The few-row kernel's body against MLX's one-row order of addition, bit for bit, and what the kernel refuses.

The Metal text itself runs here, compiled for the host by host_kernel.cpp; what Metal's compiler fuses, and how fast
the kernel is, only a Mac can say.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlxmtp.errors import OptionError
from mlxmtp.exactness import few_rows
from mlxmtp.exactness.few_rows import MAX_ROWS, available, few_row_matmul, lane_values
from tests.exactness.host_kernel import BODY, HostKernel
from tests.exactness.one_row import fma, reference
from tests.exactness.products import built, product, same
from tests.grids import grid

SHAPES = {  # (K, N) by group size: one group, blocks filled and not, of one size and of both; N around 2, 4 and 8
    32: [(32, 3), (288, 11), (512, 8), (1056, 5)],
    64: [(192, 8), (448, 3), (1024, 12), (256, 13)],
    128: [(384, 7), (1536, 8), (640, 10), (768, 1)],
}
DTYPES = {"float16": mx.float16, "bfloat16": mx.bfloat16, "float32": mx.float32}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostKernel:
    return built(tmp_path_factory)


@pytest.mark.parametrize(
    ("bits", "group_size", "dtype"),
    grid(
        [4, 8],
        SHAPES,
        DTYPES,
        default=lambda bits, group_size, dtype: group_size == 64 and dtype != ("float16" if bits == 4 else "bfloat16"),
    ),
)
def test_every_row_has_the_bits_of_the_one_row_order(host: HostKernel, bits: int, group_size: int, dtype: str) -> None:
    for inputs, outputs in SHAPES[group_size]:
        given = product(inputs, outputs, group_size, bits, DTYPES[dtype])
        filled = inputs % (512 if bits == 4 else 256) == 0
        each = (16 if bits == 4 else 8) if filled else (8 if bits == 4 else 4)
        for fused in (False, True):
            expected = reference(given.x, given.q, given.scales, given.biases, bits, each, fused=fused)
            for row in range(MAX_ROWS):
                case = inputs, outputs, "alone", row, fused
                assert same(given.alone(host, row, fused=fused), expected[row : row + 1]), case
            for rows in range(2, MAX_ROWS + 1):
                assert same(given.few(rows, host, fused=fused), expected[:rows]), (inputs, outputs, rows, fused)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_reference_tells_orders_of_addition_apart(bits: int) -> None:
    given = product(1024, 8, 64, bits, mx.float32)
    orders = [reference(given.x, given.q, given.scales, given.biases, bits, each) for each in (4, 8, 16)]
    assert not same(orders[0], orders[1])
    assert not same(orders[1], orders[2])
    assert mx.allclose(orders[0], orders[2], rtol=1e-3, atol=1e-2)
    fused = reference(given.x, given.q, given.scales, given.biases, bits, 16, fused=True)
    assert not same(fused, orders[2])
    assert mx.allclose(fused, orders[2], rtol=1e-3, atol=1e-2)


def test_a_fused_product_is_rounded_once() -> None:
    """(1 + e)^2 - 1 - 2e is e^2, which a rounded product loses; and a tie that only the exact sum breaks."""
    e = np.float32(2.0**-20)
    one = np.array([1 + e], np.float32)
    assert fma(one, one, np.array([-1 - 2 * e], np.float32)) == e * e
    above, below = (np.array([2.0**-12 * (1 + sign * e)], np.float32) for sign in (1, -1))
    odd = np.array([1 + 2.0**-23], np.float32)  # the exact sum is below the tie by 2^-64, which float64 loses
    assert fma(above, below, odd) == odd


@pytest.mark.exhaustive  # each compiles a kernel
@pytest.mark.parametrize(
    ("changed", "to"),
    [
        ("+ sums[r] * shift;", "+ sums[0] * shift;"),  # a row takes another's
        ("4 * four;", "4 * (8 / BITS - 1 - four);"),  # the same terms, in another order
        ("* dots[r][o]", "* float(T(dots[r][o]))"),  # rounded on the way
    ],
)
def test_a_fault_in_the_body_is_seen(host: HostKernel, tmp_path_factory: Any, changed: str, to: str) -> None:
    body = BODY.read_text("utf-8")
    assert body.count(changed) == 1
    faulty = HostKernel.build(tmp_path_factory.mktemp("faulty"), body.replace(changed, to))
    given = product(1024, 8, 64, 4, mx.bfloat16)
    whole = [product(1024, 8, 64, 4, mx.float32), given]
    assert any(not same(each.few(3, faulty), each.few(3, host)) for each in whole)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("group_size", [32, 64, 128])
@pytest.mark.parametrize("inputs", [384, 1024])
def test_it_is_the_product_with_the_weights_that_mlx_packed(
    host: HostKernel, inputs: int, group_size: int, bits: int
) -> None:
    x, weights = (mx.random.normal((rows, inputs), key=mx.random.key(rows)) for rows in (5, 24))
    w, scales, biases = mx.quantize(weights, group_size=group_size, bits=bits)
    dense = np.array(mx.dequantize(w, scales, biases, group_size=group_size, bits=bits)).astype(np.float64)
    expected = np.array(x).astype(np.float64) @ dense.T
    found = few_row_matmul(x[None], w, scales, biases, group_size, bits, launch=host)
    assert found.shape == (1, 5, 24)
    # each of K products and additions is off by half an ulp at most, of what the terms add up to without their signs
    bound = (
        2.0**-23 * inputs * (np.abs(np.array(x)) @ np.abs(dense).T + np.abs(np.array(x)).sum() * np.abs(dense).max())
    )
    assert (np.abs(np.array(found)[0] - expected) < bound).all()
    assert np.abs(np.array(found)[0] - expected).max() < 1e-3


@pytest.mark.parametrize("bits", [4, 8])
def test_weights_are_read_once_however_many_rows(host: HostKernel, bits: int) -> None:
    given = product(1024, 24, 64, bits, mx.float16)
    reads = []
    for rows in range(2, MAX_ROWS + 1):
        given.few(rows, host)
        reads.append(host.reads)
    assert reads == [given.w.size] * (MAX_ROWS - 1)


def test_a_lane_takes_twice_as_much_where_blocks_are_filled() -> None:
    taken = {(4, 512): 16, (4, 1024): 16, (4, 768): 8, (4, 96): 8, (8, 256): 8, (8, 768): 8, (8, 384): 4, (8, 32): 4}
    assert {key: lane_values(key[1], key[0]) for key in taken} == taken


def refused(**changes: Any) -> pytest.ExceptionInfo[OptionError]:
    given = product(512, 8, 64, 4, mx.float16)
    names = ("x", "w", "scales", "biases", "group_size", "bits")
    arguments = {name: getattr(given, name) for name in names} | {"x": given.x[:4]} | changes
    with pytest.raises(OptionError) as error:
        few_row_matmul(**arguments, launch=lambda **_: pytest.fail("it was launched"))
    return error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": mx.zeros((1, 512), mx.float16)}, "2 to 8 rows, not 1"),
        ({"x": mx.zeros((3, 3, 512), mx.float16)}, "2 to 8 rows, not 9"),
        ({"x": mx.zeros((4, 256), mx.float16)}, "rows of 256 values do not fit weights of 512 inputs"),
        ({"x": mx.zeros((4, 512), mx.float32)}, "of one float type"),
        ({"x": mx.zeros((4, 512), mx.int32)}, "of one float type"),
        ({"bits": 6}, "not 6 bits in groups of 64"),
        ({"group_size": 16}, "not 4 bits in groups of 16"),
        ({"group_size": 128}, "do not fit 8 outputs of 512 inputs"),
        ({"biases": None}, "no biases"),
        ({"biases": mx.zeros((8, 4), mx.float16)}, "do not fit"),
        ({"w": mx.zeros((2, 8, 64), mx.uint32)}, "one matrix"),
        ({"w": mx.zeros((8, 64), mx.uint8)}, "packed in uint32"),
    ],
)
def test_what_it_does_not_take_is_refused(changes: dict[str, Any], message: str) -> None:
    error = refused(**changes)
    assert message in str(error.value)
    assert "Use mx.quantized_matmul" in str(error.value)


@pytest.mark.parametrize("inputs", [64, 128])
def test_so_few_inputs_that_mlx_has_another_kernel_are_refused(inputs: int) -> None:
    given = product(inputs, 8, 64, 4, mx.float16)
    with pytest.raises(OptionError, match=f"{inputs} inputs in an order of its own"):
        given.few(2, lambda **_: pytest.fail("it was launched"))


def test_nothing_runs_where_there_is_no_metal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: False)
    given = product(512, 8, 64, 4, mx.float16)
    assert not available()
    with pytest.raises(OptionError, match="no Metal device"):
        given.few(2)


def test_a_metal_device_that_mlx_does_not_use_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mx.metal, "is_available", lambda: True)
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.cpu))
    assert "not on the GPU" in few_rows.unavailable_reason()
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    assert available()
    monkeypatch.delattr(mx.fast, "metal_kernel")
    assert not available()


def test_mlx_is_given_the_text_that_is_tested_here(monkeypatch: pytest.MonkeyPatch) -> None:
    made: dict[str, Any] = {}
    monkeypatch.setattr(mx.fast, "metal_kernel", lambda **given: made.update(given))
    few_rows._metal.__wrapped__()
    assert made["source"] == BODY.read_text("utf-8")
    assert (made["input_names"], made["output_names"]) == (["x", "w", "scales", "biases"], ["y"])


def test_the_body_asks_for_what_the_harness_gives() -> None:
    """MLX adds an argument for each of these names that it finds in the text, comments included."""
    places = "grid", "threadgroup", "simdgroup", "quadgroup"
    names = [
        f"{what}_{how}_in_{place}" for what in ("thread", *places) for how in ("position", "index") for place in places
    ]
    names += ["grid_origin", "grid_size", "per_grid", "per_threadgroup", "per_simdgroup", "execution_width"]
    names += [f"{array}_{what}" for array in ("x", "w", "scales", "biases") for what in ("shape", "strides", "ndim")]
    body = BODY.read_text("ascii")  # MLX passes it on as it is, and Metal's compiler takes nothing else
    found = {name for name in names if name in body}
    assert found == {"thread_position_in_grid", "thread_index_in_simdgroup", "x_shape", "w_shape"}
