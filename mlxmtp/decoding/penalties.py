"""Penalties and biases: what a token's logit loses or gains by the tokens before it. Pure, lazy, no host sync.

Row i of a pass is processed with the prefix that it would have in plain decoding: the tokens that stand, then the
drafts before it. So drafts and verification see the same laws as decoding row by row, and speculation stays exact.

Sources: OpenAI's API reference for frequency and presence; Keskar et al. 1909.05858 (CTRL) for repetition, with the
sign rule and the order (bias, repetition, presence and frequency) of mlx-lm's `sample_utils.make_logits_processors`.
"""

from collections.abc import Sequence

import mlx.core as mx

from mlxmtp.decoding.sampling import Sampling


class Penalties:
    """Processes the logits of one turn. The state is on the device: how often each token stands.

    Args:
        prompt: what the model read; repetition looks at it, frequency and presence do not.
        vocabulary: V. Every token of the prompt and of the bias is below it.
    """

    def __init__(self, sampling: Sampling, prompt: Sequence[int], vocabulary: int) -> None:
        self._sampling = s = sampling
        self._counts_matter = s.repetition_penalty != 1 or s.frequency_penalty != 0 or s.presence_penalty != 0
        self._generated = mx.zeros(vocabulary, mx.int32)
        self._prompt = self._generated.at[mx.array(list(prompt), mx.uint32)].add(1)
        self._bias = mx.zeros(vocabulary)
        if bias := dict(s.logit_bias):
            self._bias = self._bias.at[mx.array(list(bias))].add(mx.array(list(bias.values())))

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens stand now."""
        if self._counts_matter:
            self._generated = self._generated.at[mx.array(list(tokens))].add(1)

    def apply(self, logits: mx.array, since: mx.array) -> mx.array:
        """Logits [B, m, V], processed in their own dtype, as mlx-lm does.

        Args:
            since: [B, n], n >= m - 1, tokens behind those that stand: the last row comes after all of them, the row
                before it after one less.
        """
        s = self._sampling
        if s.logit_bias:
            logits = logits + self._bias.astype(logits.dtype)
        if not self._counts_matter:
            return logits
        counts = self._generated + _seen_by(since, logits.shape[1], logits.shape[2])
        if s.repetition_penalty != 1:
            r = s.repetition_penalty
            logits = mx.where(counts + self._prompt > 0, mx.where(logits < 0, logits * r, logits / r), logits)
        if s.frequency_penalty or s.presence_penalty:
            loss = counts * s.frequency_penalty + (counts > 0) * s.presence_penalty
            logits = logits - loss.astype(logits.dtype)
        return logits


def _seen_by(since: mx.array, rows: int, vocabulary: int) -> mx.array:
    """How often each of the last `rows` rows has each token before it: [B, rows, V]."""
    one_hot = (since[..., None] == mx.arange(vocabulary, dtype=since.dtype)).astype(mx.int32)
    none = mx.zeros((since.shape[0], 1, vocabulary), mx.int32)
    return mx.cumsum(mx.concatenate([none, one_hot], axis=1), axis=1)[:, -rows:]
