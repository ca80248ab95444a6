"""`--depth auto`: the depth that gives most tokens a second, from what rounds cost and how many of their drafts stand.

S(k) = E(k) / T(k): E(k) = 1 + a_1 + a_1 a_2 + ... are the tokens of a round of k drafts, a_i the share of the i-th
drafts that stand where all before them did; T(k) are its plain steps (Leviathan et al. 2211.17192, section 3.3, with
acceptance by position and measured costs). Both are estimated from the rounds as they come. The choice looks at past
tokens and at clocks alone, so the law of the output does not depend on it.
"""

from __future__ import annotations

from mlxmtp.decoding.acceptance import Acceptance
from mlxmtp.decoding.costs import Costs
from mlxmtp.decoding.stats import Round

FIRST = 3
"""The depth that is tried before anything is known."""
HYSTERESIS = 1.025
"""Another depth has to be so much better."""
PARKED = 40
"""Plain tokens between two looks whether drafts would stand again."""
AROUND = 256
"""Tokens between two looks at what other depths cost."""
PLAIN_LOOK = 3
"""Plain tokens of such a look: the first does not overlap with another yet."""
CLOSE = 1.3
"""Below this speed-up plain decoding may turn out to be the better, and is looked at too."""
FULL, FULL_FADES = 5, 25
"""After so many rounds without a rejection a deeper one is tried, and earlier drafts count as so many drafts older."""


class AutoDepth:
    """Learns from every round, over all turns of an engine.

    Args:
        most: the greatest depth. costs, acceptance: what is known from an earlier run.
    """

    def __init__(self, most: int, costs: Costs | None = None, acceptance: Acceptance | None = None) -> None:
        self.most = most
        self.costs = costs or Costs()
        self.acceptance = acceptance or Acceptance()
        first = min(FIRST, most)
        # of each kind, the first round compiles what later ones only run
        self._plan = [] if self.costs.ratios else [first, first, *[0] * (1 + PLAIN_LOOK), 1, 1]
        self._warm: set[int] = set()
        self._depth = 0
        self._plain = self._since = self._looks = self._full = 0
        self._choose()

    @property
    def why(self) -> str:
        depth = max(self._depth, 1)
        priced = f"{self._tokens[depth]:.1f} tokens a round for {self._steps[depth]:.1f} plain steps"
        return f"depth {self._depth}, auto: {priced}" if self._depth else f"depth 0, auto: drafts would give {priced}"

    def next(self) -> int:
        return self._plan.pop(0) if self._plan else self._depth

    def observe(self, one: Round) -> None:
        self.acceptance.observe(one.drafted, one.accepted)
        if one.parts is None and one.drafted in self._warm:
            self.costs.observe(one.drafted, one.seconds)
        self._warm.add(one.drafted)
        full = one.drafted > 0 and one.accepted == one.drafted
        self._full = self._full + 1 if full else 0
        self._plain = 0 if one.drafted else self._plain + 1
        self._since += len(one.tokens)
        self._choose()
        if not self._plan:
            self._plan = self._look_for_drafts(full) if self._depth == 0 else self._look_around()

    def _choose(self) -> None:
        self._tokens, self._steps = self.acceptance.tokens(self.most), self.costs.table(self.most)
        self._speedups = [n / t for n, t in zip(self._tokens, self._steps, strict=True)]
        best = max(range(self.most + 1), key=self._speedups.__getitem__)
        if self._speedups[best] > HYSTERESIS * self._speedups[self._depth]:
            self._depth = best

    def _look_for_drafts(self, stood: bool) -> list[int]:
        """Decoding plainly: now and then one draft, and another where it stands."""
        if stood:
            return [1]
        if self._plain < (PARKED if self._could_pay else AROUND):
            return []
        self.acceptance.fade(self._plain)
        return [1]

    def _look_around(self) -> list[int]:
        """Drafting: a round at another depth, so that what is known of it does not grow old."""
        if self._full >= FULL and self._depth < self.most:
            self._full = 0
            self.acceptance.fade(FULL_FADES)  # the text may have become an easier one
            return [min(2 * self._depth, self.most)]
        if self._since < AROUND:
            return []
        self._since, self._looks = 0, self._looks + 1
        close = self._speedups[self._depth] < CLOSE
        others = [self._depth + 1, self._depth - 1, *[0] * close]
        depth = min(others[self._looks % len(others)], self.most)
        return [depth] if depth else [0] * PLAIN_LOOK

    @property
    def _could_pay(self) -> bool:
        """Whether drafts would be faster if all of them stood."""
        return any(depth + 1 > HYSTERESIS * self._steps[depth] for depth in range(1, self.most + 1))
