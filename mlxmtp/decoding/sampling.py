"""Sampling: from logits to the distribution that a token is drawn from.

The chain is mlx-lm's (`mlx_lm.sample_utils.make_sampler`): log-probabilities, then top-p, min-p and top-k on them,
then the temperature. Target and draft go through the same functions, so that verification compares like with like.
Shapes end in the vocabulary V, or in the K tokens that top-k keeps; the axes before are free.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import mlx.core as mx

_LEAST_MASS = 1e-9
"""A top-p that keeps only the most likely token in any vocabulary. A smaller one is 0 in float32 and keeps none."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Temperature 0 is greedy, whatever the filters say; penalties and biases act there too.

    These come before the chain, on the raw logits and in this order: bias, repetition, frequency and presence.

    Args:
        temperature: 0, which takes the most likely token, or at least 1e-6.
        top_p: in (0, 1]; keep the smallest set of tokens with at least this mass. 1 keeps all.
        top_k: >= 0; keep this many tokens. 0 keeps all.
        min_p: in [0, 1]; drop tokens less likely than this share of the most likely one.
        seed: makes the tokens reproducible; None draws a fresh one for each turn.
        frequency_penalty: taken from a token's logit for each time that this turn has generated it. 0 is off.
        presence_penalty: taken once from the logits of tokens that this turn has generated. 0 is off.
        repetition_penalty: > 0; logits of tokens in the prompt or generated are divided by it where positive, and
            multiplied where negative. 1 is off.
        logit_bias: added to the logits of these tokens; kept as sorted pairs.

    The values are not checked here: `mlxmtp.engine.request.GenerationOptions` checks what users give.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "logit_bias", tuple(sorted(dict(self.logit_bias).items())))

    @property
    def greedy(self) -> bool:
        return self.temperature == 0


@dataclass(frozen=True)
class Distribution:
    """What a token is drawn from: log-probabilities [..., K] in float32 of K tokens; no other token can come.

    Args:
        logs: -inf where a filter has dropped the token.
        tokens: [..., K], the ids of the tokens. None: K is V, and column i belongs to token i.
    """

    logs: mx.array
    tokens: mx.array | None = None

    def of(self, tokens: mx.array) -> mx.array:
        """Log-probabilities [..., n] of tokens [..., n]."""
        if self.tokens is None:
            return mx.take_along_axis(self.logs, tokens, axis=-1)
        same = self.tokens[..., None, :] == tokens[..., None]
        return mx.where(same, self.logs[..., None, :], -mx.inf).max(axis=-1)

    def at_tokens_of(self, other: Distribution) -> mx.array:
        """Log-probabilities [..., K] of the K tokens of `other`."""
        if other.tokens is not None:
            return self.of(other.tokens)
        return self.logs if self.tokens is None else self.of(mx.arange(other.logs.shape[-1], dtype=mx.uint32))

    def best(self, scores: mx.array) -> mx.array:
        """The token [...] with the highest score of scores [..., K]."""
        column = mx.argmax(scores, axis=-1, keepdims=True)
        return (column if self.tokens is None else mx.take_along_axis(self.tokens, column, axis=-1))[..., 0]

    def map(self, function: Callable[[mx.array], mx.array]) -> Distribution:
        """The distribution of other rows, which `function` takes from both arrays."""
        return Distribution(function(self.logs), None if self.tokens is None else function(self.tokens))


def log_probs(logits: mx.array) -> mx.array:
    """Normalised log-probabilities in the dtype of `logits`.

    mlx-lm takes its argmax over these and not over the logits: in half precision the two can differ on near-ties.
    """
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def distribution(logits: mx.array, sampling: Sampling) -> Distribution:
    """The distribution that a token is drawn from, by logits [..., V].

    Each filter keeps the most likely tokens, however many. Top-k is therefore applied first: the others then see k
    values in descending order. Top-p still counts mass in the whole vocabulary.
    """
    x, vocabulary = logits.astype(mx.float32), logits.shape[-1]
    few = 0 < sampling.top_k < vocabulary
    total = mx.logsumexp(x, axis=-1, keepdims=True) if few or sampling.top_p < 1 else None
    tokens = None
    if few:
        x, tokens = most_likely(x, sampling.top_k)
    if total is not None:
        x = x - total  # a row with NaN becomes NaN, whichever tokens were taken
    if sampling.top_p < 1:
        mass = max(sampling.top_p, _LEAST_MASS)
        edge = last_within(x, mass) if few else least_likely_within(x, mass)
        x = mx.where(x < edge, -mx.inf, x)
    if sampling.min_p > 0:
        x = mx.where(x < x.max(axis=-1, keepdims=True) + math.log(sampling.min_p), -mx.inf, x)
    x = log_probs(x / sampling.temperature)
    if tokens is None or sampling.top_k**2 <= vocabulary:
        return Distribution(x, tokens)
    # so many tokens cost more to compare in pairs than the vocabulary costs
    return Distribution(mx.put_along_axis(mx.full(logits.shape, -mx.inf), tokens, x, axis=-1))


