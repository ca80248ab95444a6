"""The choice of depth and source for rounds of one number of sequences: the most tokens a second in sum."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mlxmtp.decoding.coverage import Coverage
from mlxmtp.decoding.depth import PLAIN, Plan
from mlxmtp.decoding.estimates import AcceptanceRate, LookupAcceptance, Source
from mlxmtp.decoding.round_costs import RoundCosts
from mlxmtp.decoding.stats import Round

HYSTERESIS = 1.01
"""Ratio of speed-ups by which another depth has to be better before the policy changes to it."""
PLAIN_HYSTERESIS = 1.05
"""The same of plain decoding: higher, because plain rounds teach nothing about drafts."""
FIRST_DEPTH, FIRST_DRAFT_ROUNDS = 3, 6
"""Depth and number of the rounds that draft first on a new machine: enough for a cost that the next run can use."""
PLAIN_ROUNDS = 4
"""Rounds of a probe of plain decoding: the first and the last of a row are not timed, so it measures two steps."""
ENOUGH_PLAIN_ROUNDS = 12
"""Plain steps from which on a number of sequences that comes again needs no probe of them."""
MIN_PATIENCE, MAX_PATIENCE = 3, 48
"""Plain rounds before a probe with one draft. A rejected probe doubles them, an accepted one halves them."""
EXPLORATION = 3000
"""Tokens: a depth slower by the share g, measured in n rounds, is tried again after g² n times as many: at 5 % and 50
rounds after 375, at 20 % and 3 rounds after 360. The less is known of a depth, the sooner."""
FULL_LOOKUPS = 3
"""Lookup rounds accepted in full, in a row, after which one with twice the drafts is tried."""
TRIAL_ROUNDS = 7
"""Rounds with narrowed drafts in their first trial, in turn with as many of the full vocabulary. The first is not
timed, and six tell the time of a round to about 3 %."""
COMPARE_EVERY = 8
"""Rounds between two comparisons of the vocabularies: each takes as long as the choice of the depth."""


@dataclass
class TextEstimates:
    """What is learned of the text: shared by all turns and all numbers of sequences.

    Counts are pooled by position, so that they give the expected tokens of the running turns in sum.

    Args:
        coverage: of the narrowed vocabulary that drafts may come from; None: there is none.
    """

    acceptance: AcceptanceRate
    lookup: LookupAcceptance
    coverage: Coverage | None = None

    def tokens(self, source: Source, depth: int) -> list[float]:
        """The expected tokens of a round of one turn at depths 0 to `depth`."""
        return self.acceptance.tokens(depth, *(self.coverage.factors(source) if self.coverage else ()))


class DepthChoice:
    """Plans the rounds of one number of sequences, and learns what they cost.

    Args:
        text: what is known of the text; its owner keeps it up to date.
        max_depth: most drafts of the head. max_lookup: most drafts from prompt lookup.
        costs: of rounds, in plain steps of as many sequences.
    """

    def __init__(self, text: TextEstimates, max_depth: int, max_lookup: int, costs: RoundCosts) -> None:
        self.costs = costs
        self._text = text
        self.max_depth = max_depth
        self._max_lookup = max_lookup
        self._depth = 0
        self._source: Source = "head"
        self._other: Plan | None = None  # the best depth of the other vocabulary, once its costs are known
        self._other_speedup, self._other_tried = 1.0, 0
        self._choices = 0
        self._tokens = 0
        self._tried = [0] * (max_depth + 1)  # by depth: tokens so far when it was planned or run last
        self._probes: list[Plan] = []  # the next rounds, planned in order to learn
        self._patience, self._plain_rounds, self._full_lookups = MIN_PATIENCE, 0, 0
        sources: tuple[Source, ...] = ("head", "narrowed")
        self._plans = {source: [Plan(depth, source) for depth in range(max_depth + 1)] for source in sources}
        self._choose()
        self._probe_first()

    @property
    def why(self) -> str:
        """The present choice in one line."""
        if not self.costs.known:
            return "auto: depths are being tried"
        depth, coverage = max(self._depth, 1), self._text.coverage
        tokens, steps = self._text.tokens(self._source, depth)[depth], self.costs.table(self._source, depth)[depth]
        expected = f"{tokens:.1f} tokens a round expected, for the time of {steps:.1f} plain ones"
        few = f", drafts from {len(coverage.vocabulary):,} tokens" if self._narrowed and coverage else ""
        return f"depth {self._depth}{few}, auto: {'' if self._depth else 'with drafts, '}{expected}"

    @property
    def speedup(self) -> float:
        """Expected tokens of each turn in the time of a plain step, at the best depth."""
        return max(self._expected(self._source))

    def plan(self, match: int) -> Plan:
        """The next round of one turn."""
        if self._probes and self._probes[0].depth == 0:
            return PLAIN
        if match and self._max_lookup and (depth := self._lookup_depth(match)):
            return Plan(depth, "lookup")
        return self._probes[0] if self._probes else self._plans[self._source][self._depth]

    def plan_together(self, matches: Sequence[int]) -> list[Plan]:
        """The next round of several turns, whose passes have as many rows as the deepest asks for.

        So all draft as deep as the best plan for their sum. Each takes its drafts where more are expected to be
        accepted. Without a draft of the head, none of its time is spent; rows beyond its deepest draft cost what
        looked-up ones do.
        """
        best = self._probes[0] if self._probes else self._plans[self._source][self._depth]
        if (self._probes and best.depth == 0) or not (self._max_lookup and any(matches)):
            return [best] * len(matches)
        most = max(self.max_depth, self._max_lookup)
        found = {match: self._text.lookup.of(match).tokens(most) for match in matches if match}
        head = self._text.tokens(self._source, self.max_depth)
        costs, lookup_costs = self.costs.table(self._source, most), self.costs.table("lookup", most)

        def rate(plan: Plan) -> float:
            deepest = 0 if plan.source == "lookup" else min(plan.depth, self.max_depth)
            tokens = sum(max(head[deepest], found[match][plan.depth]) if match else head[deepest] for match in matches)
            return tokens / (costs[deepest] + lookup_costs[plan.depth] - lookup_costs[deepest])

        rate_to_beat, depth = HYSTERESIS * rate(self._plans[self._source][self._depth]), 1
        while depth <= self._max_lookup:
            for plan in (Plan(depth, "lookup"), Plan(depth, self._source)):
                if rate(plan) > rate_to_beat:
                    best, rate_to_beat = plan, rate(plan)
            depth *= 2
        if best.source == "lookup" and self._full_lookups == FULL_LOOKUPS:
            best = Plan(min(2 * best.depth, self._max_lookup), "lookup")
        own = PLAIN if best.source == "lookup" else self._plans[best.source][min(best.depth, self.max_depth)]
        expected, lookup = head[own.depth], Plan(best.depth, "lookup")
        return [lookup if match and found[match][best.depth] > expected else own for match in matches]

    def enter(self) -> None:
        """Another number of sequences ran before: measure plain steps again, until enough were."""
        if not self._probes and self.costs.plain_rounds < ENOUGH_PLAIN_ROUNDS:
            self._probes = [PLAIN] * PLAIN_ROUNDS

    def observe(self, round: Round) -> None:
        """Learn from a round, after its time and its text were learned."""
        self._tokens += len(round.tokens)
        full = round.accepted == round.drafted
        if round.from_lookup:
            self._full_lookups = self._full_lookups % FULL_LOOKUPS + 1 if full else 0
            return
        self._choose()
        if self._probes and (self._probes[0].depth > 0) == (round.drafted > 0):
            del self._probes[0]
        if round.drafted <= self.max_depth:
            self._tried[round.drafted] = self._tokens
        if round.drafted and round.narrowed != self._narrowed:
            self._other_tried = self._tokens
        self._plain_rounds = 0 if round.drafted else self._plain_rounds + 1
        if round.drafted and self._depth == 0:
            self._patience = max(self._patience // 2, MIN_PATIENCE) if full else min(2 * self._patience, MAX_PATIENCE)
        elif self._depth:
            self._patience = MIN_PATIENCE
        if not self._probes:
            self._probe(round)

    def _choose(self) -> None:
        """Change to the depth of the greatest speed-up, if it is better by enough; likewise to the other vocabulary."""
        self._speedups = self._expected(self._source)
        best = self._speedups.index(max(self._speedups))
        if self._speedups[best] > (HYSTERESIS if best else PLAIN_HYSTERESIS) * self._speedups[self._depth]:
            self._depth = best
        self._choices += 1
        if not (self._text.coverage and self.costs.narrowed_rounds and self._compares):
            return
        source: Source = "head" if self._narrowed else "narrowed"
        speedups = self._expected(source)
        best = speedups.index(max(speedups))
        self._other, self._other_speedup = self._plans[source][best], speedups[best]
        if best and speedups[best] > HYSTERESIS * self._speedups[self._depth]:
            self._other, self._other_speedup = self._plans[self._source][self._depth], self._speedups[self._depth]
            self._source, self._depth, self._speedups, self._other_tried = source, best, speedups, self._tokens

    @property
    def _compares(self) -> bool:
        """Whether this round is one of those that compare the vocabularies."""
        return self._choices % COMPARE_EVERY == 1

    @property
    def _narrowed(self) -> bool:
        return self._source == "narrowed"

    def _expected(self, source: Source) -> list[float]:
        """The speed-up by depth."""
        tokens, costs = self._text.tokens(source, self.max_depth), self.costs.table(source, self.max_depth)
        return [n / cost for n, cost in zip(tokens, costs, strict=False)]

    def _lookup_depth(self, match: int) -> int:
        """The best depth of drafts from prompt lookup; 0: it does not beat the head, or plain decoding."""
        tokens, costs = (
            self._text.lookup.of(match).tokens(self._max_lookup),
            self.costs.table("lookup", self._max_lookup),
        )
        best, speedup, depth = 0, HYSTERESIS * self._speedups[self._depth], 1
        while depth <= self._max_lookup:
            if tokens[depth] > speedup * costs[depth]:
                best, speedup = depth, tokens[depth] / costs[depth]
            depth *= 2
        return min(2 * best, self._max_lookup) if self._full_lookups == FULL_LOOKUPS else best

    def _probe(self, round: Round) -> None:
        """Plan rounds that are to teach something, if it is time for them."""
        coverage = self._text.coverage
        if not self.costs.known:
            self._probe_first()
        elif coverage and self._compares and not self.costs.narrowed_rounds and self._try_narrowed(coverage):
            return
        elif self._depth or not self._could_pay:
            self._explore()
        elif (round.drafted and round.accepted) or self._plain_rounds >= self._patience:
            self._probes = [self._plans[self._source][1]]

    def _probe_first(self) -> None:
        """Plan the rounds that begin a choice: plain ones, and drafts of the depth that is expected to be the best."""
        if not self.costs.known:
            expected = max(self._depth, 1) if self.costs.begun else FIRST_DEPTH
            self._probes = [PLAIN] * (PLAIN_ROUNDS + 1) + [Plan(min(expected, self.max_depth))] * FIRST_DRAFT_ROUNDS

    def _try_narrowed(self, coverage: Coverage) -> bool:
        """Plan the trial of narrowed drafts, if they would pay at the least cost that their bytes allow.

        What a round costs beyond a plain step is at most its drafts' own time.
        """
        costs = self.costs.table("head", self.max_depth)
        least = [cost - coverage.vocabulary.max_saving * max(cost - 1, 0) for cost in costs]
        speedups = [n / cost for n, cost in zip(self._text.tokens("narrowed", self.max_depth), least, strict=False)]
        depth = speedups.index(max(speedups))
        if not depth or speedups[depth] < HYSTERESIS * self._speedups[self._depth]:
            return False
        depth = self._depth or depth
        self.costs.saving = (costs[depth] - least[depth]) / depth / 2
        self._probes = [self._plans["narrowed"][depth], self._plans["head"][depth]] * TRIAL_ROUNDS
        return True

    def _explore(self) -> None:
        """Another depth: the further it is from the best, the more seldom."""
        for depth, speedup in enumerate(self._speedups):
            gap = self._speedups[self._depth] / speedup - 1
            if gap > 0 and gap * gap * self.costs.rounds(depth) * EXPLORATION < self._tokens - self._tried[depth]:
                self._tried[depth] = self._tokens
                self._probes = [self._plans[self._source][depth]] if depth else [PLAIN] * PLAIN_ROUNDS
                return
        if self._other and self._other.depth:
            gap = max(self._speedups[self._depth] / self._other_speedup, HYSTERESIS) - 1
            if gap * gap * self.costs.rounds_of(self._other.source) * EXPLORATION < self._tokens - self._other_tried:
                self._other_tried = self._tokens
                self._probes = [self._other]

    @property
    def _could_pay(self) -> bool:
        """Whether any depth would beat plain decoding if all of its drafts were accepted."""
        costs = self.costs.table("head", self.max_depth)
        return any(depth + 1 > HYSTERESIS * costs[depth] for depth in range(1, self.max_depth + 1))
