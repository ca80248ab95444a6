"""What rounds cost, learned from a clock that strays, jumps and slows down.

Times are in plain steps of a machine at rest: a round of each depth takes what STEPS says, times the machine's pace.
"""

from __future__ import annotations

import math
import random

import pytest

from mlxmtp.decoding.costs import Costs

STEPS = {0: 1.0, 1: 1.3, 2: 1.6, 3: 2.2, 6: 3.4}
NOISE = 0.05
"""A round's time strays by so much."""


class Clock:
    """Tells `costs` of rounds."""

    def __init__(self, costs: Costs, seed: int = 1) -> None:
        self.costs, self.pace = costs, 0.01
        self._rng = random.Random(seed)

    def rounds(self, depth: int, count: int, *, looked_up: bool = False) -> None:
        for _ in range(count):
            seconds = self.pace * STEPS[depth] * math.exp(self._rng.gauss(0, NOISE))
            self.costs.observe(depth, seconds, looked_up=looked_up)


def experienced() -> Clock:
    """Plain decoding and one draft are known, and two."""
    clock = Clock(Costs())
    for _ in range(20):
        clock.rounds(0, 4)
        clock.rounds(1, 4)
        clock.rounds(2, 4)
    return clock


def test_unmeasured_depths_lie_on_the_line() -> None:
    assert Costs().table(3) == [1, 1, 1, 1]
    assert Costs({0: 1.0, 1: 1.5, 3: 2.1}).table(5)[2:] == pytest.approx([1.8, 2.1, 2.4, 2.7], rel=0.03)


def test_nothing_is_known_before_plain_decoding_was_measured() -> None:
    costs = Costs()
    Clock(costs).rounds(3, 8)
    assert costs.ratios() == costs.known() == {}
    assert costs.table(3) == pytest.approx([1, 1, 1, 1], abs=0.001)


def test_what_was_measured_once_is_not_kept_for_a_later_run() -> None:
    clock = experienced()
    clock.rounds(6, 1)
    assert set(clock.costs.ratios()) == {0, 1, 2, 6}
    assert set(clock.costs.known()) == {0, 1, 2}
    clock.rounds(6, 4)
    assert clock.costs.known()[6] == pytest.approx(STEPS[6], rel=0.1)


def test_costs_are_compared_across_a_machine_that_slows_down() -> None:
    """It falls to half its speed; from then on a plain step is measured one time in 20."""
    clock = Clock(Costs())
    for step in range(400):
        clock.pace = 0.02 if step >= 40 else 0.01
        clock.rounds(step % 2 * 2 if step < 40 else 2 * (step % 20 > 0), 1)
    assert clock.costs.table(2)[2] == pytest.approx(STEPS[2], rel=0.06)  # three standard errors


@pytest.mark.parametrize("pace", [0.6, 1.65])
def test_a_depth_first_tried_as_the_pace_changes_is_put_right_beside_others(pace: float) -> None:
    """Its first rounds cannot tell the two apart. What is well known keeps its ratio all the while."""
    clock = experienced()
    clock.pace *= pace
    clock.rounds(3, 4)
    assert clock.costs.ratios()[3] / STEPS[3] == pytest.approx(pace, rel=0.2)
    for _ in range(6):
        clock.rounds(0, 4)
        clock.rounds(3, 2)
    assert clock.costs.ratios()[3] == pytest.approx(STEPS[3], rel=0.15)
    assert clock.costs.ratios()[2] == pytest.approx(STEPS[2], rel=0.03)


def test_one_disturbed_round_tells_nothing() -> None:
    clock = experienced()
    before = clock.costs.table(3)
    clock.pace *= 8
    clock.rounds(2, 1)
    clock.pace /= 8
    clock.rounds(2, 4)
    assert clock.costs.table(3) == pytest.approx(before, rel=0.01)


def test_another_pace_is_known_after_a_few_rounds() -> None:
    """A depth that is new then is priced with it, before any plain step was measured again."""
    clock = experienced()
    clock.pace *= 1.65
    clock.rounds(2, 8)
    clock.rounds(3, 4)
    assert clock.costs.ratios()[2] == pytest.approx(STEPS[2], rel=0.04)
    assert clock.costs.ratios()[3] == pytest.approx(STEPS[3], rel=0.15)


def test_looked_up_drafts_have_costs_of_their_own() -> None:
    """Where they were not measured they take what the head's take, without the draft steps."""
    clock = experienced()
    clock.costs.observe_draft(0.2 * clock.pace)
    assert clock.costs.looked_up_table(2) == pytest.approx([1, 1.1, 1.2], rel=0.04)
    clock.rounds(2, 8, from_lookup=True)
    clock.rounds(0, 4)
    assert clock.costs.looked_up_table(2) == pytest.approx([1, 1.1, STEPS[2]], rel=0.1)
    assert clock.costs.known(from_lookup=True) == pytest.approx({2: STEPS[2]}, rel=0.1)
