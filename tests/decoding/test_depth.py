"""The depth policy on simulated machines and texts: published cost curves, acceptance by position, noisy clocks.

Curves C(1..8) are those of docs/depth.md, "Published cost curves", and some that are harder; acceptances by workload
are those that public threads report.
"""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

import pytest

from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import Observation, Plan
from mlxmtp.decoding.estimates import AcceptanceRate
from mlxmtp.decoding.stats import Round
from tests.grids import cases, grid

MOST = 7
CURVES = {
    "M5 Max, 27B": (1, 1.07, 1.15, 1.28, 1.58, 1.87, 2.17, 2.47),
    "M5 Max, 70B": (1, 1.06, 1.11, 1.26, 1.42, 1.68, 1.94, 2.20),
    "M4 Pro": (1, 1.03, 1.22, 1.47, 1.77, 2.07, 2.38, 2.69),
    "30B-A3B": (1, 1.59, 1.85, 2.14, 2.44, 2.73, 3.03, 3.32),
    "M1": (1, 2, 3, 4, 5, 6, 7, 8),
    "two cores": (1, 1.33, 1.66, 2.0, 2.33, 2.66, 3.0, 3.33),
}
TEXTS = {
    "code": (0.9, 0.88, 0.85, 0.83, 0.8),
    "chat": (0.75, 0.68, 0.6, 0.55),
    "creative": (0.55, 0.5, 0.5, 0.45),
    "R1's head": (0.91, 0.69 / 0.91, 0.47 / 0.69, 0.39 / 0.47),
    "calls": (0.97,),
    "wrong": (0.0,),
    "always": (1.0,),
}
CORNERS = grid(
    CURVES,
    TEXTS,
    default=lambda *case: case in (("M5 Max, 27B", "code"), ("M5 Max, 27B", "always"), ("M1", "code"), ("M1", "wrong")),
)
"""Drafts that are cheap and dear; that are mostly, never and always accepted."""
NOISE, BUSY, BUSY_FACTOR = 0.05, 0.02, 1.5
"""A round's time strays by so much; so often it takes so much longer."""


def at(shares: Sequence[float], i: int) -> float:
    return shares[min(i, len(shares) - 1)]


@dataclass
class World:
    """A machine on which a round of k drafts takes C(k + 1) + k d + o plain steps."""

    curve: Sequence[float]
    draft: float = 0.08
    other: float = 0.05

    def steps(self, depth: int) -> float:
        return 1.0 if depth == 0 else self.curve[depth] + depth * self.draft + self.other

    def best(self, shares: Sequence[float]) -> float:
        """Tokens a plain step at the best fixed depth, 0 included."""
        expected = stands = 1.0
        found = [1.0]
        for depth in range(1, MOST + 1):
            stands *= at(shares, depth - 1)
            expected += stands
            found.append(expected / self.steps(depth))
        return max(found)

    def run(self, policy: AutoDepth, shares: Sequence[float], tokens: int, rng: random.Random) -> Iterable[Round]:
        """Rounds of so many tokens, observed by the policy; of plain ones it is asked one ahead, as in a turn."""
        count, queued = 0, False
        while count < tokens:
            depth = 0 if queued else policy.plan()[0].depth
            queued = depth == 0 and policy.plan()[0].depth == 0
            accepted = 0
            while accepted < depth and rng.random() < at(shares, accepted):
                accepted += 1
            noise = math.exp(rng.gauss(0, NOISE)) * (BUSY_FACTOR if rng.random() < BUSY else 1)
            seconds = self.steps(depth) * self.step_seconds(rng) * noise
            one = Round((0,) * (accepted + 1), depth, accepted, 1, seconds=seconds)
            policy.observe([Observation(one)])
            count += accepted + 1
            yield one

    def step_seconds(self, rng: random.Random) -> float:
        """Of a plain step, now."""
        return 0.02

    def rate(self, rounds: Iterable[Round]) -> float:
        """Tokens a plain step."""
        rounds = list(rounds)
        return sum(len(one.tokens) for one in rounds) / sum(self.steps(one.drafted) for one in rounds)


