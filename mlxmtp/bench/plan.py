"""The plan of a benchmark: its units in the order in which they are measured.

A unit measures every arm once on one prompt. An arm is one way to decode: mlx-lm, plain, a fixed depth, or auto.
A unit is measured as a whole, so that a benchmark that is stopped goes on with the next unit.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from mlxmtp import machine
from mlxmtp.bench.model import model_facts
from mlxmtp.bench.workloads import WorkloadPrompt, long_text
from mlxmtp.engine.engine import Engine
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import OptionError, PromptError
from mlxmtp.limits import VerifyMode

MLX_LM, PLAIN, AUTO = "mlx-lm", "plain", "auto"
CONTEXTS = (1024, 2048, 4096, 8192, 16384, 32768)
"""Default context lengths, in tokens."""
FILTERS = ("top_p", "top_k", "min_p")
"""Settings that a model's files can recommend, beside the temperature."""
MIN_COST_TOKENS = 8
"""Tokens of the widest pass that is timed, at least. Fixed depths beyond 7 widen it."""
COST_ROOM = 64
"""Tokens that measuring the cost can add to a context."""

Kind = Literal["speed", "context"]


@dataclass(frozen=True)
class BenchSettings:
    """The settings of a benchmark. `repeats` is not part of its identity: a finished one can go on with more repeats.

    Args:
        depths: fixed numbers of drafts a round, one arm each.
        temperatures: temperatures of the workloads. Contexts are greedy.
        contexts: context lengths in tokens.
        tokens: tokens that each run generates.
        repeats: runs of each arm on each prompt.
        verify: verification mode above temperature 0.
        acceptance: probability with which each draft is accepted, whatever it is. None: drafts are verified.
        top_p, top_k, min_p: filters above temperature 0, as in `GenerationOptions`.
    """

    depths: tuple[int, ...] = (1, 2, 3, 4)
    temperatures: tuple[float, ...] = (0.0, 0.7)
    contexts: tuple[int, ...] = CONTEXTS
    tokens: int = 128
    repeats: int = 3
    verify: VerifyMode = "block"
    acceptance: float | None = None
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0

    def options(self, temperature: float, seed: int | None = None) -> GenerationOptions:
        """Return the options of a run. At temperature 0 filters and verification mode have no effect.

        Raises:
            OptionError: a value is out of range.
        """
        sampled: dict[str, Any] = {name: getattr(self, name) for name in ("verify", *FILTERS)} if temperature else {}
        return GenerationOptions(temperature=temperature, seed=seed, **sampled)

    def checked(self) -> BenchSettings:
        """Return these settings.

        Raises:
            OptionError: a value is out of range, or two settings contradict each other.
        """
        if self.acceptance is not None and not 0 <= self.acceptance <= 1:
            raise OptionError(f"--synthetic-acceptance is {self.acceptance}; expected a number from 0 to 1")
        if self.acceptance is not None and any(self.temperatures):
            raise OptionError("--synthetic-acceptance prices greedy rounds; leave --temps out, or at 0")
        for temperature in self.temperatures:
            try:
                GenerationOptions(temperature=temperature)
            except ValueError as error:
                raise OptionError(f"--temps: {error}") from error
        self.options(1.0)
        return self


@dataclass(frozen=True)
class BenchUnit:
    """One prompt of a workload, or one long text, at one temperature, in one repeat.

    Args:
        kind: "speed" for a prompt of a workload, "context" for a long text.
        number: index of the prompt in its workload, or the context length in tokens.
        tokens: the prompt's token ids.
    """

    kind: Kind
    repeat: int
    workload: str
    number: int
    temperature: float
    tokens: tuple[int, ...]

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.repeat}/{self.workload}/{self.number}/{self.temperature:g}"


@dataclass(frozen=True)
class BenchPlan:
    """The plan of a benchmark.

    Args:
        arms: names of the arms, in the order of the report.
        units: in the order of measurement.
        head: description of the benchmark, the first line of its records.
        notes: lines about what is left out.
    """

    settings: BenchSettings
    arms: tuple[str, ...]
    units: tuple[BenchUnit, ...]
    head: dict[str, Any]
    notes: tuple[str, ...]

    @property
    def cost_tokens(self) -> int:
        """Tokens of the widest pass that is timed."""
        return max(MIN_COST_TOKENS, *(depth + 1 for depth in self.settings.depths), 1)


