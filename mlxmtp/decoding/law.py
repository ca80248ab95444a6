"""The law of a turn: how drafts are drawn and judged so that the tokens keep the target's own distribution."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx

from mlxmtp.decoding import sampling as laws
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.verify import Verdict, block, draw, matching, rejection

Verify = Literal["token", "block", "seeded"]

# Purposes of keys; the noise that all depths share (`sampling.gumbel`) has purpose 0.
_VERDICT, _DRAFTS = 1, 2


@dataclass(frozen=True)
class Draft:
    """Proposed tokens [B, k] and, where verification needs them, their laws: k log-probabilities [B, V]."""

    tokens: mx.array
    laws: list[mx.array]

    @property
    def depth(self) -> int:
        """How many tokens are proposed."""
        return self.tokens.shape[1]


NOTHING = Draft(mx.zeros((1, 0), mx.uint32), [])


class Law:
    """Draws and judges; every random number comes from a key of (seed, position, purpose), each used once.

    The position of a round is that of the first token it can emit. Rounds of one sequence never share it.

    Args:
        sampling: the chain that target and draft go through alike.
        verify: "token" or "block" rejection sampling, or "seeded": the same seed gives the same tokens at any
            depth. None takes "seeded" where a seed is given. At temperature 0 all are the same.
    """

    def __init__(self, sampling: Sampling, verify: Verify | None = None) -> None:
        if verify is not None and verify not in get_args(Verify):
            raise ValueError(f"verify is {verify!r}; expected one of {', '.join(get_args(Verify))}")
        self.sampling = sampling
        self.verify: Verify = verify or ("token" if sampling.seed is None else "seeded")
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.split(mx.random.key(seed))[0]

    def draw(self, logits: mx.array, position: int, step: int) -> tuple[mx.array, mx.array | None]:
        """Draft `step` of a round from the head's logits [B, V]: tokens [B], and their law [B, V] where it counts."""
        if self.sampling.greedy:
            return mx.argmax(logits, axis=-1), None
        law = laws.distribution(logits, self.sampling)
        if self.verify == "seeded":
            return mx.argmax(law + self._noise(position + step, 1, law), axis=-1), None
        return draw(law, laws.fold(self._key, position, _DRAFTS + step)), law

    def judge(self, logits: mx.array, draft: Draft, position: int) -> tuple[Verdict, mx.array]:
        """The verdict on a draft from the target's logits [B, k + 1, V], and whether they were sound [B].

        Sound: every token that the verdict lets through has a finite log-probability, which a row with NaN or
        infinite logits never gives.
        """
        own = laws.log_probs(logits) if self.sampling.greedy else laws.distribution(logits, self.sampling)
        if self.sampling.greedy:
            verdict = matching(mx.argmax(own, axis=-1), draft.tokens)
        elif self.verify == "seeded":
            verdict = matching(mx.argmax(own + self._noise(position, own.shape[1], own), axis=-1), draft.tokens)
        elif draft.depth == 0:
            token = draw(own[:, 0], laws.fold(self._key, position, _VERDICT))
            verdict = Verdict(mx.zeros(token.shape, mx.int32), token)
        else:
            accept = block if self.verify == "block" else rejection
            verdict = accept(own, draft.tokens, mx.stack(draft.laws, axis=1), laws.fold(self._key, position, _VERDICT))
        return verdict, _sound(own, draft, verdict)

    def _noise(self, position: int, rows: int, like: mx.array) -> mx.array:
        return laws.gumbel(self._key, position, rows, like.shape[-1])


def _sound(own: mx.array, draft: Draft, verdict: Verdict) -> mx.array:
    """Whether the emitted tokens' log-probabilities in `own` [B, k + 1, V] are finite."""
    rows = mx.arange(own.shape[1])[None]
    tokens = mx.concatenate([draft.tokens, verdict.token[:, None]], axis=1)
    tokens = mx.where(rows < verdict.accepted[:, None], tokens, verdict.token[:, None])
    finite = mx.isfinite(mx.take_along_axis(own, tokens[..., None], axis=-1)[..., 0])
    return mx.all(finite | (rows > verdict.accepted[:, None]), axis=1)