@pytest.mark.parametrize(("curve", "text"), CORNERS)
def test_nearly_the_best_fixed_depth_of_each_machine_and_text(curve: str, text: str) -> None:
    """Within 3 % over 4000 tokens from nothing known, the mean of 16 runs; its standard error is below 0.3 %."""
    world, shares = World(CURVES[curve]), TEXTS[text]
    rates = [world.rate(world.run(AutoDepth(MOST), shares, 4000, random.Random(seed))) for seed in range(16)]
    assert statistics.mean(rates) >= 0.97 * world.best(shares)


@dataclass
class Shared(World):
    """A machine with other work, which comes and goes every 60 rounds or so."""

    busy: bool = False

    def step_seconds(self, rng: random.Random) -> float:
        self.busy ^= rng.random() < 1 / 60
        return 0.029 if self.busy else 0.02


@pytest.mark.parametrize(("curve", "text"), CORNERS)
def test_other_work_on_the_machine_is_not_taken_for_a_depths_own_time(curve: str, text: str) -> None:
    """Within 5 % of the best, the mean of 6 runs of 4000 tokens from nothing known; its standard error is 0.7 %."""
    shares, rates = TEXTS[text], []
    for seed in range(6):
        world = Shared(CURVES[curve])
        rates.append(world.rate(world.run(AutoDepth(MOST), shares, 4000, random.Random(seed))))
    assert statistics.mean(rates) >= 0.95 * world.best(shares)


@pytest.mark.parametrize("curve", CURVES)
def test_what_is_known_of_a_machine_saves_the_start(curve: str) -> None:
    """A later run, of 200 tokens, against one that knows nothing: a head that is always wrong costs less than 3 %."""
    world, shares = World(CURVES[curve]), TEXTS["wrong"]
    rates = []
    for seed in range(6):
        rng, first = random.Random(seed), AutoDepth(MOST)
        list(world.run(first, shares, 1000, rng))
        later = AutoDepth.from_state(first.state(), MOST)
        rates.append(world.rate(world.run(later, shares, 200, rng)))
    assert statistics.mean(rates) >= 0.97


@pytest.mark.parametrize(("before", "after"), [("wrong", "code"), ("code", "wrong"), ("creative", "calls")])
def test_another_text_is_noticed_within_64_tokens(before: str, after: str) -> None:
    """Behind them the next 256 tokens come at 0.9 of the best rate for the new text or more, the mean of 12 runs."""
    world = World(CURVES["M5 Max, 27B"])
    rates = []
    for seed in range(12):
        rng, policy = random.Random(seed), AutoDepth(MOST)
        list(world.run(policy, TEXTS[before], 1000, rng))
        list(world.run(policy, TEXTS[after], 64, rng))
        rates.append(world.rate(world.run(policy, TEXTS[after], 256, rng)))
    assert statistics.mean(rates) >= 0.9 * world.best(TEXTS[after])


def test_expected_tokens_of_shares_that_are_known_well() -> None:
    acceptance = AcceptanceRate()
    for _ in range(500):
        acceptance.observe(2, 2)
        acceptance.observe(2, 0)
        acceptance.observe(2, 2)
        acceptance.observe(2, 1)
    one, two = acceptance.tokens(2)[1:]
    assert one == pytest.approx(1 + 3 / 4, abs=0.05)
    assert (two - one) / (one - 1) == pytest.approx(2 / 3, abs=0.06)


def test_the_choice_is_told_with_its_figures() -> None:
    world, policy = World(CURVES["M5 Max, 27B"]), AutoDepth(MOST)
    list(world.run(policy, TEXTS["calls"], 500, random.Random(1)))
    depth = int(policy.why.split()[1].rstrip(","))
    tokens = policy.acceptance.tokens(depth)[depth]
    steps = policy.costs.table("head", depth)[depth]
    expected = f"{tokens:.1f} tokens a round expected, for the time of {steps:.1f} plain ones"
    assert policy.why == f"depth {depth}, auto: {expected}"
    list(world.run(policy, TEXTS["wrong"], 500, random.Random(1)))
    assert policy.why.startswith("depth 0, auto: with drafts, 1.")
    assert AutoDepth(MOST).why == "auto: depths are being tried"


