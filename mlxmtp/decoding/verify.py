"""Verification: which drafts are accepted, and the token after them. Pure, lazy, in float32, without a host sync.

Shapes: B sequences, k >= 1 drafts (`matching` takes 0 too), V tokens in the vocabulary. Row i of the target predicts
what draft i proposed; row k comes after all drafts. `target` and `draft` are log-probabilities after the whole
sampling chain.

Sources: Leviathan et al. 2211.17192 and Chen et al. 2302.01318 (token-level rejection sampling),
Sun et al. 2403.10444, algorithm 2 (block verification).
"""

from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Acceptance:
    """The outcome of a round for each sequence.

    Args:
        accepted: [B], the number of accepted drafts, counted from the first.
        token: [B], the target's own token after them: correction or bonus.
    """

    accepted: mx.array
    token: mx.array


def matching(own: mx.array, drafts: mx.array) -> Acceptance:
    """Accept while the target's own choice is the draft; exact where both see the same noise, or none.

    Args:
        own: [B, k + 1], the target's choice in each row: its argmax at temperature 0, its argmax under shared
            Gumbel noise for seed-identical sampling.
        drafts: [B, k].
    """
    if drafts.shape[1] == 0:
        return Acceptance(mx.zeros(own.shape[:1], mx.int32), own[:, 0])
    accepted = _prefix(own[:, :-1] == drafts)
    return Acceptance(accepted, _row(own, accepted))


def rejection(target: mx.array, drafts: mx.array, draft: mx.array, key: mx.array) -> Acceptance:
    """Token-level rejection sampling: accept x_i iff u_i < p_i(x_i) / q_i(x_i), else draw from norm(max(0, p - q)).

    Args:
        target: [B, k + 1, V]. drafts: [B, k], each drawn from its row of draft: [B, k, V].
        key: never used for anything else, in particular not for drawing the drafts.
    """
    chance, choice = mx.random.split(key)
    p, q, px, qx = _probabilities(target, drafts, draft)
    u = mx.random.uniform(shape=drafts.shape, key=chance)
    accepted = _prefix((u * qx < px) & (qx > 0))
    return Acceptance(accepted, _residual(_row(p, accepted), _row(q, accepted), choice))


def block(target: mx.array, drafts: mx.array, draft: mx.array, key: mx.array) -> Acceptance:
    """Block verification: accept the drafts as one block; in expectation never fewer tokens than `rejection`.

    Arguments as for `rejection`. With P_i = min(1, P_{i-1} p_i(x_i) / q_i(x_i)), a block ends at the last i with
    u_i < h_i, and the token after it is drawn from norm(max(0, P_i p_{i+1} - q_{i+1})).
    """
    chance, choice = mx.random.split(key)
    p, q, px, qx = _probabilities(target, drafts, draft)
    ratio = mx.where(qx > 0, px / qx, 0)
    joint = [mx.ones(drafts.shape[:1])]
    for i in range(drafts.shape[1]):
        joint.append(mx.minimum(joint[-1] * ratio[:, i], 1))
    weight = mx.stack(joint, axis=1)  # P_0 .. P_k

    left = mx.maximum(weight[..., None] * p - q, 0).sum(axis=-1)[:, 1:-1]  # R_1 .. R_{k-1}
    room = left + 1 - weight[:, 1:-1]
    inner = mx.where(room > 0, left / room, 1)
    inner = mx.where(weight[:, 1:-1] > 0, inner, 0)  # a draft of probability 0 ends the block, whatever comes after it
    chance_of_end = mx.concatenate([inner, weight[:, -1:]], axis=1)  # h_1 .. h_k
    u = mx.random.uniform(shape=drafts.shape, key=chance)
    accepted = (mx.arange(1, drafts.shape[1] + 1) * (u < chance_of_end)).max(axis=1)
    return Acceptance(accepted, _residual(_row(p, accepted), _row(q, accepted), choice, _row(weight, accepted)))


def draw(law: mx.array, key: mx.array) -> mx.array:
    """One token [B] from log-probabilities [B, V].

    By Gumbel noise: MLX's `categorical` inverts a float32 cumulative sum for a single row, which over a large
    vocabulary shifts a thousandth of the mass.
    """
    return mx.argmax(law + mx.random.gumbel(law.shape, key=key), axis=-1)


def _probabilities(
    target: mx.array, drafts: mx.array, draft: mx.array
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """p [B, k + 1, V], q padded to the same shape, and both at the drafts [B, k].

    q is zero in row k, where nothing was drafted: there max(0, p - q) is p, the law of the bonus token.
    A head that returned NaN gets q = 0 too: its draft is refused and the token drawn from p, which is exact.
    """
    p = mx.exp(target)
    q = mx.exp(draft)
    q = mx.where(mx.isnan(q), 0, q)
    at = drafts[..., None]
    px = mx.take_along_axis(p[:, :-1], at, axis=-1)[..., 0]
    qx = mx.take_along_axis(q, at, axis=-1)[..., 0]
    return p, mx.concatenate([q, mx.zeros_like(p[:, :1])], axis=1), px, qx


def _residual(p: mx.array, q: mx.array, key: mx.array, weight: mx.array | float = 1.0) -> mx.array:
    """Draw [B] from norm(max(0, weight p - q)); where rounding left no mass, p and q are equal: draw from p."""
    rest = mx.maximum(mx.array(weight).reshape(-1, 1) * p - q, 0)
    rest = mx.where(rest.sum(axis=-1, keepdims=True) > 0, rest, p)
    return draw(mx.log(rest), key)


def _prefix(accept: mx.array) -> mx.array:
    """The length [B] of the leading run of True in [B, k]."""
    return mx.cumprod(accept.astype(mx.int32), axis=1).sum(axis=1)


def _row(rows: mx.array, index: mx.array) -> mx.array:
    """Row index[b] of each sequence: [B, n, ...] and [B] to [B, ...]."""
    at = index.reshape(-1, *[1] * (rows.ndim - 1))
    return mx.take_along_axis(rows, at, axis=1)[:, 0]