def most_likely(x: mx.array, count: int) -> tuple[mx.array, mx.array]:
    """The `count` largest of x [..., V] in descending order, and their columns; of equals, the lower columns first.

    They lie in the `count` blocks with the largest maxima: each of these has a value that is no smaller than those
    of any other block. Only these blocks are sorted.
    """
    vocabulary = x.shape[-1]
    width = 2 ** int(math.log2(vocabulary / count) / 2)  # about as many maxima as values to sort
    padding = [(0, 0)] * (x.ndim - 1) + [(0, -vocabulary % width)]
    blocks = mx.pad(x, padding, constant_values=-mx.inf) if vocabulary % width else x
    blocks = mx.unflatten(blocks, -1, (-1, width))
    chosen = mx.argpartition(-blocks.max(axis=-1), kth=count - 1, axis=-1)[..., :count]
    chosen = mx.sort(chosen, axis=-1)[..., None]  # the sort of their values is stable: keep the order of the columns
    values = mx.flatten(mx.take_along_axis(blocks, chosen, axis=-2), -2)
    columns = mx.flatten(chosen * width + mx.arange(width, dtype=chosen.dtype), -2)
    order = mx.argsort(-values, axis=-1)[..., :count]
    return mx.take_along_axis(values, order, axis=-1), mx.take_along_axis(columns, order, axis=-1)


def last_within(x: mx.array, mass: float) -> mx.array:
    """The last of descending log-probabilities [..., K] before which there is less than `mass`: [..., 1]."""
    above = mx.cumsum(mx.exp(x), axis=-1, inclusive=False)
    return mx.where(above < mass, x, mx.inf).min(axis=-1, keepdims=True)


def least_likely_within(x: mx.array, share: float) -> mx.array:
    """The last of log-probabilities [..., V], in any order, that tokens with less than this share are before: [..., 1].

    Bit by bit: the bits of floats that are not negative are integers in the same order.
    """
    p, bits = mx.exp(x), (-x).view(mx.int32)
    mass = share * p.sum(axis=-1, keepdims=True)  # rounding leaves a sum that is not quite 1
    edge = mx.zeros(mass.shape, mx.int32)
    for bit in reversed(range(31)):
        higher = edge + (1 << bit)
        before = mx.where(bits < higher, p, 0).sum(axis=-1, keepdims=True)
        edge = mx.where(before < mass, higher, edge)
    return -edge.view(mx.float32)


def fold(key: mx.array, counter: int, purpose: int = 0) -> mx.array:
    """The key of one use. Threefry is counter-based: keys need to be distinct, not random."""
    return key + mx.array(_use(counter, purpose), mx.uint32)


def _use(counter: int, purpose: int = 0) -> list[int]:
    """What is added to the two words of a key for it."""
    return [counter & 0xFFFFFFFF, purpose]


def gumbel(key: mx.array, start: int, rows: int, vocabulary: int, tokens: mx.array | None = None) -> mx.array:
    """Gumbel noise [rows, V] of the absolute positions `start`, `start` + 1, ...; of tokens [..., rows, K], theirs.

    The noise of a token depends on (key, position, token) alone, so that a draft, its verification and plain decoding
    see the same noise for the same token, whatever the depth and the filters.
    """
    keys = key + mx.array([_use(start + row) for row in range(rows)], mx.uint32)
    uniform = mx.vmap(lambda one: mx.random.uniform(shape=(vocabulary,), key=one))(keys)
    if tokens is not None:
        uniform = mx.take_along_axis(uniform.reshape(*[1] * (tokens.ndim - 2), rows, vocabulary), tokens, axis=-1)
    return -mx.log(-mx.log(uniform))
