"""The depth policy for several turns in one pass, on simulated machines: costs over the rows of all sequences."""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pytest

from mlxmtp.decoding.auto_depth import AutoDepth
from mlxmtp.decoding.depth import DepthPolicy, FixedDepth, Observation, Plan
from mlxmtp.decoding.estimates import AcceptanceRate, LookupAcceptance
from mlxmtp.decoding.round_costs import RoundCosts
from mlxmtp.decoding.sharing_rates import PassSharing, SharingRates
from mlxmtp.decoding.stats import Round
from tests.decoding.test_depth import BUSY, BUSY_FACTOR, CURVES, MOST, NOISE, TEXTS, World, at
from tests.grids import grid

if TYPE_CHECKING:
    from mlxmtp.decoding.turn import Turn

MACHINES = {
    "M1": (CURVES["M1"], 1.0),
    "M4 Pro": (CURVES["M4 Pro"], 0.3),
    "M5 Max, 27B": (CURVES["M5 Max, 27B"], 0.3),
    "30B-A3B": (CURVES["30B-A3B"], 0.28),
    "two cores": (CURVES["two cores"], 0.33),
    "tiles": (CURVES["M5 Max, 27B"], 0.02),
    "apart": ((1.0, 2.4, 3.7, 5.0), 1.3),
}
"""C(1), C(2), ... and what each row more takes. "tiles": many rows cost what eight do. "apart": rows share nothing."""
MIXES = (
    ("code", "creative"),
    ("code", "wrong"),
    ("calls", "always"),
    ("wrong", "wrong", "wrong"),
    ("code", "chat", "creative", "wrong"),
)
DEFAULT = {
    ("M1", MIXES[0]),
    ("two cores", MIXES[4]),
    ("apart", MIXES[2]),
}
CORNERS = grid(MACHINES, MIXES, default=lambda *case: case in DEFAULT)


@dataclass
class Machine:
    """A round of B turns with k drafts takes C(B (k + 1)) + k d (1 + (B - 1) / 10) + o plain steps of one turn.

    Args:
        visited: other work comes and goes every 60 rounds or so.
    """

    name: str
    visited: bool = False
    draft: float = 0.08
    other: float = 0.05
    busy: bool = field(default=False, init=False)

    def steps(self, number: int, depth: int) -> float:
        curve, slope = MACHINES[self.name]
        rows = number * (depth + 1)
        drafts = depth * self.draft * (1 + (number - 1) / 10) + self.other if depth else 0.0
        return curve[min(rows, len(curve)) - 1] + max(rows - len(curve), 0) * slope + drafts

    def best(self, mix: Sequence[str], number: int) -> float:
        """Tokens a plain step of one turn, of all turns in sum, at the best depth, if so many share a pass."""
        rates = []
        for depth in range(MOST + 1):
            products = [[math.prod(at(TEXTS[text], i) for i in range(k)) for k in range(depth + 1)] for text in mix]
            rates.append(number * statistics.mean(map(sum, products)) / self.steps(number, depth))
        return max(rates)

    def seconds(self, steps: float, rng: random.Random) -> float:
        self.busy ^= self.visited and rng.random() < 1 / 60
        noise = math.exp(rng.gauss(0, NOISE)) * (BUSY_FACTOR if rng.random() < BUSY else 1)
        return steps * (0.029 if self.busy else 0.02) * noise


@dataclass(frozen=True)
class Taken:
    """A round of several turns. steps: plain ones of one turn."""

    number: int
    depth: int
    tokens: int
    steps: float


def run(
    machine: Machine, policy: AutoDepth, mix: Sequence[str], tokens: int, seed: int, *, together: bool
) -> list[Taken]:
    """Rounds of turns with these texts, of so many tokens in sum: all share a pass, or as many as the policy says."""
    rng, waiting, rounds, count = random.Random(seed), deque(mix), [], 0
    while count < tokens:
        number = len(mix) if together else policy.best_together(len(mix))
        turns = [waiting.popleft() for _ in range(number)]
        waiting += turns
        plans = policy.plan([0] * number)
        depth = max(plan.depth for plan in plans)
        steps = machine.steps(number, depth)
        seconds, observations = machine.seconds(steps, rng), []
        for text, plan in zip(turns, plans, strict=True):
            accepted = 0
            while accepted < plan.depth and rng.random() < at(TEXTS[text], accepted):
                accepted += 1
            one = Round((0,) * (accepted + 1), plan.depth, accepted, 1, seconds=seconds, num_sequences=number)
            observations.append(Observation(one))
        policy.observe(observations)
        rounds.append(Taken(number, depth, sum(len(one.round.tokens) for one in observations), steps))
        count += rounds[-1].tokens
    return rounds


