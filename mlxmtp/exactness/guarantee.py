"""What can be guaranteed about the text: words and records, without MLX."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Identity = Literal["fast", "strict", "canonical"]
"""What a user asks for (docs/exactness.md, "Strategies"): MLX's own arithmetic; every row computed as it is alone; or
one pass width for plain decoding and for MTP."""
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
    """What was shown for a model on a machine. Passes that could not be compared count as different.

    Args:
        promise: what holds while the target computes by `strategy_of(guarantee)` (exactness/strategy.py).
        num_tokens: passes of 2 to `num_tokens` tokens were compared with passes of one after each context, bit for bit.
        context: the longest context, in tokens, at which they were compared.
        min_tokens: every pass is padded to this many tokens; 1: no padding.
        row_by_row: every matrix product runs row by row, because gathered products were not equal.
        stock, attention: by one-row arithmetic: MLX's own product of several rows is among the variants; attention
            runs over all rows in one call.
        because: what differed, for the promise "distribution"; else empty.
        complete: no error kept the probe from comparing.
        ways: by one-row arithmetic: the variant of each kind of module and number of rows (exactness/variants.py).
    """

    promise: Promise
    num_tokens: int
    context: int
    min_tokens: int = 1
    row_by_row: bool = False
    stock: bool = False
    attention: bool = False
    because: str = ""
    complete: bool = True
    ways: Mapping[str, str] = field(default_factory=dict)

    @property
    def identical(self) -> bool:
        """Whether tokens are those of plain decoding, at temperature 0 or with a seed."""
        return self.promise != "distribution"

    def at(self, depth: int | None) -> Promise:
        """Return the promise for turns with `depth` drafts a round; None: the engine chooses, within `num_tokens`."""
        return promise_at(self.promise, self.num_tokens, depth)

    def as_json(self) -> dict[str, Any]:
        """Return plain values under the keys of `mlxmtp doctor --json`."""
        return {
            "promise": self.promise,
            "rows": self.num_tokens,
            "context": self.context,
            "width": self.min_tokens,
            "alone": self.row_by_row,
            "stock": self.stock,
            "attention": self.attention,
            "because": self.because,
            "complete": self.complete,
        }


def promise_at(promise: Promise, num_tokens: int, depth: int | None) -> Promise:
    """Return a promise, which was shown for passes of up to `num_tokens` tokens, as it holds at a depth."""
    return promise if depth is None or depth < num_tokens else "distribution"


def in_words(promise: Promise, *, chosen: bool) -> str:
    """Return a promise in words for a turn; `chosen`: tokens follow from the logits, by argmax or a given seed."""
    return PROMISES[promise] if chosen else "same distribution as plain decoding"
