"""What the target itself thought of a round's tokens: log-probabilities before penalties, masks and temperature."""

import mlx.core as mx

from mlxmtp.decoding.sampling import log_probs
from mlxmtp.decoding.stats import TokenLogprob


class Report:
    """The log-probabilities of one round, lazy: `arrays` want to be evaluated with the round.

    Args:
        logits: [1, m, V], the target's own. tokens: [1, m], emitted in these rows.
        top: how many of the likeliest tokens.
    """

    def __init__(self, logits: mx.array, tokens: mx.array, top: int) -> None:
        law = log_probs(logits[0].astype(mx.float32))
        order = mx.argsort(-law, axis=-1) if top else mx.zeros(law.shape, mx.uint32)
        likeliest = order[:, :top]  # the sort is stable: of equals, the lower id
        self.arrays = [
            mx.take_along_axis(law, tokens[0][:, None], axis=-1)[:, 0],
            likeliest,
            mx.take_along_axis(law, likeliest, axis=-1),
        ]

    def read(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        """The records of the round's first tokens."""
        columns = zip(*(array.tolist() for array in self.arrays), strict=True)
        return tuple(
            TokenLogprob(token, own, tuple(zip(ids, values, strict=True)))
            for token, (own, ids, values) in zip(tokens, columns, strict=False)
        )
