"""`--depth auto`: the depth that gives most tokens a second, from what rounds cost and how many of their drafts stand.

S(k) = E(k) / T(k): E(k) = 1 + a_1 + a_1 a_2 + ... are the tokens of a round of k drafts, a_i the share of the i-th
drafts that stand where all before them did; T(k) are its plain steps (Leviathan et al. 2211.17192, section 3.3, with
acceptance by position and measured costs). Both are estimated from the rounds as they come. The choice looks at past
tokens and at clocks alone, so the law of the output does not depend on it.
"""

from __future__ import annotations

from mlxmtp.decoding.acceptance import Acceptance
from mlxmtp.decoding.costs import Costs
from mlxmtp.decoding.depth import Plan
from mlxmtp.decoding.repeats import Repeats
from mlxmtp.decoding.stats import Round

FIRST, HOPEFUL = 3, 1.5
"""The depth that is tried while costs are unknown, unless one draft a round is known to give fewer tokens than that."""
START = 4
"""Rounds of it: too few say little of drafts, and a first one nothing of time."""
HYSTERESIS = 1.01
"""Another depth has to be so much better."""
PARKING = 1.05
"""So much better has plain decoding to be: without drafts there is nothing to learn of them."""
SOONEST, LATEST = 3, 48
"""Plain tokens before a look whether drafts would stand again: twice as many after one whose first draft fell, half
after one whose drafts all stood."""
AROUND = 384
"""Tokens between two looks at what other depths cost; and at most between two looks at drafts."""
PLAIN_LOOK = 4
"""Plain tokens of such a look: the first and the last say nothing of the time between."""
CLOSE, OFTEN, SELDOM = 1.3, 3, 8
"""Below this speed-up plain decoding may turn out to be the better: it gets one look in three, else one in eight."""
NEAR, SOON = 1.06, 96
"""Below this one it gets a look after so many tokens: there it costs next to nothing."""
FULL, FULL_REPEATS = 8, 3
"""After so many rounds without a rejection, a deeper one is tried; so many whose drafts were looked up."""
IN_A_ROW = 4
"""Drafts of one look, if all of them stand: by then the choice has what it needs."""


