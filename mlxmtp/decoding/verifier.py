"""The verifier of a turn: how drafts are drawn and verified so that tokens keep the target's own distribution."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx

from mlxmtp.decoding.sampling import Sampling, distribution, fold, gumbel, log_probs
from mlxmtp.decoding.verify import Verdict, block, draw, matching, rejection

VerifyMode = Literal["token", "block", "seeded"]

# Purposes of keys; the noise that all depths share (`sampling.gumbel`) has purpose 0.
_VERDICT, _DRAFTS = 1, 2


@dataclass(frozen=True)
class Draft:
    """Proposed tokens [B, k] and, where verification needs them, what they were drawn from: k times [B, V]."""

    tokens: mx.array
    distributions: list[mx.array]

    @property
    def depth(self) -> int:
        """How many tokens are proposed."""
        return self.tokens.shape[1]


NOTHING = Draft(mx.zeros((1, 0), mx.uint32), [])


class Verifier:
    """Draws and verifies; every random number comes from a key of (seed, position, purpose), each used once.

    The position of a round is that of the first token it can emit. Rounds of one sequence never share it.

    Args:
        sampling: the chain that target and draft go through alike.
        mode: "token" or "block" rejection sampling, or "seeded": the same seed gives the same tokens at any depth.
            None takes "seeded" where a seed is given. At temperature 0 all are the same.
    """

    def __init__(self, sampling: Sampling, mode: VerifyMode | None = None) -> None:
        if mode is not None and mode not in get_args(VerifyMode):
            raise ValueError(f"verify is {mode!r}; expected one of {', '.join(get_args(VerifyMode))}")
        self.sampling = sampling
        self.mode: VerifyMode = mode or ("token" if sampling.seed is None else "seeded")
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.split(mx.random.key(seed))[0]

    def draw(self, logits: mx.array, position: int, step: int) -> tuple[mx.array, mx.array | None]:
        """Draft `step` of a round from the head's logits [B, V].

        Returns the tokens [B] and, where verification needs it, the log-probabilities [B, V] they were drawn from.
        """
        if self.sampling.greedy:
            return mx.argmax(logits, axis=-1), None
        q = distribution(logits, self.sampling)
        if self.mode == "seeded":
            return mx.argmax(q + gumbel(self._key, position + step, 1, q.shape[-1]), axis=-1), None
        return draw(q, fold(self._key, position, _DRAFTS + step)), q

    def verify(self, logits: mx.array, draft: Draft, position: int) -> tuple[Verdict, mx.array]:
        """The verdict on a draft from the target's logits [B, k + 1, V], and whether they were sound [B].

        Sound: every token that the verdict lets through has a finite log-probability, which a row with NaN or
        infinite logits never gives.
        """
        p = log_probs(logits) if self.sampling.greedy else distribution(logits, self.sampling)
        if self.sampling.greedy or self.mode == "seeded":
            scores = p if self.sampling.greedy else p + gumbel(self._key, position, p.shape[1], p.shape[-1])
            verdict = matching(mx.argmax(scores, axis=-1), draft.tokens)
        elif draft.depth == 0:
            token = draw(p[:, 0], self._verdict_key(position))
            verdict = Verdict(mx.zeros(token.shape, mx.int32), token)
        else:
            accept = block if self.mode == "block" else rejection
            verdict = accept(p, draft.tokens, mx.stack(draft.distributions, axis=1), self._verdict_key(position))
        return verdict, _sound(p, draft, verdict)

    def _verdict_key(self, position: int) -> mx.array:
        return fold(self._key, position, _VERDICT)


def _sound(p: mx.array, draft: Draft, verdict: Verdict) -> mx.array:
    """Whether the emitted tokens' log-probabilities in p [B, k + 1, V] are finite."""
    if draft.depth == 0:
        return mx.isfinite(mx.take_along_axis(p[:, 0], verdict.token[:, None], axis=-1))[:, 0]
    rows = mx.arange(p.shape[1])[None]
    tokens = mx.concatenate([draft.tokens, verdict.token[:, None]], axis=1)
    tokens = mx.where(rows < verdict.accepted[:, None], tokens, verdict.token[:, None])
    finite = mx.isfinite(mx.take_along_axis(p, tokens[..., None], axis=-1)[..., 0])
    return mx.all(finite | (rows > verdict.accepted[:, None]), axis=1)
