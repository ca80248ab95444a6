"""A sliding window in the order of time, whose newest rows can be taken back whichever passes appended them."""

from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import RotatingKVCache

from mlxmtp.limits import MAX_DEPTH


class RecentKVCache(RotatingKVCache):
    """Keys and values of the newest tokens, for heads whose attention sees a window.

    mlx-lm's ring overwrites its oldest row with each new one. Here rows are appended, and so many more than the window
    are kept that it is whole again when the rows of a round's drafts are trimmed.

    Args:
        window: tokens that a row sees, itself included.
    """

    def __init__(self, window: int) -> None:
        super().__init__(max_size=window)  # type: ignore[no-untyped-call]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append rows; return those that the first of them sees, and all after."""
        self.keys, self.values = self._appended(self.keys, keys), self._appended(self.values, values)
        self.offset += keys.shape[2]
        self._idx = self.keys.shape[2]
        seen = self.max_size - 1 + keys.shape[2]
        return self.keys[:, :, -seen:], self.values[:, :, -seen:]

    def trim(self, n: int) -> int:
        """Drop the newest `n` rows: at most those of the last pass and MAX_DEPTH."""
        n = min(n, self.offset)
        kept = self._idx - n
        if n:
            held: Any = (self.keys, self.values)
            self.keys, self.values = (rows[:, :, :kept] if kept else None for rows in held)
            self.offset -= n
            self._idx = kept
        return n

    def _appended(self, rows: mx.array | None, new: mx.array) -> mx.array:
        if rows is None:
            return new
        return mx.concatenate([rows[:, :, -(self.max_size - 1 + MAX_DEPTH) :], new], axis=2)
