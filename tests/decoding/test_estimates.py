"""What rounds cost, learned from a clock that strays, jumps and slows down.

Times are in plain steps of a machine at rest: a round of each depth takes what STEPS says, times the machine's pace.
"""

from __future__ import annotations

import math
import random

import pytest

from mlxmtp.decoding.estimates import Source
from mlxmtp.decoding.round_costs import RoundCosts

STEPS = {0: 1.0, 1: 1.3, 2: 1.6, 3: 2.2, 6: 3.4}
NOISE = 0.05
"""A round's time strays by so much."""


class Clock:
    """Tells `costs` of rounds."""

    def __init__(self, costs: RoundCosts, seed: int = 1) -> None:
        self.costs, self.pace = costs, 0.01
        self._rng = random.Random(seed)

    def rounds(self, depth: int, count: int, source: Source = "head") -> None:
        for _ in range(count):
            self.costs.observe(source, depth, self.pace * STEPS[depth] * math.exp(self._rng.gauss(0, NOISE)))

    def cost(self, depth: int, source: Source = "head") -> float:
        return self.costs.table(source, depth)[depth]


def experienced() -> Clock:
    """Plain decoding and one draft are known, and two."""
    clock = Clock(RoundCosts())
    for _ in range(20):
        clock.rounds(0, 4)
        clock.rounds(1, 4)
        clock.rounds(2, 4)
    return clock


def test_unmeasured_depths_lie_on_the_line() -> None:
    assert RoundCosts().table("head", 3) == [1, 1, 1, 1]
    known = RoundCosts({1: 1.5, 3: 2.1})
    assert known.table("head", 5)[:6] == pytest.approx([1, 1.5, 1.8, 2.1, 1 + 4 * 1.1 / 3, 1 + 5 * 1.1 / 3])
    assert RoundCosts({1: 1.5, 2: 1.2, 4: 0.8}).table("head", 5)[:6] == [1, 1.5, 1.2, 1.2, 0.8, 0.8], "never falling"


def test_nothing_is_known_before_plain_decoding_was_measured() -> None:
    costs = RoundCosts()
    Clock(costs).rounds(3, 8)
    assert not costs.known
    assert costs.table("head", 3) == [1, 1, 1, 1]


def test_what_was_measured_once_is_not_kept_for_a_later_run() -> None:
    clock = experienced()
    clock.rounds(6, 1)
    assert set(clock.costs.sure("head")) == {1, 2}
    for _ in range(4):  # as the policy probes: among plain rounds, or rounds of the best depth
        clock.rounds(0, 4)
        clock.rounds(6, 1)
    assert clock.costs.sure("head")[6] == pytest.approx(STEPS[6], rel=0.1)


def test_costs_are_compared_across_a_machine_that_slows_down() -> None:
    """It falls to half its speed; from then on a plain step is measured one time in 20."""
    clock = Clock(RoundCosts())
    for step in range(400):
        clock.pace = 0.02 if step >= 40 else 0.01
        clock.rounds(step % 2 * 2 if step < 40 else 2 * (step % 20 > 0), 1)
    assert clock.cost(2) == pytest.approx(STEPS[2], rel=0.06)  # three standard errors


@pytest.mark.parametrize("pace", [0.6, 1.65])
def test_a_depth_first_tried_as_the_pace_changes_is_put_right_beside_others(pace: float) -> None:
    """Its first rounds cannot tell the two apart. What is well known keeps its ratio all the while."""
    clock = experienced()
    clock.pace *= pace
    clock.rounds(3, 4)
    for _ in range(6):
        clock.rounds(0, 4)
        clock.rounds(3, 2)
    assert clock.cost(3) == pytest.approx(STEPS[3], rel=0.15)
    assert clock.cost(2) == pytest.approx(STEPS[2], rel=0.03)


def test_one_disturbed_round_tells_nothing() -> None:
    clock = experienced()
    before = clock.costs.table("head", 3)
    clock.pace *= 8
    clock.rounds(2, 1)
    clock.pace /= 8
    clock.rounds(2, 4)
    assert clock.costs.table("head", 3) == pytest.approx(before, rel=0.01)


def test_the_first_drafts_of_a_run_tell_nothing() -> None:
    """They compile what later ones only run."""
    clock = Clock(RoundCosts())
    clock.rounds(0, 4)
    clock.pace *= 8
    clock.rounds(2, 1)
    assert not clock.costs.known
    clock.pace /= 8
    clock.rounds(2, 4)
    assert clock.cost(2) == pytest.approx(STEPS[2], rel=0.1)


def test_another_pace_is_known_after_a_few_rounds() -> None:
    """A depth that is new then is priced with it, before any plain step was measured again."""
    clock = experienced()
    clock.pace *= 1.65
    clock.rounds(2, 8)
    clock.rounds(3, 4)
    assert clock.cost(2) == pytest.approx(STEPS[2], rel=0.04)
    assert clock.cost(3) == pytest.approx(STEPS[3], rel=0.15)


def test_looked_up_drafts_have_costs_of_their_own() -> None:
    """Before any was measured they take what the head's take."""
    clock = experienced()
    assert clock.costs.table("lookup", 2) == clock.costs.table("head", 2)
    head = clock.cost(2)
    for _ in range(8):
        clock.pace *= 0.75
        clock.rounds(2, 1, "lookup")
        clock.pace /= 0.75
        clock.rounds(0, 4)
    assert clock.cost(2, "lookup") == pytest.approx(0.75 * STEPS[2], rel=0.1)
    assert clock.cost(2) == head, "the head's own cost"
    assert set(clock.costs.sure("lookup")) == {2}
