"""Depth policies: how many tokens the next round drafts, and where the drafts come from. 0 is a depth.

Whatever a policy plans, the distribution of the output stays the same: a plan depends on past tokens and on clocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from mlxmtp.decoding.estimates import Source
from mlxmtp.decoding.stats import Round


@dataclass(frozen=True)
class Plan:
    """The next round: its number of drafts, and where they come from. A round of depth 0 is plain."""

    depth: int
    source: Source = "head"


PLAIN = Plan(0)


@dataclass(frozen=True)
class Observation:
    """A round of one turn.

    Args:
        match: as in `DepthPolicy.plan`, before the round.
        repeated: how many of the round's tokens, from the first on, are those that followed the match before, whatever
            was drafted.
    """

    round: Round
    match: int = 0
    repeated: int = 0


class DepthPolicy(Protocol):
    """Plans each round, and learns from it.

    `why` is the present choice in one line; "" where there is none to make.
    `max_lookup` is the most drafts from prompt lookup that a plan asks for; 0: the loop keeps no index of the text.
    """

    @property
    def why(self) -> str: ...

    @property
    def max_lookup(self) -> int: ...

    def begin_turn(self, tokens: Sequence[int] = ()) -> None:
        """A turn begins after these tokens: time has passed since the last round."""

    def plan(self, matches: Sequence[int] = (0,)) -> list[Plan]:
        """The next round of turns that share its pass, from all that was observed; asking changes nothing.

        While a plain round is in flight it is asked too: only whether another plain round can be queued.

        Args:
            matches: for each turn, tokens at the end of its text that occurred before; 0: prompt lookup has no match.
        """

    def observe(self, observations: Sequence[Observation]) -> None:
        """Learn from a round: what it was for each of the policy's turns."""


@runtime_checkable
class SharingPolicy(DepthPolicy, Protocol):
    """A policy that also says how many of its turns should share a pass."""

    def best_together(self, num_turns: int) -> int:
        """Return how many of the running turns should share the next pass, asked before each."""


@dataclass(frozen=True)
class FixedDepth:
    """The same depth each round."""

    depth: int
    why: str = ""
    max_lookup: int = 0

    def begin_turn(self, tokens: Sequence[int] = ()) -> None:
        pass

    def plan(self, matches: Sequence[int] = (0,)) -> list[Plan]:
        return [Plan(self.depth)] * len(matches)

    def observe(self, observations: Sequence[Observation]) -> None:
        pass


def plan_round(turns: Sequence[tuple[DepthPolicy, int]]) -> list[Plan]:
    """The plans of turns that share a pass, by their policies and matches; each policy plans its turns at once."""
    matches: dict[DepthPolicy, list[int]] = {}
    for policy, match in turns:
        matches.setdefault(policy, []).append(match)
    plans = {policy: iter(policy.plan(own)) for policy, own in matches.items()}
    return [next(plans[policy]) for policy, _ in turns]
