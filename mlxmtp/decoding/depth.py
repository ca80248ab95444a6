"""Depth policies: how many tokens the next round drafts, and where the drafts come from. 0 is a depth."""

from dataclasses import dataclass
from typing import Literal, Protocol

from mlxmtp.decoding.stats import Round

Source = Literal["head", "lookup"]


@dataclass(frozen=True)
class Plan:
    """The next round: its number of drafts, and where they come from. A round of depth 0 is plain."""

    depth: int
    source: Source = "head"


PLAIN = Plan(0)


class DepthPolicy(Protocol):
    """Plans each round, and learns from it. No plan changes the distribution of the output.

    `why` is the present choice in one line; "" where there is none to make.
    `max_lookup` is the most drafts from prompt lookup that a plan asks for; 0: the loop keeps no index of the text.
    """

    @property
    def why(self) -> str: ...

    @property
    def max_lookup(self) -> int: ...

    def begin_turn(self) -> None:
        """A turn begins: time has passed since the last round."""

    def plan(self, match: int = 0) -> Plan:
        """The next round.

        While a plain round is in flight it is asked once more, for the round after it: depth 0 queues a plain round.

        Args:
            match: tokens at the end of the text that occurred before; 0: prompt lookup has no match.
        """

    def observe(self, round: Round, match: int = 0, repeated: int = 0) -> None:
        """Learn from a round.

        Args:
            match: the match before the round. repeated: how many of the round's tokens, from the first on, followed
                the match earlier in the text, whatever was drafted.
        """


@dataclass(frozen=True)
class FixedDepth:
    """The same depth each round."""

    depth: int
    why: str = ""
    max_lookup: int = 0

    def begin_turn(self) -> None:
        pass

    def plan(self, match: int = 0) -> Plan:  # noqa: ARG002
        return Plan(self.depth)

    def observe(self, round: Round, match: int = 0, repeated: int = 0) -> None:
        pass
