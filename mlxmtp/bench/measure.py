"""Measuring one unit of a plan: all of its arms in turn, and what a round costs at the same moment."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import asdict
from typing import Any

import mlx.core as mx
from mlx_lm.generate import wired_limit

from mlxmtp.bench.arms import ReadPrompt, Run, TokenEngine
from mlxmtp.bench.plan import MLX_LM, PLAIN, Plan, Unit, depth_of
from mlxmtp.decoding.cost_curve import measure_cost
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.engine.engine import Engine
from mlxmtp.errors import is_out_of_memory

WARM_UP = 16
"""Tokens that each arm generates before it is timed: the first rounds compile."""

COST_REPEATS = 3
"""Of the passes that are timed behind each prompt; all repeats and prompts together make the medians."""

Tell = Callable[[str], None]


class Bench:
    """Measures the units of a plan.

    Args:
        tell: told in a few words what is being measured now.
    """

    def __init__(self, engine: Engine, plan: Plan, tell: Tell = lambda _: None) -> None:
        self._engine = TokenEngine(engine, plan.settings.acceptance)
        self._plan = plan
        self._tell = tell
        self._warm: set[tuple[str, float]] = set()
        self._turn = 0

    def measure(self, unit: Unit) -> dict[str, Any]:
        """The record of a unit. What does not fit into memory is a record too."""
        record: dict[str, Any] = {
            "key": unit.key,
            "kind": unit.kind,
            "repeat": unit.repeat,
            "workload": unit.workload,
            "number": unit.number,
            "temperature": unit.temperature,
            "prompt_tokens": len(unit.tokens),
            "time": time.time(),
        }
        try:
            with redirect_stdout(sys.stderr), wired_limit(self._engine.target.model):  # it prints its warning
                return record | self._arms(unit)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            mx.clear_cache()
            return record | {"failed": f"out of memory: {error}"}

    def _cost(self, read: ReadPrompt) -> dict[str, Any] | None:
        """Where the target can take rows back, behind some."""
        engine = self._engine
        if not engine.target.reversible or len(read.tokens) < 2:
            return None
        return asdict(measure_cost(engine.target, engine.mtp, read.ours, self._plan.rows, COST_REPEATS))

    def _arms(self, unit: Unit) -> dict[str, Any]:
        self._tell(f"{unit.workload} {unit.number}")
        self._turn += 1
        read = ReadPrompt(self._engine, unit.tokens, ours_first=self._turn % 2 == 0)
        self._warm_up(read, unit)
        order = rotated(self._plan.arms, self._turn)
        runs: dict[str, Run] = {}
        for arm in order:
            self._tell(f"{unit.workload} {unit.number}, {arm}")
            runs[arm] = self._run(read, arm, unit, self._plan.settings.tokens)
        self._tell(f"{unit.workload} {unit.number}, the cost of a round")
        cost = self._cost(read)
        found = {
            "cost": cost,
            "order": list(order),
            "readings": {who: asdict(reading) for who, reading in read.readings.items()},
        }
        return found | {
            "runs": {arm: runs[arm].to_dict() for arm in self._plan.arms},
            "differs": self._differences(read, unit, runs),
        }

    def _run(self, read: ReadPrompt, arm: str, unit: Unit, count: int) -> Run:
        sampling = self._sampling(unit)
        if arm == MLX_LM:
            return read.run_mlx_lm(count, sampling)
        verify = None if sampling.greedy else self._plan.settings.verify
        return read.run_ours(depth_of(arm), count, sampling, verify)

    def _sampling(self, unit: Unit) -> Sampling:
        """Another seed for each repeat and prompt, the same whenever it is run."""
        return Sampling(temperature=unit.temperature, seed=1000 * unit.repeat + unit.number)

    def _warm_up(self, read: ReadPrompt, unit: Unit) -> None:
        """Before the first unit of a kind: shapes, and the kernels of a long context, differ from others."""
        kind = (f"{unit.kind} {unit.number if unit.kind == 'context' else ''}", unit.temperature)
        if kind in self._warm:
            return
        self._warm.add(kind)
        self._tell("warming up")
        for arm in self._plan.arms:
            self._run(read, arm, unit, min(WARM_UP, self._plan.settings.tokens))

    def _differences(self, read: ReadPrompt, unit: Unit, runs: dict[str, Run]) -> dict[str, Any]:
        """Of the arms that had to give the very tokens of another: where they do not, and how near the tie was."""
        settings, greedy = self._plan.settings, unit.temperature == 0
        if greedy:
            same = [PLAIN] if settings.acceptance is not None else [arm for arm in runs if arm != MLX_LM]
        else:
            same = [arm for arm in runs if arm not in (MLX_LM, PLAIN)] if settings.verify == "seeded" else []
        truth = runs[MLX_LM if greedy else PLAIN].tokens
        found: dict[str, Any] = {}
        for arm in same:
            tokens = runs[arm].tokens
            if tokens != truth:
                pairs = enumerate(zip(truth, tokens, strict=False))
                at = next((i for i, (one, other) in pairs if one != other), min(len(truth), len(tokens)))
                expected, got = truth[at : at + 1], tokens[at : at + 1]
                gap = read.gap(truth[:at], expected[0], got[0]) if expected and got else None
                found[arm] = {"at": at, "expected": list(expected), "found": list(got), "gap": gap}
        return found


def rotated(arms: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """The arms in the order of a turn: whoever comes first, or behind whom, changes."""
    start = turn % len(arms)
    return arms[start:] + arms[:start]
