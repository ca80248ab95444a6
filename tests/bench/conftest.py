"""Fixtures: a tiny model, a short plan for it, and a report with invented figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlxmtp import Engine, load
from mlxmtp.bench.plan import BenchPlan, BenchSettings, make_plan
from mlxmtp.bench.summary import summarise
from mlxmtp.bench.workloads import WorkloadPrompt

PROMPTS = [WorkloadPrompt("talk", "one", "Hello there"), WorkloadPrompt("code", "two", "def f(x):\n", raw=True)]
SMALL = BenchSettings(depths=(1, 2), temperatures=(0.0, 0.8), contexts=(96,), tokens=12, repeats=2)


@pytest.fixture(scope="session")
def engine(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32", positions=512, layers=2, interval=2))


@pytest.fixture(scope="session")
def headless(raw_checkpoint: Callable[..., Path]) -> Engine:
    return load(raw_checkpoint("qwen3_5", dtype="float32", positions=512, layers=2, interval=2, head=False))


@pytest.fixture
def plan(engine: Engine) -> BenchPlan:
    return make_plan(engine, SMALL, PROMPTS)


def run(rate: float, *, tokens: int = 100, rounds: int = 50, drafted: Any = (), accepted: Any = ()) -> dict[str, Any]:
    """Return one run of a record."""
    fields = {"tokens": tokens, "rate": rate, "first_s": 0.01, "rounds": rounds, "peak_bytes": 3_000_000}
    return fields | {"drafted": list(drafted), "accepted": list(accepted), "policy": ""}


def record(
    kind: str = "speed", repeat: int = 0, number: int = 0, temperature: float = 0.0, scale: float = 1.0, **more: Any
) -> dict[str, Any]:
    """Return a unit's record: plain decoding at 100 tokens a second, depth 1 at 150, auto at 140, times `scale`."""
    reading = {"seconds": 0.5, "peak_bytes": 4_000_000}
    runs = {
        "mlx-lm": run(100 * scale, rounds=100),
        "plain": run(98 * scale, rounds=100),
        "depth 1": run(150 * scale, rounds=60, drafted=[60], accepted=[42]),
        "auto": run(140 * scale, rounds=60, drafted=[60], accepted=[40]),
    }
    workload = "code" if kind == "speed" else kind
    return {
        "key": f"{kind}/{repeat}/{workload}/{number}/{temperature:g}",
        "kind": kind,
        "repeat": repeat,
        "workload": workload,
        "number": number,
        "temperature": temperature,
        "prompt_tokens": number or 50,
        "time": 1000.0 + repeat,
        "order": list(runs),
        "readings": {"mlx-lm": reading, "ours": reading},
        "cost": cost(number or 50),
        "runs": runs,
        "differs": {},
    } | more


def cost(context: int, one_row: float = 0.01) -> dict[str, Any]:
    """Return a cost record: C(m) = 1, 1.2, 1.4, ...; a draft step costs a tenth of a pass."""
    rows = [one_row * (1 + 0.2 * m) for m in range(8)]
    return {"context": context, "rows": rows, "draft": one_row / 10, "other": 0.001}


HEAD: dict[str, Any] = {
    "schema": 1,
    "identity": "0123456789abcdef",
    "machine": {
        "system": "System <1>",
        "processor": "A & B",
        "cores": 8,
        "memory_bytes": 16 * 10**9,
        "device": "gpu",
        "device_name": "",
    },
    "versions": {"mlx": "1.0"},
    "model": {"name": "some/model", "bytes": 10**9, "head": "qwen-mtp", "plain_because": None},
    "prompts": {"code": 1, "digest": "ab"},
    "settings": {"tokens": 100, "repeats": 3, "acceptance": None, "depths": [1]},
}


@pytest.fixture
def records() -> list[dict[str, Any]]:
    """Records of three repeats of everything."""
    found = []
    for repeat in range(3):
        found += [record(repeat=repeat, temperature=t, scale=1 + 0.1 * repeat) for t in (0.0, 0.7)]
        found += [record("context", repeat, context) for context in (1024, 2048)]
    return found


@pytest.fixture
def report(records: list[dict[str, Any]]) -> dict[str, Any]:
    return summarise(HEAD, records)
