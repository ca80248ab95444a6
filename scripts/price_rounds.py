"""What the choices of `--depth auto` are worth, on a machine too busy to time whole runs.

    .venv/bin/python scripts/price_rounds.py [--model PATH] [--prompts FILE] [--temp 0.7] [--limit 4] [--depths 1 2 3]

Plain decoding, fixed depths and auto, with looking up and without, go on from the same prompts. A round is priced with
the mean time of all rounds of its kind, in plain steps of the same prompt: whatever else the machine does meanwhile
falls on all arms alike. The table has the rates that come of it, plain decoding's being 1. Below it are the prices, and
what auto's own rounds took of the time that the others' of their kind did, where an overhead of its would show. Above
temperature 0 a seed makes the tokens of all arms the same. As in all runs but a model's first, auto knows something of
costs and drafts when it begins: from one of our prompts of each workload.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from math import hypot, inf, sqrt
from pathlib import Path
from statistics import fmean, median, stdev

from mlxmtp import Engine, GenerationOptions, load
from mlxmtp.bench.workloads import WorkloadPrompt, load_prompts, select
from mlxmtp.cli import Parser, guarded, options
from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import DepthPolicy, FixedDepth
from mlxmtp.decoding.draft import MTPChain, narrowed_chain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.stats import Round
from mlxmtp.errors import HeadError

PLAIN, AUTO, NO_LOOKUP = "plain", "auto", "no lookup"
AUTOS = (AUTO, NO_LOOKUP)
OUTLIER = 2.0
"""A round that took so many times the median of its kind was disturbed, and counts as that."""

Kind = tuple[int, bool]
"""Drafts of a round; whether they were looked up."""


@dataclass(frozen=True)
class Run:
    """An arm at a prompt. rounds: without the first, whose time is none of decoding. step: plain decoding's seconds."""

    workload: str
    arm: str
    rounds: list[Round]
    step: float


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("--model", help="a model's folder or Hub repo; the bundled demo without it")
    parser.add_argument("--prompts", type=Path, help="JSON lines, as for `mlxmtp bench` (default: ours)")
    parser.add_argument("--limit", type=options.at_least(1), default=4, help="prompts of a workload (default: 4)")
    parser.add_argument("--temp", type=options.number, default=0.0, help="temperature (default: 0)")
    parser.add_argument(
        "--depths", type=options.fixed_depth, nargs="+", default=[1, 2, 3], help="fixed depths (default: 1 2 3)"
    )
    parser.add_argument("--tokens", type=options.at_least(32), default=128, help="of each run (default: 128)")
    return guarded(lambda: priced(parser.parse_args()))


def priced(args: argparse.Namespace) -> int:
    engine = load(args.model)
    auto = engine.policies.fresh()
    if not isinstance(auto, AutoDepth):
        raise HeadError(f"there is no head to draft with: {engine.plain_because}")
    arms: dict[str, DepthPolicy] = {PLAIN: FixedDepth(0)}
    arms |= {f"depth {depth}": FixedDepth(depth) for depth in args.depths}
    arms |= {AUTO: auto, NO_LOOKUP: AutoDepth(auto.max_depth)}
    lessons, prompts = select(load_prompts(None), (), 1), select(load_prompts(args.prompts), (), args.limit)
    runs: list[Run] = []
    for number, prompt in enumerate([*lessons, *prompts]):
        print(f"\r{number} of {len(lessons) + len(prompts)} prompts ", end="", file=sys.stderr, flush=True)
        tokens = list(prompt.tokens(engine.tokenizer))
        if len(tokens) + args.tokens >= engine.context:
            continue
        if number < len(lessons):
            runs_of(engine, prompt, tokens, number, {arm: arms[arm] for arm in (PLAIN, *AUTOS)}, args)
        else:
            runs += runs_of(engine, prompt, tokens, number, arms, args)
    print(f"\r{len(runs) // len(arms)} of {len(prompts)} prompts fit and were measured", file=sys.stderr)
    if runs:
        report(runs, list(arms))
    return 0


