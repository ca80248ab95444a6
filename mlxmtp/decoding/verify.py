"""Verification: which drafts are accepted, and the token after them. Pure, lazy, in float32, without a host sync.

Shapes: B sequences, k >= 1 drafts (`matching` takes 0 too), K tokens that the target can emit. Row i of the target
predicts what draft i proposed; row k comes after all drafts. `target` and `draft` are the distributions after the whole
sampling chain. Where p is 0 neither acceptance nor residual needs q: all arithmetic is on the target's K tokens.

Sources: Leviathan et al. 2211.17192 and Chen et al. 2302.01318 (token-level rejection sampling),
Sun et al. 2403.10444, algorithm 2 (block verification).
"""

from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.decoding.sampling import Distribution


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


def rejection(target: Distribution, drafts: mx.array, draft: Distribution, key: mx.array) -> Acceptance:
    """Token-level rejection sampling: accept x_i iff u_i < p_i(x_i) / q_i(x_i), else draw from norm(max(0, p - q)).

    Args:
        target: of rows [B, k + 1]. drafts: [B, k], each drawn from its row of `draft`.
        key: never used for anything else, in particular not for drawing the drafts.
    """
    chance, choice = mx.random.split(key)
    p, q, px, qx = _probabilities(target, drafts, draft)
    u = mx.random.uniform(shape=drafts.shape, key=chance)
    accepted = _prefix((u * qx < px) & (qx > 0))
    return Acceptance(accepted, _after(accepted, mx.maximum(p - q, 0), target, choice))


def block(target: Distribution, drafts: mx.array, draft: Distribution, key: mx.array) -> Acceptance:
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

    residual = mx.maximum(weight[..., None] * p - q, 0)
    left = residual[:, 1:-1].sum(axis=-1)  # R_1 .. R_{k-1}
    room = left + 1 - weight[:, 1:-1]
    inner = mx.where(room > 0, left / room, 1)
    inner = mx.where(weight[:, 1:-1] > 0, inner, 0)  # a draft of probability 0 ends the block, whatever comes after it
    chance_of_end = mx.concatenate([inner, weight[:, -1:]], axis=1)  # h_1 .. h_k
    u = mx.random.uniform(shape=drafts.shape, key=chance)
    accepted = (mx.arange(1, drafts.shape[1] + 1) * (u < chance_of_end)).max(axis=1)
    return Acceptance(accepted, _after(accepted, residual, target, choice))


def draw(law: Distribution, key: mx.array) -> mx.array:
    """One token [B] from a distribution of rows [B].

    By Gumbel noise: MLX's `categorical` inverts a float32 cumulative sum for a single row, which over a large
    vocabulary shifts a thousandth of the mass.
    """
    return law.best(law.logs + mx.random.gumbel(law.logs.shape, key=key))


def _probabilities(
    target: Distribution, drafts: mx.array, draft: Distribution
) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    """p and q at the target's tokens [B, k + 1, K], and both at the drafts [B, k].

    q is zero in row k, where nothing was drafted: there max(0, p - q) is p, the law of the bonus token.
    A head that returned NaN gets q = 0 too: its draft is refused and the token drawn from p, which is exact.
    """
    p, before = mx.exp(target.logs), target.map(lambda rows: rows[:, :-1])
    draft = Distribution(mx.where(mx.isnan(draft.logs), -mx.inf, draft.logs), draft.tokens)
    q = mx.exp(draft.at_tokens_of(before))
    px, qx = (mx.exp(law.of(drafts[..., None]))[..., 0] for law in (before, draft))
    return p, mx.concatenate([q, mx.zeros_like(p[:, :1])], axis=1), px, qx


def _after(accepted: mx.array, residual: mx.array, target: Distribution, key: mx.array) -> mx.array:
    """The token [B] after the accepted drafts, drawn from its row of the residual [B, k + 1, K], of any sum.

    Where rounding left no mass, p and q are equal: it is drawn from the target's own distribution.
    """
    own = target.map(lambda rows: _row(rows, accepted))
    logs = mx.log(_row(residual, accepted))
    some = logs.max(axis=-1, keepdims=True) > -mx.inf
    return draw(Distribution(mx.where(some, logs, own.logs), own.tokens), key)


def _prefix(accept: mx.array) -> mx.array:
    """The length [B] of the leading run of True in [B, k]."""
    return mx.cumprod(accept.astype(mx.int32), axis=1).sum(axis=1)


def _row(rows: mx.array, index: mx.array) -> mx.array:
    """Row index[b] of each sequence: [B, n, ...] and [B] to [B, ...]."""
    at = index.reshape(-1, *[1] * (rows.ndim - 1))
    return mx.take_along_axis(rows, at, axis=1)[:, 0]
