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
            They are passes of one sequence.
        context: the longest context, in tokens, at which they were compared.
        min_tokens: every pass is padded to this many tokens; 1: no padding.
        row_by_row: every matrix product runs row by row, because gathered products were not equal.
        stock, attention: by one-row arithmetic: MLX's own product of several rows is among the variants; attention
            runs over all rows in one call.
        because: what differed, for the promise "distribution"; else empty.
        complete: no error kept the probe from comparing.
        ways: by one-row arithmetic: the variant of each kind of module and number of rows (exactness/variants.py).
        num_sequences: passes of 2 to `num_sequences` sequences may be shared; 1: they were not asked for, or cannot.
        num_rows: where tokens are identical: shared passes of up to `num_rows` rows, sequences times tokens of each,
            were compared with each sequence alone, bit for bit.
        whole_attention: attention modules run whole for each sequence of a shared pass (targets/shared_pass.py).
        not_shared: why sequences share no pass, or none of more rows; empty: they do, or it was not asked for.
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
    num_sequences: int = 1
    num_rows: int = 0
    whole_attention: bool = False
    not_shared: str = ""

    @property
    def identical(self) -> bool:
        """Whether tokens are those of plain decoding, at temperature 0 or with a seed."""
        return self.promise != "distribution"

    def at(self, depth: int | None) -> Promise:
        """Return the promise for turns with `depth` drafts a round; None: the engine chooses, within `num_tokens`."""
        return promise_at(self.promise, self.num_tokens, depth)

    def max_tokens(self, num_sequences: int) -> int:
        """Return the most tokens of each of so many sequences in one pass for which `promise` holds; 0: none.

        "distribution" holds for any pass that was compared; `num_tokens` bounds it as it does for a sequence alone.
        """
        if num_sequences == 1:
            return self.num_tokens
        if num_sequences > self.num_sequences:
            return 0
        rows = self.num_rows // num_sequences if self.identical else self.num_tokens
        return min(rows, self.num_tokens) if rows >= self.min_tokens else 0

    def max_sequences(self, num_tokens: int) -> int:
        """Return the most sequences, at least 1, of a pass over up to `num_tokens` tokens of each, as `max_tokens`.

        A pass of more tokens than any promise covers is for one sequence alone: it would break the promise of others.
        """
        if not self.identical:
            return self.num_sequences
        return max(n for n in range(1, self.num_sequences + 1) if n == 1 or num_tokens <= self.max_tokens(n))

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
            "sequences": self.num_sequences,
            "shared_rows": self.num_rows,
            "not_shared": self.not_shared,
        }


def promise_at(promise: Promise, num_tokens: int, depth: int | None) -> Promise:
    """Return a promise, which was shown for passes of up to `num_tokens` tokens, as it holds at a depth."""
    return promise if depth is None or depth < num_tokens else "distribution"


def in_words(promise: Promise, *, chosen: bool) -> str:
    """Return a promise in words for a turn; `chosen`: tokens follow from the logits, by argmax or a given seed."""
    return PROMISES[promise] if chosen else "same distribution as plain decoding"
