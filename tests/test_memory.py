"""The memory that the driver of the GPU recommends: it can be used, and it is wired once, when a model is loaded."""

from __future__ import annotations

import sys

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load, machine
from mlxmtp.worker.messages import Load, Warned
from tests.worker.driving import SMALL_MODEL, serve

RECOMMENDED = 2**34


@pytest.fixture
def wired(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The limits that are set on a device that recommends one."""
    limits: list[int] = []
    info = mx.device_info(mx.default_device())
    monkeypatch.setattr(mx, "device_info", lambda *_: info | {"max_recommended_working_set_size": RECOMMENDED})
    monkeypatch.setattr(mx, "set_wired_limit", lambda limit: limits.append(limit) or 0)
    return limits


def test_what_is_recommended_can_be_used(wired: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.usable_memory() == RECOMMENDED
    assert machine.memory_warning(RECOMMENDED * 8 // 10) is None
    assert machine.memory_warning(RECOMMENDED) == (
        "the model takes 17.2 GB of the 17.2 GB that it can use here; it can be slow"
    )
    monkeypatch.delitem(sys.modules, "mlx.core")  # as before MLX is imported
    assert machine.usable_memory() == int(machine.USABLE_FRACTION * machine.memory_bytes())
    assert wired == []


def test_memory_is_wired_once_when_the_model_is_loaded(wired: list[int]) -> None:
    engine = load(SMALL_MODEL)
    assert wired == [RECOMMENDED], "before the probe and the first turn"
    assert engine.guarantee.complete
    for _ in range(2):
        engine.generate("Hello", GenerationOptions(max_tokens=3))
    assert wired == [RECOMMENDED]


def test_a_model_that_leaves_no_memory_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "memory_warning", lambda _: "it can be slow")
    assert Warned(0, "it can be slow") in serve(Load(1, str(SMALL_MODEL)))
