"""Depth policies: how many tokens the next round drafts. 0 is a depth."""

from dataclasses import dataclass
from typing import Protocol

from mlxmtp.decoding.stats import Round


class DepthPolicy(Protocol):
    """Chooses a depth for each round. Whatever it chooses, the law of the output stays.

    `why` is the present choice in one line; "" where there was none to make.
    """

    @property
    def why(self) -> str: ...

    def next(self) -> int:
        """The depth of the next round; asked once for each, of plain ones before the last has been told."""

    def observe(self, one: Round) -> None:
        """Learn from a round."""


@dataclass(frozen=True)
class FixedDepth:
    """The same depth each round."""

    depth: int
    why: str = ""

    def next(self) -> int:
        return self.depth

    def observe(self, one: Round) -> None:
        pass
