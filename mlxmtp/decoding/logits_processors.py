"""Logits processors: what changes a token's logit by the tokens before it. Each row sees its own prefix.

Row i of a pass is processed with the prefix that it would have in plain decoding: the accepted tokens, then the drafts
before it. Drafts and verification therefore see the distributions of plain decoding, and speculation stays exact.

Sources: OpenAI's API reference for frequency and presence penalties; Keskar et al. 1909.05858 (CTRL) for repetition,
with the sign rule and the order (bias, repetition, presence and frequency) of mlx-lm's
`sample_utils.make_logits_processors`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Protocol

import mlx.core as mx

from mlxmtp.decoding.sampling import Sampling


class LogitsProcessor(Protocol):
    """Processes the logits of one turn.

    Attributes:
        reads_tokens: `process` waits until the host has read its tokens. No pass is then queued before its input has
            been read, and only the first draft of a round is processed.
    """

    reads_tokens: bool

    def begin(self, prompt: Sequence[int]) -> None:
        """A turn begins after these tokens."""

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:
        """Processed logits [B, m, V].

        Args:
            tokens: [B, n], n >= m - 1, the tokens after those that `advance` has accepted. The last row comes after
                all of them, each row before it after one fewer.
        """

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens are accepted."""


def logits_processors(sampling: Sampling) -> list[LogitsProcessor]:
    """The processors that a turn's sampling asks for, in their order."""
    penalties = sampling.repetition_penalty != 1 or sampling.frequency_penalty or sampling.presence_penalty
    bias: list[LogitsProcessor] = [LogitBias(sampling)] if sampling.logit_bias else []
    return [*bias, Penalties(sampling)] if penalties else bias


class LogitBias:
    """Adds a number to the logits of some tokens."""

    reads_tokens = False

    def __init__(self, sampling: Sampling) -> None:
        self._pairs = dict(sampling.logit_bias)
        self._bias: mx.array | None = None

    def begin(self, prompt: Sequence[int]) -> None:
        pass

    def advance(self, tokens: Sequence[int]) -> None:
        pass

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:  # noqa: ARG002
        if self._bias is None:  # the first logits tell the size of the vocabulary
            at, value = mx.array(list(self._pairs)), mx.array(list(self._pairs.values()))
            self._bias = mx.zeros(logits.shape[-1]).at[at].add(value)
        return logits + self._bias.astype(logits.dtype)


class Penalties:
    """Repetition, frequency and presence penalties. The counts of each token stay on the device.

    Repetition counts the prompt and the generated tokens; frequency and presence count the generated ones.
    """

    reads_tokens = False

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._prompt: list[int] = []
        self._in_prompt: mx.array | None = None
        self._generated = mx.zeros(0, mx.int32)

    def begin(self, prompt: Sequence[int]) -> None:
        self._prompt, self._in_prompt = list(prompt), None

    def advance(self, tokens: Sequence[int]) -> None:
        self._generated = self._generated.at[mx.array(list(tokens))].add(1)

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:
        """Processed in the logits' own dtype, as in mlx-lm."""
        s = self._sampling
        if self._in_prompt is None:  # the first logits tell the size of the vocabulary
            self._generated = mx.zeros(logits.shape[-1], mx.int32)
            self._in_prompt = self._generated.at[mx.array(self._prompt, mx.uint32)].add(1)
        counts = self._generated + _counts_before_rows(tokens, logits.shape[1], logits.shape[2])
        if s.repetition_penalty != 1:
            r = s.repetition_penalty
            penalised = mx.where(logits < 0, logits * r, logits / r)
            logits = mx.where(counts + self._in_prompt > 0, penalised, logits)
        if s.frequency_penalty or s.presence_penalty:
            loss = counts * s.frequency_penalty + (counts > 0) * s.presence_penalty
            logits = logits - loss.astype(logits.dtype)
        return logits


class TokenMask(ABC):
    """A logits processor that allows and forbids tokens, as a grammar does. The host decides, token by token."""

    reads_tokens = True

    def begin(self, prompt: Sequence[int]) -> None:  # noqa: B027 - most masks start anew with every turn
        pass

    @abstractmethod
    def masks(self, drafts: Sequence[int]) -> mx.array:
        """True [k + 1, W] where a token is allowed: after the accepted tokens, then after each of the k drafts.

        W is the mask's own vocabulary; tokens beyond it are forbidden. Rows after a forbidden draft are never reached
        and allow some token. The state is unchanged afterwards.
        """

    @abstractmethod
    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens are accepted."""

    def process(self, logits: mx.array, tokens: mx.array) -> mx.array:
        """Logits [1, m, V], -inf where a token is forbidden."""
        mx.async_eval(tokens)
        mx.async_eval(logits)  # the device works on the pass while the host reads the drafts
        drafts: list[int] = tokens[0].tolist() if tokens.size else []  # type: ignore[assignment]
        masks = self.masks(drafts)
        beyond = logits.shape[-1] - masks.shape[-1]
        allowed = mx.pad(masks, [(0, 0), (0, beyond)]) if beyond > 0 else masks[:, : logits.shape[-1]]
        return mx.where(allowed, logits, mx.array(-mx.inf, logits.dtype))


def _counts_before_rows(tokens: mx.array, num_rows: int, vocabulary: int) -> mx.array:
    """How often each token occurs before each of the last rows: [B, num_rows, V]."""
    one_hot = (tokens[..., None] == mx.arange(vocabulary, dtype=tokens.dtype)).astype(mx.int32)
    none = mx.zeros((tokens.shape[0], 1, vocabulary), mx.int32)
    return mx.cumsum(mx.concatenate([none, one_hot], axis=1), axis=1)[:, -num_rows:]
