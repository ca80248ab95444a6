"""Sampling: from logits to the distribution that a token is drawn from.

The chain is mlx-lm's (`mlx_lm.sample_utils.make_sampler`): log-probabilities, then top-p, min-p and top-k on them,
then the temperature. Target and draft go through the same functions, so that verification compares like with like.
All shapes end in the vocabulary V; the axes before it are free.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx


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


def log_probs(logits: mx.array) -> mx.array:
    """Normalised log-probabilities in the dtype of `logits`.

    mlx-lm takes its argmax over these and not over the logits: in half precision the two can differ on near-ties.
    """
    return logits - mx.logsumexp(logits, axis=-1, keepdims=True)


def distribution(logits: mx.array, sampling: Sampling) -> mx.array:
    """Log-probabilities [..., V] in float32 of the law that a token is drawn from; -inf where it is filtered out."""
    x = logits.astype(mx.float32)
    if sampling.top_p < 1:
        x = top_p(log_probs(x), sampling.top_p)
    if sampling.min_p > 0:
        x = min_p(x, sampling.min_p)
    if 0 < sampling.top_k < x.shape[-1]:
        x = top_k(x, sampling.top_k)
    return log_probs(x / sampling.temperature)


def top_p(x: mx.array, mass: float) -> mx.array:
    """Keep the most likely tokens until they hold `mass`; the one that crosses it stays."""
    ordered = mx.sort(x, axis=-1)
    probabilities = mx.exp(ordered)
    above = mx.cumsum(probabilities, axis=-1, reverse=True, inclusive=False)
    total = above[..., :1] + probabilities[..., :1]
    dropped = mx.minimum((above >= mass * total).sum(axis=-1, keepdims=True), x.shape[-1] - 1)
    return mx.where(x < mx.take_along_axis(ordered, dropped, axis=-1), -mx.inf, x)


def min_p(x: mx.array, share: float) -> mx.array:
    """Drop tokens less likely than `share` of the most likely one."""
    return mx.where(x < x.max(axis=-1, keepdims=True) + math.log(share), -mx.inf, x)


def top_k(x: mx.array, count: int) -> mx.array:
    """Keep exactly `count` tokens; ties at the edge fall as `argpartition` orders them, as in mlx-lm."""
    rest = mx.argpartition(-x, kth=count - 1, axis=-1)[..., count:]
    return mx.put_along_axis(x, rest, mx.array(-mx.inf, x.dtype), axis=-1)


def fold(key: mx.array, counter: int, purpose: int = 0) -> mx.array:
    """The key of one use. Threefry is counter-based: keys need to be distinct, not random."""
    return key + mx.array(_use(counter, purpose), mx.uint32)


def _use(counter: int, purpose: int = 0) -> list[int]:
    """What is added to the two words of a key for it."""
    return [counter & 0xFFFFFFFF, purpose]


def gumbel(key: mx.array, start: int, rows: int, vocabulary: int) -> mx.array:
    """Gumbel noise [rows, V] of the absolute positions `start`, `start` + 1, ...

    The noise of a position depends on (key, position) alone, so that a draft, its verification and plain decoding
    see the same noise for the same token, whatever the depth.
    """
    keys = key + mx.array([_use(start + row) for row in range(rows)], mx.uint32)
    return mx.vmap(lambda one: mx.random.gumbel((vocabulary,), key=one))(keys)