def make_plan(engine: Engine, settings: BenchSettings, prompts: Sequence[WorkloadPrompt]) -> BenchPlan:
    """Return the plan of a benchmark.

    Units are ordered by repeat, so that drift shows between repeats, and a benchmark that is stopped early has
    measured some of everything.

    Raises:
        PromptError: no prompt fits into the model's context.
        OptionError: as `BenchSettings.checked`, or the engine refuses a depth.
    """
    settings, notes = settings.checked(), []
    if engine.mtp is None:
        notes.append(f"no MTP: {engine.plain_because}; only plain decoding is measured")
    for depth in settings.depths if engine.mtp else ():
        engine.policies.of(depth)
    fitting, left_out = _fitting(engine, settings, prompts)
    notes += left_out
    contexts = [n for n in settings.contexts if n + _room(settings) <= engine.context]
    if missing := [n for n in settings.contexts if n not in contexts]:
        why = f"the model's context of {engine.context} has no room for them"
        notes.append(f"contexts left out: {', '.join(map(str, missing))}; {why}")
    text = long_text(engine.tokenizer, max(contexts, default=0))
    units = [
        unit
        for repeat in range(settings.repeats)
        for unit in (
            *(
                BenchUnit("speed", repeat, workload, number, temperature, tokens)
                for temperature in settings.temperatures
                for workload, number, tokens in fitting
            ),
            *(BenchUnit("context", repeat, "context", n, 0.0, text[:n]) for n in contexts),
        )
    ]
    facts = {
        "machine": machine.hardware(),
        "versions": machine.versions(),
        "model": model_facts(engine) | {"key": engine.facts.drafting_key()},
    }
    described = {"settings": asdict(settings), "prompts": _prompt_counts(fitting)}
    head = {"schema": 1, "identity": _identity(facts, settings, fitting, text), **facts, **described}
    return BenchPlan(settings, arms(engine, settings), tuple(units), head, tuple(notes))


def arms(engine: Engine, settings: BenchSettings) -> tuple[str, ...]:
    """Return the names of the arms."""
    if engine.mtp is None:
        return MLX_LM, PLAIN
    return MLX_LM, PLAIN, *(f"depth {depth}" for depth in settings.depths), AUTO


def depth_of(arm: str) -> int | None:
    """Return the depth of an arm of mlxmtp. None: chosen for each round (auto)."""
    return None if arm == AUTO else 0 if arm == PLAIN else int(arm.removeprefix("depth "))


def _room(settings: BenchSettings) -> int:
    """Return the tokens that are generated after a prompt, at most."""
    return max(settings.tokens, COST_ROOM)


def _fitting(
    engine: Engine, settings: BenchSettings, prompts: Sequence[WorkloadPrompt]
) -> tuple[list[tuple[str, int, tuple[int, ...]]], list[str]]:
    """Return (workload, number, tokens) of the prompts that fit the context, and notes on the others."""
    fitting, counts, too_long = [], dict.fromkeys((prompt.workload for prompt in prompts), 0), 0
    for prompt in prompts:
        tokens = prompt.tokens(engine.tokenizer)
        number = counts[prompt.workload]
        counts[prompt.workload] += 1
        if len(tokens) + _room(settings) <= engine.context:
            fitting.append((prompt.workload, number, tokens))
        else:
            too_long += 1
    room = f"the model's context of {engine.context} has no room for them and {_room(settings)} tokens more"
    if not fitting:
        raise PromptError(f"none of {too_long} prompts fits: {room}; try shorter ones, or fewer --tokens")
    return fitting, [f"prompts left out: {too_long}; {room}"] if too_long else []


def _prompt_counts(prompts: Sequence[tuple[str, int, tuple[int, ...]]]) -> dict[str, Any]:
    """Return the number of prompts of each workload, and a digest that tells other prompts apart."""
    workloads = [workload for workload, _, _ in prompts]
    digest = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:8]
    return {name: workloads.count(name) for name in dict.fromkeys(workloads)} | {"digest": digest}


def _identity(facts: Mapping[str, Any], settings: BenchSettings, prompts: object, text: tuple[int, ...]) -> str:
    """Return a digest of all that must be the same for measurements to belong to one benchmark."""
    chosen = {name: value for name, value in asdict(settings).items() if name != "repeats"}
    return hashlib.sha256(json.dumps([facts, chosen, prompts, text], sort_keys=True).encode()).hexdigest()[:16]
