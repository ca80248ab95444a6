"""A pass of the target as a transaction on one sequence's caches."""

from typing import Any

import mlx.core as mx

from mlxmtp.targets.patches.gated_delta import RecurrentRows
from mlxmtp.targets.patches.window import WindowCache


class Pass:
    """One pass of the target over m tokens: a transaction on the caches.

    `commit` must be called once, before the next pass over the same caches.

    Args:
        logits: [B, m, V].
        hidden: [B, m, H], at the target's `hidden_at`.
        cache: the caches that the pass wrote.
        recurrent: what rolls back each recurrent layer, by layer.
        padded: tokens that were run, at least m.
    """

    def __init__(
        self, logits: mx.array, hidden: mx.array, cache: list[Any], recurrent: dict[int, RecurrentRows], padded: int
    ) -> None:
        self.logits = logits
        self.hidden = hidden
        self._cache = cache
        self._recurrent = recurrent
        self._padded = padded

    def commit(self, num_tokens: int) -> None:
        """Roll every layer's cache back to the first `num_tokens` tokens of the pass."""
        padded = self._padded
        for i, layer in enumerate(self._cache):
            if i in self._recurrent:
                self._recurrent[i].commit(layer, num_tokens, of=padded)
            elif isinstance(layer, WindowCache):
                layer.commit(num_tokens, of=padded)
            elif num_tokens < padded:
                layer.trim(padded - num_tokens)
