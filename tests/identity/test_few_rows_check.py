"""What `check` finds of the few-row kernel on machines of several kinds: it fails closed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import pytest

from tests.identity.host_kernel import HostKernel, as_bits
from tests.identity.products import Product, built, one, product


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostKernel:
    return built(tmp_path_factory)


@dataclass
class Machine:
    """A stand-in for a Mac: a one-row product is the body's; several rows at once are not, unless `old` (M1, M2).

    Time passes only by launches; the fields say how many seconds for each, `row` and `gathered` by call.
    """

    host: HostKernel
    kernel: float
    row: float = 1.0
    at_once: float = 1.0
    gathered: float = 9.0
    old: bool = False
    now: float = 0.0
    launches: list[dict[str, Any]] = field(default_factory=list)

    def clock(self) -> float:
        return self.now

    def launch(self, **given: Any) -> list[mx.array]:
        self.now += self.kernel
        self.launches.append(given)
        return self.host(**given)

    def quantized_matmul(
        self, x: mx.array, *weights: mx.array, transpose: bool, group_size: int, bits: int
    ) -> mx.array:
        assert transpose
        self.now += self.row if x.shape[0] == 1 else self.at_once
        if x.shape[0] == 1 or self.old:
            return self._rows(x, *weights, group_size, bits)
        return x @ mx.dequantize(*weights, group_size=group_size, bits=bits).T

    def gather_qmm(
        self, x: mx.array, *weights: mx.array, rhs_indices: mx.array, transpose: bool, group_size: int, bits: int
    ) -> mx.array:
        assert transpose
        assert rhs_indices.tolist() == [0] * len(x)
        self.now += self.gathered
        return self._rows(x[:, 0], *(array[0] for array in weights), group_size, bits)[:, None]

    def _rows(self, x: mx.array, *given: Any) -> mx.array:
        return mx.concatenate([one(self.host, x[row : row + 1], *given) for row in range(len(x))])


@pytest.fixture
def given() -> Product:
    return product(512, 24, 64, 4, mx.float32)


@pytest.fixture
def machine(host: HostKernel, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Machine]:
    def make(**seconds: Any) -> Machine:
        made = Machine(host, **seconds)
        monkeypatch.setattr(mx, "quantized_matmul", made.quantized_matmul)
        monkeypatch.setattr(mx, "gather_qmm", made.gather_qmm)
        return made

    return make


def test_equal_and_faster_is_used(machine: Callable[..., Machine], given: Product) -> None:
    mac = machine(kernel=1.5, row=1.0, at_once=0.5, gathered=2.5)  # at once is faster still, but not exact
    found = given.check(3, launch=mac.launch, clock=mac.clock)
    assert found.usable
    assert found.reason == "equal and faster: 1500000 µs, gathered 2500000 µs"
    assert {(way.name, way.exact, way.seconds) for way in found.ways} == {
        ("the kernel", True, 1.5),
        ("row by row", True, 3.0),
        ("at once", False, 0.5),
        ("gathered", True, 2.5),
    }


def test_equal_but_not_faster_is_not_used(machine: Callable[..., Machine], given: Product) -> None:
    mac = machine(kernel=1.99, row=1.0)
    found = given.check(2, launch=mac.launch, clock=mac.clock)
    assert not found.usable
    assert found.reason.startswith("not used: equal, but not faster: ")
    assert found.ways[0].exact


def test_where_all_rows_at_once_are_exact_it_must_beat_them(machine: Callable[..., Machine], given: Product) -> None:
    mac = machine(kernel=1.5, row=1.0, at_once=1.2, old=True)
    found = given.check(4, launch=mac.launch, clock=mac.clock)
    assert not found.usable
    assert "at once 1200000 µs" in found.reason


@pytest.mark.parametrize("trial", range(3))
def test_one_bit_off_in_one_value_is_not_used(machine: Callable[..., Machine], given: Product, trial: int) -> None:
    mac = machine(kernel=0.1)

    def nearly(**call: Any) -> list[mx.array]:
        (y,) = mac.launch(**call)
        bits = as_bits(y)
        bits[-1, 5] ^= len(mac.launches) == trial + 1
        return [mx.array(bits).view(mx.float32)]

    found = given.check(5, launch=nearly, clock=mac.clock)
    assert (found.usable, found.ways) == (False, ())
    assert found.reason == f"not used: 1 of {3 * 5 * 24} values differ from one-row products"


def test_a_kernel_that_does_not_compile_is_not_used_and_told(given: Product) -> None:
    def broken(**_: Any) -> list[mx.array]:
        raise RuntimeError("[metal::Device] Unable to build metal library from source\nprogram_source:3: error: ...")

    found = given.check(2, launch=broken)
    assert not found.usable
    assert found.reason == ("not used: the kernel failed: [metal::Device] Unable to build metal library from source")


def test_what_the_kernel_does_not_take_is_a_finding_too(given: Product) -> None:
    found = given.check(9, launch=lambda **_: pytest.fail("it was launched"))
    assert (found.usable, found.reason) == (False, "not used: it takes 2 to 8 rows, not 9")


def test_against_another_order_of_addition_the_kernel_is_not_used(host: HostKernel, given: Product) -> None:
    """MLX's CPU backend adds otherwise than Metal's; the machine's own one-row product is what counts."""
    found = given.check(4, launch=host)
    assert not found.usable
    assert "differ from one-row products" in found.reason
