"""What the choices of `--depth auto` are worth, without the noise of a machine's clock.

    .venv/bin/python scripts/replay_rounds.py [--model PATH] [--prompts FILE] [--temp 0.7] [--limit 6]

Each text is decoded once, and behind each of its tokens it is noted how many of the head's drafts would stand there.
Plain decoding, fixed depths and auto then go through the notes, each round at the price of its kind. Auto, which
begins with nothing known, reads a clock that strays as that of the measured machine does: it changes its pace by a
factor of 1.6 every second or so. The means of several runs are shown, with their standard deviation.
"""

from __future__ import annotations

import argparse
import math
import random
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import takewhile
from operator import eq
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, cast

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.bench.workloads import WorkloadPrompt, load_prompts, select
from mlxmtp.cli import Parser, guarded, options
from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import PLAIN, FixedDepth, Observation
from mlxmtp.decoding.draft import MTPChain, PromptLookup
from mlxmtp.decoding.loop import StopDecision, generate
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.errors import HeadError

if TYPE_CHECKING:
    from mlxmtp.heads import Head

DRAFTED = (1, 1.64, 2.17, 2.70, 3.2, 3.85, 4.25)
LOOKED_UP = (1, 1.5, 1.87, 2.28, 2.45, 2.95, 3.1, 3.5, 3.8, 4.6, 4.9, 5.3, 5.7, 6.1, 6.3, 6.4, 6.5)
"""Plain steps that a round takes by its drafts, as `price_rounds.py` has them for the demo model on two cores."""
DEEPEST = len(DRAFTED) - 1
FIXED = (0, 1, 2, 3, 4)
STEP, NOISE, BUSY_FACTOR = 0.009, 0.03, 1.62
"""Seconds of a plain step; how far the logarithm of a round's time strays; what other work does to it."""
AT_REST, BUSY = 1.2, 0.4
"""Seconds that each lasts on the average."""


@dataclass(frozen=True)
class Notes:
    """A text. stand: by token of it, how many of DEEPEST drafts behind the tokens before would stand."""

    workload: str
    prompt: list[int]
    tokens: list[int]
    stand: list[int]


