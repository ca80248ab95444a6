"""`--depth auto`: the policy that learns the best depth and source of drafts from the rounds themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from mlxmtp.decoding.coverage import Coverage
from mlxmtp.decoding.depth import Observation, Plan
from mlxmtp.decoding.depth_choice import DepthChoice, TextEstimates
from mlxmtp.decoding.estimates import AcceptanceRate, LookupAcceptance, Source
from mlxmtp.decoding.round_costs import SURE_ROUNDS, RoundCosts
from mlxmtp.decoding.sharing_rates import SharingRates
from mlxmtp.decoding.stats import Round
from mlxmtp.limits import MAX_DEPTH

MIN_COST, MAX_COST = 1e-2, 1e3
"""Plain steps: a saved cost out of this range is damaged."""
MAX_SEQUENCES = 1024
"""A saved number of sequences above this is damaged."""


class AutoDepth:
    """`--depth auto`: the depth with the most tokens a second, learned over all turns of an engine.

    The speed-up over plain decoding at depth k is E(k) / T(k): the expected tokens of a round of k drafts over its time
    in plain steps (Leviathan et al. 2211.17192, section 3.3, with acceptance by position and measured costs).

    What is learned of the text is shared. What rounds cost, and the choice that follows, exist once for each number of
    sequences that share a pass.

    Args:
        max_depth: most drafts of the head. max_lookup: most drafts from prompt lookup.
        costs, acceptance, lookup: estimates from an earlier run.
        coverage: of the narrowed vocabulary that drafts may come from; None: there is none.
        longest_shared: the most tokens of each of so many sequences in one pass.
        shared_costs: as `costs`, by the number of sequences that share a pass.
        sharing: the time of a plain step by the number of sequences.
    """

    def __init__(
        self,
        max_depth: int,
        max_lookup: int = 0,
        costs: RoundCosts | None = None,
        acceptance: AcceptanceRate | None = None,
        lookup: LookupAcceptance | None = None,
        coverage: Coverage | None = None,
        longest_shared: Callable[[int], int] = lambda _: MAX_DEPTH + 1,
        shared_costs: Mapping[int, RoundCosts] | None = None,
        sharing: SharingRates | None = None,
    ) -> None:
        self.max_depth = max_depth
        self.max_lookup = max_lookup
        self.acceptance = acceptance or AcceptanceRate()
        self.lookup = lookup or LookupAcceptance()
        self.coverage = coverage
        self.sharing = sharing or SharingRates()
        self._longest_shared = longest_shared
        self._text = TextEstimates(self.acceptance, self.lookup, coverage)
        self._choice = self._alone = DepthChoice(self._text, max_depth, max_lookup, costs or RoundCosts())
        self._choices = {1: self._alone}
        self._known = dict(shared_costs or {})  # by numbers of sequences that have not run yet
        self._row, self._last_seconds = 0, 0.0

    @classmethod
    def from_state(
        cls,
        state: Mapping[str, Any],
        max_depth: int,
        max_lookup: int = 0,
        coverage: Coverage | None = None,
        longest_shared: Callable[[int], int] = lambda _: MAX_DEPTH + 1,
    ) -> Self:
        """A policy that starts from what another one's `state` gave, perhaps through JSON and in an earlier version.

        Raises:
            ValueError: the state is damaged.
        """
        try:
            shares = [_within(0, 1, share) for share in state["acceptance"]]
            by_length = [[_within(0, 1, share) for share in row] for row in state["repeats"]]
            narrowed = state.get("narrowed") if coverage else None
            if coverage and narrowed:
                coverage.inside, coverage.outside = (_within(0, 1, narrowed[name]) for name in ("inside", "outside"))
            costs = _costs(state, narrowed["saving"] if narrowed else None)
            shared = {
                int(_within(2, MAX_SEQUENCES, int(number))): _costs(entry, entry.get("saving") if coverage else None)
                for number, entry in state.get("shared", {}).items()
            }
            times = {
                int(number): _within(MIN_COST, MAX_COST, time) for number, time in state.get("sharing", {}).items()
            }
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"the state of the depth policy is damaged: {error!r}") from error
        text = AcceptanceRate(shares), LookupAcceptance(by_length), coverage
        return cls(max_depth, max_lookup, costs, *text, longest_shared, shared, SharingRates(times))

    def state(self) -> dict[str, Any]:
        """What a later run can start from, for JSON; {} before any draft was verified."""
        if not self.acceptance.shares:
            return {}
        state = {
            **_state_of(self.costs),
            "acceptance": self.acceptance.shares,
            "repeats": self.lookup.shares,
        }
        saving = state.pop("saving", None)
        if self.coverage and saving is not None:
            state["narrowed"] = {"saving": saving, "inside": self.coverage.inside, "outside": self.coverage.outside}
        measured = self._known | {n: choice.costs for n, choice in self._choices.items() if n > 1}
        known = {str(n): _state_of(costs) for n, costs in measured.items() if costs.known}
        if shared := {number: entry for number, entry in known.items() if entry["steps"]}:
            state["shared"] = shared
        if times := self.sharing.times():
            first = next(iter(times.values()))
            state["sharing"] = {str(number): time / first for number, time in times.items()}
        return state

    @property
    def costs(self) -> RoundCosts:
        """What rounds of one turn cost."""
        return self._alone.costs

    @property
    def why(self) -> str:
        return self._choice.why

    def begin_turn(self, tokens: Sequence[int] = ()) -> None:
        self._row = 0
        if self.coverage:
            self.coverage.vocabulary.add(tokens)

    def plan(self, matches: Sequence[int] = (0,)) -> list[Plan]:
        if len(matches) == 1:
            return [self._alone.plan(matches[0])]
        return self._choice_for(len(matches)).plan_together(matches)

    def best_together(self, num_turns: int) -> int:
        """Return how many of the running turns of this policy should share the next pass, asked before each.

        Measured rates decide; a number of sequences that was not measured is tried, all together first.
        """
        return self.sharing.best(num_turns, lambda number: number * self._choice_for(number).speedup)

    def observe(self, observations: Sequence[Observation]) -> None:
        for one in observations:
            self._learn_text(one.round, one.match, one.repeated)
        number = len(observations)
        choice = self._alone if number == 1 else self._choice_for(number)
        round = observations[0].round if number == 1 else _joint([one.round for one in observations], choice.costs)
        if choice is not self._choice:
            self._choice, self._row = choice, 0
            choice.enter()
        if round.num_sequences == number:  # else turns of other policies were in the pass
            self._time(round)
        choice.observe(round)

    def _learn_text(self, round: Round, match: int, repeated: int) -> None:
        if match and self.max_lookup:
            self.lookup.of(match).observe(min(repeated + 1, len(round.tokens)), repeated)
        outside = self.coverage.observe(round) if self.coverage and not round.from_lookup else ()
        if self.coverage:
            self.coverage.vocabulary.add(round.tokens)
        if not round.from_lookup:
            self.acceptance.observe(round.drafted, round.accepted, outside)

    def _time(self, round: Round) -> None:
        """Learn from the time of a round of the present number of sequences."""
        costs, step = self._choice.costs, 0.0
        if round.drafted == 0:
            if self._row > 1:  # of plain rounds in a row, the first may wait for two passes, and the last for none
                step = costs.observe("head", 0, self._last_seconds)
            self._row, self._last_seconds = self._row + 1, round.seconds
        else:
            self._row = 0
            if round.phases is None and (round.from_lookup or round.drafted <= self._choice.max_depth):
                source: Source = "lookup" if round.from_lookup else "narrowed" if round.narrowed else "head"
                step = costs.observe(source, round.drafted, round.seconds)
        if step and len(self._choices) > 1:
            self.sharing.observe(round.num_sequences, step)

    def _choice_for(self, num_sequences: int) -> DepthChoice:
        choice = self._choices.get(num_sequences)
        if choice is None:
            costs = self._known.pop(num_sequences, None) or self._expected_costs(num_sequences)
            self.costs.careful = costs.careful = True
            most = max(self._longest_shared(num_sequences) - 1, 0)
            choice = DepthChoice(self._text, min(self.max_depth, most), min(self.max_lookup, most), costs)
            self._choices[num_sequences] = choice
        return choice

    def _expected_costs(self, num_sequences: int) -> RoundCosts:
        """Costs to begin with: those of the nearest smaller number that is known, over as many rows."""
        measured = {n: choice.costs for n, choice in self._choices.items()} | self._known
        nearest = max((n for n, costs in measured.items() if n < num_sequences and costs.known), default=1)
        return measured[nearest].for_sequences(num_sequences / nearest)


def _joint(rounds: Sequence[Round], costs: RoundCosts) -> Round:
    """A round of several turns as one, as deep as the deepest: its drafts count as accepted if they paid in sum."""
    drafted = max(one.drafted for one in rounds)
    of_head = [one for one in rounds if one.drafted and not one.from_lookup]
    tokens = sum(one.accepted + 1 for one in rounds) / len(rounds)
    paid = tokens > costs.table("head", drafted)[drafted] if of_head else tokens == drafted + 1
    return Round(
        tokens=tuple(token for one in rounds for token in one.tokens),
        drafted=drafted,
        accepted=drafted if paid else 0,
        evaluations=rounds[0].evaluations,
        phases=rounds[0].phases,
        seconds=rounds[0].seconds,
        from_lookup=drafted > 0 and not of_head,
        narrowed=any(one.narrowed for one in of_head),
        num_sequences=rounds[0].num_sequences,
    )


def _costs(entry: Mapping[str, Any], saving: Any) -> RoundCosts:
    head, lookup = (
        {int(depth): _within(MIN_COST, MAX_COST, cost) for depth, cost in entry[name].items()}
        for name in ("steps", "looked_up_steps")
    )
    if any(not 0 <= depth <= MAX_DEPTH for depth in (*head, *lookup)):
        raise ValueError(f"the state of the depth policy has costs of depths out of 0 to {MAX_DEPTH}")
    return RoundCosts(head, lookup, None if saving is None else _within(-MAX_COST, MAX_COST, saving))


def _state_of(costs: RoundCosts) -> dict[str, Any]:
    state: dict[str, Any] = {"steps": costs.sure("head"), "looked_up_steps": costs.sure("lookup")}
    return state | ({"saving": costs.saving} if costs.narrowed_rounds >= SURE_ROUNDS else {})


def _within(low: float, high: float, value: Any) -> float:
    if not isinstance(value, float | int) or not low <= value <= high:
        raise ValueError(f"{value!r} is not from {low} to {high}")
    return value
