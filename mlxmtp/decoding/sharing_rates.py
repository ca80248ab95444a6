"""How many of the running turns share a pass: learned from the time that rounds of each number take."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING

from mlxmtp.decoding.depth import SharingPolicy
from mlxmtp.decoding.round_costs import PACE_JUMP, PACE_WEIGHT
from mlxmtp.decoding.stats import Round

if TYPE_CHECKING:
    from mlxmtp.decoding.depth import DepthPolicy
    from mlxmtp.decoding.loop import Outcome
    from mlxmtp.decoding.turn import Turn

HYSTERESIS = 1.02
"""Ratio of rates by which more sequences have to be better before they are taken."""
TRIAL_ROUNDS = 7
"""Timed rounds of a number of sequences that tell what it takes to about 2 %."""
UNTIMED_ROUNDS = 3
"""Rounds of a trial that may not be timed: the first plain ones, and the last."""
KEPT_ROUNDS = 13
"""Rounds of each number that are kept. Their median is what it takes: a trial moves it, a disturbed round does not."""
FIRST_WAIT, WAIT = 50, 500
"""Rounds after which a number that is slower by the share g is tried again: FIRST_WAIT + g WAIT. So a trial that other
work disturbed misleads not long. Each trial doubles the wait."""
LONGEST_WAIT = 8
"""Ratio of the longest wait to the first: the trials of a number then cost 0.3 % of the time."""


class SharingRates:
    """The time of a round by the number of sequences in its pass, over the machine's pace.

    The pace is followed while the number stays; the first rounds of another number are compared with it.

    Args:
        times: by number of sequences, from an earlier run, to any scale.
    """

    def __init__(self, times: Mapping[int, float] | None = None) -> None:
        self._times = {
            number: deque([time] * TRIAL_ROUNDS, maxlen=KEPT_ROUNDS) for number, time in (times or {}).items()
        }
        self._pace = 0.0  # seconds for a time of 1; 0: not measured
        self._rounds = 0
        self._present, self._row = 0, 0  # the number of the last rounds, and how many they are
        self._last: dict[int, int] = {}  # by number: rounds so far when it ran last
        self._patience: dict[int, int] = {}  # by number: the ratio of its wait to the first
        self._chosen: dict[int, int] = {}  # by running turns
        self._trial, self._left = 0, 0  # the number that is tried, and its rounds

    def observe(self, num_sequences: int, seconds: float) -> None:
        """Learn from a round: its time, or what of it is to be compared."""
        self._rounds += 1
        self._row = self._row + 1 if num_sequences == self._present else 1
        self._present = num_sequences
        self._last[num_sequences] = self._rounds
        if not self._pace:
            self._begin(num_sequences, seconds)
        times = self._times.setdefault(num_sequences, deque(maxlen=KEPT_ROUNDS))
        if self._row > TRIAL_ROUNDS:
            error = math.log(seconds / (self._pace * median(times)))
            self._pace *= math.exp(error if abs(error) > PACE_JUMP else PACE_WEIGHT * error)
        times.append(seconds / self._pace)

    def times(self) -> dict[int, float]:
        """By number of sequences, what the next run can start from."""
        return {number: median(times) for number, times in self._times.items() if len(times) >= TRIAL_ROUNDS}

    def best(self, num_turns: int, tokens: Callable[[int], float] = float) -> int:
        """Return how many of the running turns should share the next pass, asked before each.

        All, a half of them, a quarter and so on to one are compared. One that was not measured is tried; where one pass
        for each turn is as fast, it is 1.

        Args:
            tokens: by number of sequences, the tokens that all of them together are expected to get in what `observe`
                is told as the time of a round.
        """
        if num_turns == 1:
            return 1
        numbers = [num_turns]
        while numbers[-1] > 1:
            numbers.append((numbers[-1] + 1) // 2)
        times = self.times()
        for number in numbers:
            if number not in times:
                return number
        if self._left and self._trial in numbers:
            self._left -= 1
            return self._trial
        rates = {number: tokens(number) / times[number] for number in numbers}
        chosen, fastest = self._chosen.get(num_turns, 1), max(rates, key=rates.__getitem__)
        if rates[fastest] > (HYSTERESIS if fastest > chosen else 1) * rates[chosen]:
            self._patience[chosen] = self._patience[fastest] = 1
            chosen = fastest
        self._chosen[num_turns] = chosen
        for number in numbers:
            if number != chosen and self._is_due(number, rates[chosen] / rates[number] - 1):
                self._trial, self._left = number, TRIAL_ROUNDS + UNTIMED_ROUNDS - 1
                return number
        return chosen

    def _is_due(self, number: int, gap: float) -> bool:
        """Whether it is time to try a number again."""
        patience = self._patience.get(number, 1)
        if self._rounds - self._last.get(number, 0) < patience * (FIRST_WAIT + WAIT * gap):
            return False
        self._patience[number], self._last[number] = min(2 * patience, LONGEST_WAIT), self._rounds
        return True

    def _begin(self, num_sequences: int, seconds: float) -> None:
        """Find the pace by the times of an earlier run, or begin anew where they do not have this number."""
        if num_sequences not in self._times:
            self._times.clear()
        self._pace = seconds / median(self._times.get(num_sequences, [1.0]))


class PassSharing:
    """Says how many of running turns share the next pass: by their policy, or by the time that rounds take."""

    def __init__(self) -> None:
        self._policies: set[DepthPolicy] = set()
        self._rates = SharingRates()

    def best(self, turns: Sequence[Turn]) -> int:
        """Return how many of the turns should share the next pass, asked before each."""
        if len(turns) == 1:
            return 1
        policies = {turn.policy for turn in turns}
        policy = next(iter(policies))
        if len(policies) == 1 and isinstance(policy, SharingPolicy):
            return policy.best_together(len(turns))
        if policies != self._policies:  # other depths take other times
            self._policies, self._rates = policies, SharingRates()
        return self._rates.best(len(turns))

    def observe(self, outcomes: Mapping[Turn, Outcome]) -> None:
        """Learn from a round."""
        rounds = [one for one in outcomes.values() if isinstance(one, Round)]
        if rounds and rounds[0].phases is None and {turn.policy for turn in outcomes} <= self._policies:
            self._rates.observe(rounds[0].num_sequences, rounds[0].seconds)