def rate(rounds: Iterable[Taken]) -> float:
    """Tokens a plain step of one turn."""
    rounds = list(rounds)
    return sum(one.tokens for one in rounds) / sum(one.steps for one in rounds)


@pytest.mark.parametrize(("name", "mix"), CORNERS)
def test_nearly_the_best_joint_depth_of_each_machine_and_mix(name: str, mix: tuple[str, ...]) -> None:
    """The mean of 4 runs: within 3 % of the best and of plain decoding together, once 1500 tokens have taught it."""
    machine, best = Machine(name), Machine(name).best(mix, len(mix))
    plain = len(mix) / machine.steps(len(mix), 0)
    first, later = [], []
    for seed in range(4):
        policy = AutoDepth(MOST)
        first.append(rate(run(machine, policy, mix, 1500, seed, together=True)))
        later.append(rate(run(machine, policy, mix, 4000, 100 + seed, together=True)))
    assert statistics.mean(first) >= 0.92 * best
    assert statistics.mean(first) >= 0.95 * plain
    assert statistics.mean(later) >= 0.97 * best
    assert statistics.mean(later) >= 0.97 * plain


@pytest.mark.parametrize(("name", "mix"), grid(MACHINES, MIXES, default=lambda *case: case == ("two cores", MIXES[4])))
def test_as_many_share_a_pass_as_are_the_fastest(name: str, mix: tuple[str, ...]) -> None:
    """The mean of 4 runs after 1500 tokens: within 3 % of the best number and depth; 5 % on a busy machine."""
    rates = {number: Machine(name).best(mix, number) for number in range(1, len(mix) + 1)}
    best = max(rates, key=rates.__getitem__)
    for visited, least in ((False, 0.97), (True, 0.95)):
        reached, numbers = [], Counter[int]()
        for seed in range(4):
            machine, policy = Machine(name, visited), AutoDepth(MOST)
            run(machine, policy, mix, 1500, seed, together=False)
            rounds = run(machine, policy, mix, 6000, 100 + seed, together=False)
            reached.append(rate(rounds))
            numbers.update(one.number for one in rounds)
        assert statistics.mean(reached) >= least * rates[best], (visited, numbers)
        if rates[best] > 1.1 * max(rates[number] for number in rates if number != best):
            assert numbers[best] > 0.9 * numbers.total(), (visited, numbers)


def test_one_turn_is_as_fast_as_ever_after_several() -> None:
    """What was learned together does not mislead it, nor a fast pass of four."""
    world = World(CURVES["M5 Max, 27B"])
    rates = []
    for seed in range(6):
        policy = AutoDepth(MOST)
        run(Machine("M5 Max, 27B"), policy, MIXES[4], 1000, seed, together=True)
        list(world.run(policy, TEXTS["code"], 200, random.Random(seed)))
        rates.append(world.rate(world.run(policy, TEXTS["code"], 4000, random.Random(seed))))
    assert statistics.mean(rates) >= 0.97 * world.best(TEXTS["code"])