class Clock:
    """Times rounds, in seconds, on a machine that other work visits."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._busy, self._left = False, self._rng.expovariate(1 / AT_REST)

    def time(self, steps: float) -> float:
        work, seconds = steps * STEP * math.exp(self._rng.gauss(0, NOISE)), 0.0
        while (needed := work * self._pace) > self._left:
            seconds, work = seconds + self._left, work - self._left / self._pace
            self._busy = not self._busy
            self._left = self._rng.expovariate(1 / (BUSY if self._busy else AT_REST))
        self._left -= needed
        return seconds + needed

    @property
    def _pace(self) -> float:
        return BUSY_FACTOR if self._busy else 1.0


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", help="a model's folder or Hub repo; the bundled demo without it")
    parser.add_argument("--prompts", type=Path, help="JSON lines, as for `mlxmtp bench` (default: ours)")
    parser.add_argument("--limit", type=options.at_least(1), default=6, help="prompts of a workload (default: 6)")
    parser.add_argument("--temp", type=options.number, default=0.0, help="temperature (default: 0)")
    parser.add_argument("--tokens", type=options.at_least(32), default=192, help="of each text (default: 192)")
    parser.add_argument("--runs", type=options.at_least(2), default=16, help="of auto through all texts (default: 16)")
    return guarded(lambda: replayed(parser.parse_args()))


def replayed(args: argparse.Namespace) -> int:
    engine = load(args.model)
    if engine.mtp is None:
        raise HeadError(f"there is no head to draft with: {engine.plain_because}")
    prompts = select(load_prompts(args.prompts), (), args.limit)
    found: list[Notes] = []
    for number, prompt in enumerate(prompts):
        print(f"\r{number} of {len(prompts)} prompts ", end="", file=sys.stderr, flush=True)
        tokens = list(prompt.tokens(engine.tokenizer))
        if len(tokens) + args.tokens + DEEPEST < engine.context:
            sampling = GenerationOptions(temperature=args.temp, seed=number).sampling
            found.append(take_notes(engine, prompt, tokens, sampling, args.tokens))
    print(f"\r{len(found)} of {len(prompts)} prompts fit and were decoded", file=sys.stderr)
    if found:
        report(found, args.runs)
    return 0


def take_notes(engine: Engine, prompt: WorkloadPrompt, tokens: list[int], sampling: Sampling, count: int) -> Notes:
    """Decode with DEEPEST drafts a round of which one token is kept, however many stand."""
    sequence = Sequence(engine.target, engine.mtp)
    sequence.prefill(tokens)
    sequence.settle()
    sampler, policy = Sampler(sampling, "seeded"), FixedDepth(DEEPEST)
    limit = count + DEEPEST  # near its end, fewer are drafted
    drafter, one_token = MTPChain(cast("Head", engine.mtp)), StopDecision(1, None)
    rounds = list(generate(engine.target, drafter, sequence, sampler, policy, lambda _: one_token, limit))
    text = [one.tokens[0] for one in rounds]
    return Notes(prompt.workload, tokens, text, [one.accepted for one in rounds[:count]])


def fixed(notes: Notes, depth: int) -> float:
    """Plain steps of a text at a fixed depth."""
    done, steps, count = 0, 0.0, len(notes.stand)
    while done < count:
        drafted = min(depth, count - done - 1)
        steps += DRAFTED[drafted]
        done += min(notes.stand[done], drafted) + 1
    return steps


def chosen(notes: Notes, policy: AutoDepth, clock: Clock) -> float:
    """Plain steps of a text with auto, which learns from it."""
    lookup = PromptLookup(notes.prompt if policy.max_lookup else ())
    done, steps, count, queued = 0, 0.0, len(notes.stand), False
    policy.begin_turn()
    while done < count:
        match, plan = lookup.match, PLAIN if queued else policy.plan([lookup.match])[0]
        depth = min(plan.depth, count - done - 1)
        from_lookup = depth > 0 and plan.source == "lookup"
        queued = depth == 0 and policy.plan([match])[0].depth == 0  # asked while the plain round is in flight
        accepted = min(notes.stand[done], depth)
        if from_lookup:
            accepted = _equal(lookup.after(depth), notes.tokens[done:])
        new, price = notes.tokens[done : done + accepted + 1], (LOOKED_UP if from_lookup else DRAFTED)[depth]
        done, steps = done + len(new), steps + price
        seconds = clock.time(price)
        repeated = _equal(new, lookup.after(len(new))) if match else 0
        round = Round(tuple(new), depth, accepted, 1, seconds=seconds, from_lookup=from_lookup)
        policy.observe([Observation(round, match, repeated)])
        if policy.max_lookup:
            lookup.extend(new)
    return steps


def _equal(one: list[int], other: list[int]) -> int:
    """The length of the common prefix."""
    return sum(1 for _ in takewhile(bool, map(eq, one, other)))


def report(found: list[Notes], runs: int) -> None:
    """Rates, plain decoding's being 1: of fixed depths, of auto, and of auto without looking up."""
    workloads = [*dict.fromkeys(notes.workload for notes in found), "all"]
    autos: dict[str, list[list[float]]] = defaultdict(list)  # by workload and run, with looking up and without
    for run in range(runs):
        steps: dict[str, list[float]] = {workload: [0.0, 0.0] for workload in workloads}
        for i, most in enumerate((len(LOOKED_UP) - 1, 0)):
            policy, clock = AutoDepth(DEEPEST, most), Clock(run)
            for notes in random.Random(run).sample(found, len(found)):
                took = chosen(notes, policy, clock)
                steps[notes.workload][i] += took
                steps["all"][i] += took
        for workload in workloads:
            autos[workload].append(steps[workload])
    heads = [
        "plain",
        *(f"depth {depth}" for depth in FIXED[1:]),
        "auto",
        "no lookup",
        "auto to the best fixed",
        "to no lookup",
    ]
    print("| workload |", " | ".join(heads), "|\n| --- |" + " ---: |" * len(heads))
    for workload in workloads:
        of_it = [notes for notes in found if workload in (notes.workload, "all")]
        plain, *others = (sum(fixed(notes, depth) for notes in of_it) for depth in FIXED)
        auto, no_lookup = zip(*autos[workload], strict=True)
        to_best = [min(plain, *others) / one for one in auto]
        rates = [1.0, *(plain / one for one in others), fmean(plain / one for one in auto)]
        figures = [*rates, fmean(plain / one for one in no_lookup), fmean(to_best), fmean(no_lookup) / fmean(auto)]
        cells = [f"{figure:.2f}" for figure in figures]
        cells[-2] = f"{fmean(to_best):.3f} ± {stdev(to_best):.3f}"
        print(f"| {workload} |", " | ".join(cells), "|")


if __name__ == "__main__":
    sys.exit(main())