def runs_of(
    engine: Engine,
    prompt: WorkloadPrompt,
    tokens: list[int],
    number: int,
    arms: dict[str, DepthPolicy],
    args: argparse.Namespace,
) -> list[Run]:
    """All arms at a prompt, another first each time."""
    read = Sequence(engine.target, engine.mtp)
    read.prefill(tokens)
    read.settle()
    first, names, found = number % len(arms), list(arms), {}
    for arm in names[first:] + names[:first]:
        head = None if arm == PLAIN else engine.mtp
        sequence = read.fork()
        sequence.drafting = head is not None
        sampler = Sampler(GenerationOptions(temperature=args.temp, seed=number).sampling, "seeded")
        drafter = MTPChain(head) if head else None
        narrowed = narrowed_chain(head, engine.narrowed)
        turn = (engine.target, drafter, sequence, sampler, arms[arm], never_stop, args.tokens, None, narrowed)
        found[arm] = list(generate(*turn))[1:]
    step = median(one.seconds for one in found[PLAIN])
    return [Run(prompt.workload, arm, rounds, step) for arm, rounds in found.items()]


def kind_of(one: Round) -> Kind:
    return one.drafted, one.from_lookup


def times_of(runs: list[Run]) -> dict[Kind, list[list[float]]]:
    """Plain steps that rounds of each kind took, a list for each run that has any; what disturbed them is cut off."""
    times: dict[Kind, list[list[float]]] = {}
    for run in runs:
        found = defaultdict(list)
        for one in run.rounds:
            if one.phases is None:  # else it was evaluated in parts
                found[kind_of(one)].append(one.seconds / run.step)
        for kind, of_run in found.items():
            times.setdefault(kind, []).append(of_run)
    most = {kind: OUTLIER * median(chain(*found)) for kind, found in times.items()}
    return {kind: [[min(time, most[kind]) for time in of_run] for of_run in found] for kind, found in times.items()}


def mean_of(times: list[list[float]]) -> tuple[float, float]:
    """The mean of all times and its standard error, by the means of runs: what disturbs a run has all its rounds."""
    means = [fmean(of_run) for of_run in times]
    return fmean(chain(*times)), stdev(means) / sqrt(len(means)) if len(means) > 1 else inf


def overhead(runs: list[Run]) -> dict[Kind, tuple[float, float]]:
    """Time of auto's rounds to that of the other arms' of the same kind, with the standard error."""
    auto = times_of([run for run in runs if run.arm in AUTOS])
    others = times_of([run for run in runs if run.arm not in AUTOS])
    found = {}
    for kind in sorted(auto.keys() & others):
        (mine, error), (theirs, other) = mean_of(auto[kind]), mean_of(others[kind])
        found[kind] = mine / theirs, mine / theirs * hypot(error / mine, other / theirs)
    return found


def report(runs: list[Run], arms: list[str]) -> None:
    prices = {kind: mean_of(times)[0] for kind, times in times_of(runs).items()}
    plain = prices[0, False]
    print("| workload |", " | ".join(arms), "| auto to the best of plain and fixed | with looking up to without |")
    print("| --- |" + " ---: |" * (len(arms) + 2))
    for workload in [*dict.fromkeys(run.workload for run in runs), "all"]:
        rates = {}
        for arm in arms:
            rounds = [one for run in runs if run.arm == arm and workload in (run.workload, "all")
                      for one in run.rounds if kind_of(one) in prices]  # fmt: skip
            steps = sum(prices[kind_of(one)] for one in rounds)
            rates[arm] = sum(len(one.tokens) for one in rounds) * plain / steps
        best = max(rate for arm, rate in rates.items() if arm not in AUTOS)
        figures = [*rates.values(), rates[AUTO] / best, rates[AUTO] / rates[NO_LOOKUP]]
        print(f"| {workload} |", " | ".join(f"{figure:.2f}" for figure in figures), "|")
    print("\nplain steps that a round takes:", said({kind: f"{price / plain:.2f}" for kind, price in prices.items()}))
    beside = {kind: f"{ratio:.2f} ± {error:.2f}" for kind, (ratio, error) in overhead(runs).items()}
    print("\nauto's rounds to the others' of their kind:", said(beside))


def said(figures: dict[Kind, str]) -> str:
    return ", ".join(
        f"{drafts} {'looked up' * up or 'drafted'} {figures[drafts, up]}" for drafts, up in sorted(figures)
    )


if __name__ == "__main__":
    sys.exit(main())