def test_a_pass_keeps_to_its_most_tokens() -> None:
    policy = AutoDepth(MOST, 16, longest_shared=lambda n: 8 // n, acceptance=AcceptanceRate([0.99] * MOST))
    assert max(plan.depth for _ in range(60) for plan in _planned(policy, [0])) == MOST
    for number, most in ((2, 3), (3, 1), (4, 1), (5, 0), (12, 0)):
        depths = {plan.depth for _ in range(60) for plan in _planned(policy, [40] * number)}
        assert max(depths) == most, number


def _planned(policy: AutoDepth, matches: list[int]) -> list[Plan]:
    """A round's plans; all drafts are accepted, and take next to no time."""
    plans = policy.plan(matches)
    depth = max(plan.depth for plan in plans)
    rounds = [
        Round((0,) * (plan.depth + 1), plan.depth, plan.depth, 1, seconds=1 + depth / 100, num_sequences=len(plans))
        for plan in plans
    ]
    policy.observe([Observation(one) for one in rounds])
    return plans


def lookups(head: float, slope: float, head_slope: float) -> AutoDepth:
    """A policy that knows what two sequences cost; matches of 40 tokens go on alike 97 times in 100."""
    depths = (1, 2, 4, 8, 16)
    costs = RoundCosts({k: 1 + k * (slope + head_slope) for k in depths}, {k: 1 + k * slope for k in depths})
    known = LookupAcceptance([[], [], [], [0.97] * 16])
    return AutoDepth(4, 16, acceptance=AcceptanceRate([head] * 4), lookup=known, shared_costs={2: costs})


def test_a_turn_that_repeats_itself_and_one_that_does_not() -> None:
    """All rows of a pass are paid for: the depth is the best in sum, and each takes its drafts where more come."""
    for name, policy, matches, expected in (
        ("rows cost little", lookups(0.9, 0.02, 0.02), [40, 0], [Plan(16, "lookup"), Plan(4)]),
        ("rows cost much", lookups(0.9, 0.25, 0.02), [40, 0], [Plan(4, "lookup"), Plan(4)]),
        ("the head is dear and poor", lookups(0.2, 0.3, 0.5), [40, 0], [Plan(8, "lookup"), Plan(0)]),
        ("both repeat themselves", lookups(0.5, 0.1, 0.1), [40, 40], [Plan(16, "lookup")] * 2),
        ("neither does", lookups(0.9, 0.25, 0.02), [0, 0], [Plan(4)] * 2),
        ("nothing pays", lookups(0.2, 2.0, 0.5), [40, 0], [Plan(0)] * 2),
    ):
        assert policy.plan(matches) == expected, name


def test_a_round_beside_turns_of_other_policies_teaches_the_text_alone() -> None:
    policy = lookups(0.5, 0.1, 0.1)
    for _ in range(20):
        policy.observe([Observation(Round((0, 0), 1, 1, 1, seconds=9.0, num_sequences=3))] * 2)
    assert policy.state()["shared"]["2"]["steps"] == lookups(0.5, 0.1, 0.1).state()["shared"]["2"]["steps"]
    assert policy.acceptance.shares[0] > 0.6
    assert not policy.sharing.times()


def alternate(
    rates: SharingRates, times: dict[int, float], num_turns: int, rounds: int, pace: float = 1.0
) -> list[int]:
    """The numbers that were taken; a round takes these times."""
    numbers = []
    for _ in range(rounds):
        numbers.append(rates.best(num_turns))
        rates.observe(numbers[-1], pace * times[numbers[-1]])
    return numbers


def test_turns_of_a_fixed_depth_share_a_pass_where_that_is_faster() -> None:
    """All numbers are tried, all together first; where one pass for each turn is as fast, it is 1."""
    for times, best in (
        ({4: 1.5, 2: 1.2, 1: 1.0}, 4),
        ({4: 4.0, 2: 1.2, 1: 1.0}, 2),
        ({4: 5.0, 2: 2.6, 1: 1.0}, 1),
        ({4: 4.0, 2: 2.0, 1: 1.0}, 1),
    ):
        rates = SharingRates()
        first = alternate(rates, times, 4, 21)
        assert first == [4] * 7 + [2] * 7 + [1] * 7, times
        later = Counter(alternate(rates, times, 4, 4000))
        assert later[best] > 0.9 * later.total(), (times, later)
        assert all(later[number] >= 10 for number in times), (times, later, "each is tried again")
        assert SharingRates(rates.times()).best(4) == best, times
    assert SharingRates().best(1) == 1
    assert SharingRates({2: 1.0, 1: 1.0}).best(3) == 3, "another number of turns is unknown"


def test_a_machine_that_slows_down_does_not_part_the_turns() -> None:
    rates, times = SharingRates(), {2: 1.5, 1: 1.0}
    alternate(rates, times, 2, 100)
    for pace in (1.6, 0.8, 1.2, 0.5):
        numbers = Counter(alternate(rates, times, 2, 40, pace))
        assert numbers[1] <= 10, (pace, numbers)
    assert rates.times()[2] / rates.times()[1] == pytest.approx(1.5, rel=0.05)


@dataclass(eq=False)
class Running:
    """What `PassSharing` asks of a turn."""

    policy: DepthPolicy


def test_the_policy_of_all_turns_is_asked_and_else_the_clock() -> None:
    sharing, auto, counts = PassSharing(), AutoDepth(3), Counter[int]()
    auto.sharing = SharingRates({3: 3.0, 2: 2.0, 1: 1.0})  # one pass for each turn is as fast
    assert sharing.best([cast("Turn", Running(auto)) for _ in range(3)]) == 1
    turns = [cast("Turn", Running(FixedDepth(2))) for _ in range(3)]
    for _ in range(2000):
        number = sharing.best(turns)
        counts[number] += 1
        one = Round((0,), 2, 0, 1, seconds={3: 1.2, 2: 1.1, 1: 1.0}[number], num_sequences=number)
        sharing.observe(dict.fromkeys(turns[:number], one))
    assert counts[3] > 1800, counts
    for beside in (FixedDepth(1), auto):
        assert sharing.best([*turns[1:], cast("Turn", Running(beside))]) == 3, "another mix is unknown"
