"""Depth policies: how many tokens the next round drafts. 0 is a depth."""

from dataclasses import dataclass
from typing import Protocol

from mlxmtp.decoding.stats import Round


class DepthPolicy(Protocol):
    """Chooses a depth for each round. Whatever it chooses, the law of the output stays."""

    def next(self) -> int:
        """The depth of the next round."""

    def observe(self, one: Round) -> None:
        """Learn from a round."""


@dataclass(frozen=True)
class FixedDepth:
    """The same depth each round."""

    depth: int

    def next(self) -> int:
        return self.depth

    def observe(self, one: Round) -> None:
        pass
