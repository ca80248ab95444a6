"""What can be promised about the text: words and records, without MLX."""

from dataclasses import dataclass
from typing import Literal, get_args

Identity = Literal["fast", "strict", "canonical"]
"""What a user asks for: the fastest arithmetic, one row's, or that of a width of its own for plain decoding too."""
Promise = Literal["identical", "identical-one-row", "identical-canonical", "distribution"]

IDENTITIES: tuple[Identity, ...] = get_args(Identity)
PROMISES: dict[Promise, str] = {
    "identical": "token-identical to plain decoding",
    "identical-one-row": "token-identical to plain decoding, by one-row arithmetic",
    "identical-canonical": "token-identical to plain decoding at canonical width",
    "distribution": "same distribution as plain decoding; near-ties may differ",
}
"""Each promise in words, for a turn at temperature 0 or with a seed."""


@dataclass(frozen=True)
class Guarantee:
    """What was shown of a model on a machine, and for what. Whatever could not be shown equal counts as not equal.

    Args:
        promise: what holds while the target computes as `width` and the promise say.
        width: rows that every pass has at least; 1: as many as are asked for. alone: one-row arithmetic multiplies row
            by row, for gathered products did not hold.
        rows: passes of 2 to so many rows were held against one row, bit for bit.
        context: with up to so many tokens before them.
        because: what was found where no identity holds, else empty.
        complete: nothing but bits stood in the way.
    """

    promise: Promise
    rows: int
    context: int
    width: int = 1
    alone: bool = False
    because: str = ""
    complete: bool = True

    @property
    def identical(self) -> bool:
        """Whether tokens are those of plain decoding, at temperature 0 or with a seed."""
        return self.promise != "distribution"

    def at(self, depth: int | None) -> Promise:
        """What holds of turns with so many drafts a round; None: as the engine chooses, which keeps within `rows`."""
        return promise_at(self.promise, self.rows, depth)


def promise_at(promise: Promise, rows: int, depth: int | None) -> Promise:
    """A promise for passes of up to so many rows, as it holds at a depth."""
    return promise if depth is None or depth < rows else "distribution"


def in_words(promise: Promise, *, chosen: bool) -> str:
    """A promise as it holds for a turn; `chosen`: its tokens follow from the logits, by argmax or a given seed."""
    return PROMISES[promise] if chosen else "same distribution as plain decoding"