# -- looking up -----------------------------------------------------------------------------------------------


def lookups(world: World, policy: AutoDepth, heads: Sequence[float], repeats: float, seed: int) -> tuple[float, int]:
    """2000 tokens of which half come behind a match, whose next tokens are the same with this share each.

    Returns tokens a plain step, and the rounds that were looked up.
    """
    rng, tokens, steps, count = random.Random(seed), 0, 0.0, 0
    while tokens < 2000:
        match = 20 * (tokens % 200 < 100)
        [plan] = policy.plan([match])
        depth, looked_up = plan.depth, plan.source == "lookup"
        accepted = 0
        while accepted < depth and rng.random() < (repeats if looked_up else at(heads, accepted)):
            accepted += 1
        known = [True] * accepted + [False] * (accepted < depth) if looked_up else []
        same = known + [rng.random() < repeats for _ in range(accepted + 1 - len(known))]
        curve = [*world.curve, *(world.curve[-1] + 0.33 * i for i in range(1, 10))]
        cost = 1.0 if depth == 0 else curve[depth] + world.other + (0 if looked_up else depth * world.draft)
        seconds = cost * world.step_seconds(rng) * math.exp(rng.gauss(0, NOISE))
        one = Round((0,) * (accepted + 1), depth, accepted, 1, seconds=seconds, from_lookup=looked_up)
        policy.observe([Observation(one, match, len(list(takewhile(bool, same))) if match else 0)])
        tokens, steps, count = tokens + accepted + 1, steps + cost, count + looked_up
    return tokens / steps, count


@pytest.mark.parametrize("curve", ["M5 Max, 27B", "two cores"])
def test_a_text_that_repeats_itself_is_looked_up(curve: str) -> None:
    world = World(CURVES[curve])
    for seed in range(4):
        rate, count = lookups(world, AutoDepth(MOST, 16), TEXTS["chat"], 0.97, seed)
        assert count > 50
        assert rate > 1.12 * world.best(TEXTS["chat"])


@pytest.mark.parametrize("curve", cases(CURVES, default=("M5 Max, 27B",)))
def test_matches_that_do_not_go_on_alike_cost_nothing(curve: str) -> None:
    """At most 1 % of what the same policy reaches without looking anything up, the mean of 12 runs (error 0.4 %)."""
    world = World(CURVES[curve])
    pairs = [
        [lookups(world, AutoDepth(MOST, most), TEXTS["code"], 0.3, seed)[0] for seed in range(12)] for most in (16, 0)
    ]
    with_lookup, without = map(statistics.mean, pairs)
    assert with_lookup >= 0.99 * without


def test_asking_for_a_plan_changes_nothing() -> None:
    """Rounds go the same way however often the policy is asked, with a match and without."""
    world, runs = World(CURVES["two cores"]), []
    for asked in (0, 3):
        policy, depths = AutoDepth(MOST, 16), []
        for one in world.run(policy, TEXTS["chat"], 1500, random.Random(1)):
            depths.append(one.drafted)
            for match in range(asked):
                policy.plan([20 * match])
        runs.append(depths)
    assert runs[0] == runs[1]


def test_every_other_depth_is_tried_again() -> None:
    """However good the choice, what is known of the others must not grow old; the nearest the most often."""
    policy, counts = AutoDepth(3), [0] * 4
    world = World(CURVES["M5 Max, 27B"])
    for one in world.run(policy, TEXTS["code"], 20_000, random.Random(1)):
        counts[one.drafted] += 1
    assert all(count > 3 for count in counts)
    assert counts[3] > counts[2] > counts[1]


def test_a_probe_is_not_lost_to_the_plain_round_queued_before_it() -> None:
    """The first run drafts as often as a cost needs to be saved."""
    policy, world = AutoDepth(MOST), World(CURVES["M1"])
    list(world.run(policy, TEXTS["wrong"], 20, random.Random(1)))
    assert set(policy.state()["steps"]) == {3}
    assert policy.plan() == [Plan(0)]
