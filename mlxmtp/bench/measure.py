"""Measure a unit of a plan: its arms in turn, and the cost of a round at the same time."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import mlx.core as mx

from mlxmtp.bench.cost_curve import measure_cost
from mlxmtp.bench.plan import MLX_LM, PLAIN, BenchPlan, BenchUnit, depth_of
from mlxmtp.bench.runs import BenchRun, PrefilledPrompt, TokenDecoder
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import is_out_of_memory

WARM_UP = 16
"""Tokens that each arm generates before it is timed. The first rounds compile kernels."""
COST_REPEATS = 3
"""Times that each pass is timed on a prompt. The report takes the median over all prompts and repeats."""

OnStep = Callable[[str], None]
"""Called with a description of what is measured next."""


class Measurement:
    """Measures the units of a plan.

    Args:
        on_step: called with a description of each step.
    """

    def __init__(self, engine: Engine, plan: BenchPlan, on_step: OnStep = lambda _: None) -> None:
        self._decoder = TokenDecoder(engine, plan.settings.acceptance)
        self._plan = plan
        self._on_step = on_step
        self._warm: set[tuple[str, float]] = set()
        self._turn = 0  # units measured so far

    def measure(self, unit: BenchUnit) -> dict[str, Any]:
        """Measure a unit and return its record. If memory runs out, the record says so under "failed"."""
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
            return record | self._arms(unit)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not is_out_of_memory(error):
                raise
            mx.clear_cache()
            return record | {"failed": f"out of memory: {error}"}

    def _cost(self, prompt: PrefilledPrompt) -> dict[str, Any] | None:
        """Return the cost of a round on this prompt, or None where the target cannot take back a pass."""
        target, head = self._decoder.target, self._decoder.head
        if not target.reversible or len(prompt.tokens) < 2:
            return None
        return measure_cost(target, head, prompt.sequence, self._plan.cost_tokens, COST_REPEATS).to_dict()

    def _arms(self, unit: BenchUnit) -> dict[str, Any]:
        self._on_step(f"{unit.workload} {unit.number}")
        self._turn += 1
        prompt = PrefilledPrompt(self._decoder, unit.tokens, ours_first=self._turn % 2 == 0)
        self._warm_up(prompt, unit)
        order = rotated(self._plan.arms, self._turn)
        runs: dict[str, BenchRun] = {}
        for arm in order:
            self._on_step(f"{unit.workload} {unit.number}, {arm}")
            runs[arm] = self._run(prompt, arm, unit, self._plan.settings.tokens)
        self._on_step(f"{unit.workload} {unit.number}, the cost of a round")
        cost = self._cost(prompt)
        record = {
            "cost": cost,
            "order": list(order),
            "readings": {program: asdict(prefill) for program, prefill in prompt.prefills.items()},
        }
        return record | {
            "runs": {arm: runs[arm].to_dict() for arm in self._plan.arms},
            "differs": self._differences(prompt, unit, runs),
        }

    def _run(self, prompt: PrefilledPrompt, arm: str, unit: BenchUnit, count: int) -> BenchRun:
        options = self._options(unit)
        if arm == MLX_LM:
            return prompt.run_mlx_lm(count, options)
        return prompt.run_ours(depth_of(arm), count, options)

    def _options(self, unit: BenchUnit) -> GenerationOptions:
        """Return the options of a unit. Each repeat and prompt has a seed of its own, the same in every run."""
        return self._plan.settings.options(unit.temperature, seed=1000 * unit.repeat + unit.number)

    def _warm_up(self, prompt: PrefilledPrompt, unit: BenchUnit) -> None:
        """Run each arm untimed before the first unit of a kind: other shapes need other kernels."""
        kind = (f"{unit.kind} {unit.number if unit.kind == 'context' else ''}", unit.temperature)
        if kind in self._warm:
            return
        self._warm.add(kind)
        self._on_step("warming up")
        for arm in self._plan.arms:
            self._run(prompt, arm, unit, min(WARM_UP, self._plan.settings.tokens))

    def _differences(self, prompt: PrefilledPrompt, unit: BenchUnit, runs: dict[str, BenchRun]) -> dict[str, Any]:
        """Return the first differing token of each arm whose tokens must equal another arm's, with the logit gap."""
        settings, greedy = self._plan.settings, unit.temperature == 0
        if greedy:
            same = [PLAIN] if settings.acceptance is not None else [arm for arm in runs if arm != MLX_LM]
        else:
            same = [arm for arm in runs if arm not in (MLX_LM, PLAIN)] if settings.verify == "seeded" else []
        expected = runs[MLX_LM if greedy else PLAIN].tokens
        differences: dict[str, Any] = {}
        for arm in same:
            tokens = runs[arm].tokens
            if tokens != expected:
                pairs = enumerate(zip(expected, tokens, strict=False))
                at = next((i for i, (one, other) in pairs if one != other), min(len(expected), len(tokens)))
                wanted, got = expected[at : at + 1], tokens[at : at + 1]
                gap = prompt.gap(expected[:at], wanted[0], got[0]) if wanted and got else None
                differences[arm] = {"at": at, "expected": list(wanted), "found": list(got), "gap": gap}
        return differences


def rotated(arms: tuple[str, ...], turn: int) -> tuple[str, ...]:
    """Return the arms in the order of a turn. The first arm changes from turn to turn."""
    start = turn % len(arms)
    return arms[start:] + arms[:start]