class AutoDepth:
    """Learns from every round, over all turns of an engine.

    Args:
        most: the greatest depth. most_repeated: where the drafts are looked up in the text.
        costs, acceptance, repeats: what is known from an earlier run.
    """

    def __init__(
        self,
        most: int,
        most_repeated: int = 0,
        costs: Costs | None = None,
        acceptance: Acceptance | None = None,
        repeats: Repeats | None = None,
    ) -> None:
        self.most = most
        self.most_repeated = most_repeated
        self.costs = costs or Costs()
        self.acceptance = acceptance or Acceptance()
        self.repeats = repeats or Repeats()
        self._row, self._last = 0, 0.0
        self._patience = SOONEST
        self._stood = False
        self._depth = 0
        self._plain = self._since = self._looks = self._full = self._full_repeats = 0
        self._choose()
        self._plan: list[int] = self._next_look()

    @property
    def why(self) -> str:
        if len(self.costs.ratios()) < 2:
            return "auto: depths are being tried"
        depth = max(self._depth, 1)
        tokens, steps = self._tokens[depth], self._steps[depth]
        expected = f"{tokens:.1f} tokens a round expected, for the time of {steps:.1f} plain ones"
        return f"depth {self._depth}, auto: {'' if self._depth else 'with drafts, '}{expected}"

    @property
    def max_lookup(self) -> int:
        return self.most_repeated

    def begin_turn(self) -> None:
        """A turn begins: its first plain step follows none."""
        self._row = 0
        self.costs.begin()

    def plan(self, match: int = 0) -> Plan:
        """The next round."""
        if depth := self.repeat(match):
            return Plan(depth, "lookup")
        return Plan(self._plan[0] if self._plan else self._depth)

    def repeat(self, match: int) -> int:
        """How many tokens to look up behind a match of this length; 0: there is something better."""
        if match == 0 or self.most_repeated == 0 or self._plan:
            return 0
        tokens = self.repeats.tokens(match, self.most_repeated)
        steps = self.costs.looked_up_table(self.most_repeated)
        speedups, best = _priced(tokens, steps)
        if speedups[best] <= HYSTERESIS * self._speedups[self._depth]:
            return 0
        return best if self._full_repeats < FULL_REPEATS else min(2 * best, self.most_repeated)

    def observe(self, one: Round, match: int = 0, repeated: int = 0) -> None:
        if match:
            self.repeats.observe(match, [i < repeated for i in range(len(one.tokens))])
        if self._plan and not one.from_lookup and (self._plan[0] > 0) == (one.drafted > 0):
            self._plan.pop(0)
        if one.from_lookup and self._full_repeats >= FULL_REPEATS:
            self._full_repeats = 0
        self._time(one)
        self._since += len(one.tokens)
        full = one.drafted > 0 and one.accepted == one.drafted
        if one.from_lookup:
            self._full_repeats = self._full_repeats + 1 if full else 0
            return
        self.acceptance.observe(one.drafted, one.accepted)
        self._full = self._full + 1 if full else 0
        self._plain = 0 if one.drafted else self._plain + 1
        self._choose()
        self._plan = self._plan or self._next_look(one)

    def _time(self, one: Round) -> None:
        if one.drafted == 0:
            if self._row > 1:  # of plain steps in a row, the first may wait for two passes, and the last for none
                self.costs.observe(0, self._last)
            self._row, self._last = self._row + 1, one.seconds
            return
        self._row = 0
        if one.phases is None:
            self.costs.observe(one.drafted, one.seconds, looked_up=one.from_lookup)
        elif not one.from_lookup:
            self.costs.observe_draft(one.phases.draft_s / one.drafted)

    def _choose(self) -> None:
        self._tokens, self._steps = self.acceptance.tokens(self.most), self.costs.table(self.most)
        self._speedups, best = _priced(self._tokens, self._steps)
        if self._speedups[best] > (HYSTERESIS if best else PARKING) * self._speedups[self._depth]:
            self._depth = best

    def _next_look(self, one: Round | None = None) -> list[int]:
        """The depths of rounds that are to teach something; none, where the best depth is to be used."""
        if len(self.costs.ratios()) < 2:  # nothing to compare
            first = FIRST if self.acceptance.tokens(1)[1] > HOPEFUL else 1
            return [min(first, self.most)] * START + [0] * (PLAIN_LOOK + 1)  # enough to be kept for the next run
        if one is None:
            return []
        return self._look_for_drafts(one) if self._depth == 0 else self._look_around()

    def _look_for_drafts(self, one: Round) -> list[int]:
        """Decoding plainly: now and then one draft, and another where it stands."""
        if one.drafted:
            if self._could_pay and 0 < self._full < IN_A_ROW:
                self._stood = True
                return [1]
            if self._full:  # all stood
                self._patience = max(self._patience // 2, SOONEST)
            elif not self._stood:  # not even the first
                self._patience = min(2 * self._patience, LATEST)
            self._stood = False
            return []
        if self._plain < (self._patience if self._could_pay else AROUND):
            return []
        self.acceptance.fade(self._plain)
        self._plain = 0  # the round that is under way is a plain one, and asks for no second look
        return [1]

    def _look_around(self) -> list[int]:
        """Drafting: a round at another depth, so that what is known of it does not grow old."""
        self._patience = SOONEST
        if self._full >= FULL and self._depth < self.most:
            self._full = 0
            return [min(2 * self._depth, self.most)]
        near = self._speedups[self._depth] < NEAR
        if self._since < (SOON if near else AROUND):
            return []
        self._since, self._looks = 0, self._looks + 1
        if near or self._looks % (OFTEN if self._speedups[self._depth] < CLOSE else SELDOM) == 0:
            return [0] * PLAIN_LOOK
        depth = self._depth + (1 if self._looks % 2 else -1)
        return [min(depth, self.most)] if depth else [0] * PLAIN_LOOK

    @property
    def _could_pay(self) -> bool:
        """Whether drafts would be faster if all of them stood."""
        return any(depth + 1 > HYSTERESIS * self._steps[depth] for depth in range(1, self.most + 1))


def _priced(tokens: list[float], steps: list[float]) -> tuple[list[float], int]:
    """S(0), S(1), ..., and the depth of the greatest."""
    speedups = [n / t for n, t in zip(tokens, steps, strict=True)]
    return speedups, speedups.index(max(speedups))
