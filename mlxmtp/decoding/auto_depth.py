"""`--depth auto`: the policy that learns the best depth and source of drafts from the rounds themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

from mlxmtp.decoding.coverage import Coverage
from mlxmtp.decoding.depth import PLAIN, Observation, Plan
from mlxmtp.decoding.estimates import SURE_ROUNDS, AcceptanceRate, LookupAcceptance, RoundCosts, Source
from mlxmtp.decoding.stats import Round
from mlxmtp.limits import MAX_DEPTH

HYSTERESIS = 1.01
"""Ratio of speed-ups by which another depth has to be better before the policy changes to it."""
PLAIN_HYSTERESIS = 1.05
"""The same of plain decoding: higher, because plain rounds teach nothing about drafts."""
FIRST_DEPTH, FIRST_DRAFT_ROUNDS = 3, 6
"""Depth and number of the rounds that draft first on a new machine: enough for a cost that the next run can use."""
PLAIN_ROUNDS = 4
"""Rounds of a probe of plain decoding: the first and the last of a row are not timed, so it measures two steps."""
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
MIN_COST, MAX_COST = 1e-2, 1e3
"""Plain steps: a saved cost out of this range is damaged."""


class AutoDepth:
    """`--depth auto`: the depth with the most tokens a second, learned over all turns of an engine.

    The speed-up over plain decoding at depth k is E(k) / T(k): the expected tokens of a round of k drafts over its time
    in plain steps (Leviathan et al. 2211.17192, section 3.3, with acceptance by position and measured costs).

    Args:
        max_depth: most drafts of the head. max_lookup: most drafts from prompt lookup.
        costs, acceptance, lookup: estimates from an earlier run.
        coverage: of the narrowed vocabulary that drafts may come from; None: there is none.
    """

    def __init__(
        self,
        max_depth: int,
        max_lookup: int = 0,
        costs: RoundCosts | None = None,
        acceptance: AcceptanceRate | None = None,
        lookup: LookupAcceptance | None = None,
        coverage: Coverage | None = None,
    ) -> None:
        self.max_depth = max_depth
        self.max_lookup = max_lookup
        self.costs = costs or RoundCosts()
        self.acceptance = acceptance or AcceptanceRate()
        self.lookup = lookup or LookupAcceptance()
        self.coverage = coverage
        self._depth = 0
        self._source: Source = "head"
        self._other: Plan | None = None  # the best depth of the other vocabulary, once its costs are known
        self._other_speedup, self._other_tried = 1.0, 0
        self._choices = 0
        self._tokens = 0
        self._tried = [0] * (max_depth + 1)  # by depth: tokens so far when it was planned or run last
        self._probes: list[Plan] = []  # the next rounds, planned in order to learn
        self._patience, self._plain_rounds, self._full_lookups = MIN_PATIENCE, 0, 0
        self._row, self._last_seconds = 0, 0.0
        sources: tuple[Source, ...] = ("head", "narrowed")
        self._plans = {source: [Plan(depth, source) for depth in range(max_depth + 1)] for source in sources}
        self._choose()
        self._probe_first()

    @classmethod
    def from_state(
        cls, state: Mapping[str, Any], max_depth: int, max_lookup: int = 0, coverage: Coverage | None = None
    ) -> Self:
        """A policy that starts from what another one's `state` gave, perhaps through JSON and in an earlier version.

        Raises:
            ValueError: the state is damaged.
        """
        try:
            head, lookup = (
                {int(depth): _within(MIN_COST, MAX_COST, cost) for depth, cost in state[name].items()}
                for name in ("steps", "looked_up_steps")
            )
            shares = [_within(0, 1, share) for share in state["acceptance"]]
            by_length = [[_within(0, 1, share) for share in row] for row in state["repeats"]]
            narrowed = state.get("narrowed") if coverage else None
            saving = _within(-MAX_COST, MAX_COST, narrowed["saving"]) if narrowed else None
            if coverage and narrowed:
                coverage.inside, coverage.outside = (_within(0, 1, narrowed[name]) for name in ("inside", "outside"))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the state of the depth policy is damaged: {error!r}") from error
        if any(not 0 <= depth <= MAX_DEPTH for depth in (*head, *lookup)):
            raise ValueError(f"the state of the depth policy has costs of depths out of 0 to {MAX_DEPTH}")
        costs, acceptance = RoundCosts(head, lookup, saving), AcceptanceRate(shares)
        return cls(max_depth, max_lookup, costs, acceptance, LookupAcceptance(by_length), coverage)

    def state(self) -> dict[str, Any]:
        """What a later run can start from, for JSON; {} before any draft was verified."""
        if not self.acceptance.shares:
            return {}
        state = {
            "steps": self.costs.sure("head"),
            "looked_up_steps": self.costs.sure("lookup"),
            "acceptance": self.acceptance.shares,
            "repeats": self.lookup.shares,
        }
        if self.coverage and self.costs.narrowed_rounds >= SURE_ROUNDS:
            found = {"saving": self.costs.saving, "inside": self.coverage.inside, "outside": self.coverage.outside}
            state["narrowed"] = found
        return state

    @property
    def why(self) -> str:
        if not self.costs.known:
            return "auto: depths are being tried"
        depth = max(self._depth, 1)
        tokens, steps = self._tokens_of(self._source)[depth], self.costs.table(self._source, depth)[depth]
        expected = f"{tokens:.1f} tokens a round expected, for the time of {steps:.1f} plain ones"
        few = f", drafts from {len(self.coverage.vocabulary):,} tokens" if self._narrowed and self.coverage else ""
        return f"depth {self._depth}{few}, auto: {'' if self._depth else 'with drafts, '}{expected}"

    def begin_turn(self, tokens: Sequence[int] = ()) -> None:
        self._row = 0
        if self.coverage:
            self.coverage.vocabulary.add(tokens)

    def plan(self, matches: Sequence[int] = (0,)) -> list[Plan]:
        return [self._plan(match) for match in matches]

    def _plan(self, match: int) -> Plan:
        if self._probes and self._probes[0].depth == 0:
            return PLAIN
        if match and self.max_lookup and (depth := self._lookup_depth(match)):
            return Plan(depth, "lookup")
        return self._probes[0] if self._probes else self._plans[self._source][self._depth]

    def observe(self, observations: Sequence[Observation]) -> None:
        for one in observations:
            self._observe(one.round, one.match, one.repeated)

    def _observe(self, round: Round, match: int, repeated: int) -> None:
        if round.num_sequences == 1:
            self._time(round)
        self._tokens += len(round.tokens)
        full = round.accepted == round.drafted
        if match and self.max_lookup:
            self.lookup.of(match).observe(min(repeated + 1, len(round.tokens)), repeated)
        outside = self.coverage.observe(round) if self.coverage and not round.from_lookup else ()
        if self.coverage:
            self.coverage.vocabulary.add(round.tokens)
        if round.from_lookup:
            self._full_lookups = self._full_lookups % FULL_LOOKUPS + 1 if full else 0
            return
        self.acceptance.observe(round.drafted, round.accepted, outside)
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

    def _time(self, round: Round) -> None:
        if round.drafted == 0:
            if self._row > 1:  # of plain rounds in a row, the first may wait for two passes, and the last for none
                self.costs.observe("head", 0, self._last_seconds)
            self._row, self._last_seconds = self._row + 1, round.seconds
            return
        self._row = 0
        if round.phases is None:
            source: Source = "lookup" if round.from_lookup else "narrowed" if round.narrowed else "head"
            self.costs.observe(source, round.drafted, round.seconds)

    def _choose(self) -> None:
        """Change to the depth of the greatest speed-up, if it is better by enough; likewise to the other vocabulary."""
        self._speedups = self._expected(self._source)
        best = self._speedups.index(max(self._speedups))
        if self._speedups[best] > (HYSTERESIS if best else PLAIN_HYSTERESIS) * self._speedups[self._depth]:
            self._depth = best
        self._choices += 1
        if not (self.coverage and self.costs.narrowed_rounds and self._compares):
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

    def _tokens_of(self, source: Source) -> list[float]:
        return self.acceptance.tokens(self.max_depth, *(self.coverage.factors(source) if self.coverage else ()))

    def _expected(self, source: Source) -> list[float]:
        """The speed-up by depth."""
        costs = self.costs.table(source, self.max_depth)
        return [n / cost for n, cost in zip(self._tokens_of(source), costs, strict=False)]

    def _lookup_depth(self, match: int) -> int:
        """The best depth of drafts from prompt lookup; 0: it does not beat the head, or plain decoding."""
        tokens, costs = self.lookup.of(match).tokens(self.max_lookup), self.costs.table("lookup", self.max_lookup)
        best, speedup, depth = 0, HYSTERESIS * self._speedups[self._depth], 1
        while depth <= self.max_lookup:
            if tokens[depth] > speedup * costs[depth]:
                best, speedup = depth, tokens[depth] / costs[depth]
            depth *= 2
        return min(2 * best, self.max_lookup) if self._full_lookups == FULL_LOOKUPS else best

    def _probe(self, round: Round) -> None:
        """Plan rounds that are to teach something, if it is time for them."""
        if not self.costs.known:
            self._probe_first()
        elif self.coverage and self._compares and not self.costs.narrowed_rounds and self._try_narrowed(self.coverage):
            return
        elif self._depth or not self._could_pay:
            self._explore()
        elif (round.drafted and round.accepted) or self._plain_rounds >= self._patience:
            self._probes = [self._plans[self._source][1]]

    def _probe_first(self) -> None:
        if not self.costs.known:
            depth = min(FIRST_DEPTH, self.max_depth)
            self._probes = [PLAIN] * (PLAIN_ROUNDS + 1) + [Plan(depth)] * FIRST_DRAFT_ROUNDS

    def _try_narrowed(self, coverage: Coverage) -> bool:
        """Plan the trial of narrowed drafts, if they would pay at the least cost that their bytes allow.

        What a round costs beyond a plain step is at most its drafts' own time.
        """
        costs = self.costs.table("head", self.max_depth)
        least = [cost - coverage.vocabulary.max_saving * max(cost - 1, 0) for cost in costs]
        speedups = [n / cost for n, cost in zip(self._tokens_of("narrowed"), least, strict=False)]
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


def _within(low: float, high: float, value: Any) -> float:
    if not isinstance(value, float | int) or not low <= value <= high:
        raise ValueError(f"{value!r} is not from {low} to {high}")
    return value
