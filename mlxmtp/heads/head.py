"""What the engine asks of a head, whatever its family."""

from typing import Protocol

import mlx.core as mx

from mlxmtp.targets import Cache


class Head(Protocol):
    """A draft model on top of a target's hidden states; its cache holds one row for each pair it was fed.

    Row p pairs the target's hidden state of token p with token p + 1 and predicts token p + 2 (families.md 0.1).
    """

    family: str

    def make_cache(self) -> Cache:
        """An empty cache for one sequence."""

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        """Feed rows: hidden [B, T, H] with the tokens [B, T] that follow them; returns hidden states [B, T, H].

        True rows take the target's hidden states; a row one draft further takes the output of the row before it.
        """

    def logits(self, hidden: mx.array) -> mx.array:
        """Logits [B, T, V] of hidden states that a call returned."""
