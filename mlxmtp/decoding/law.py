"""The law of a turn: how drafts are drawn and judged so that the tokens keep the target's own distribution."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx

from mlxmtp.decoding import sampling as laws
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.verify import Verdict, block, matching, rejection

Verify = Literal["token", "block", "seeded"]

# Purposes of a round's keys; a position's shared noise (`sampling.gumbel`) has purpose 0.
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


@dataclass(frozen=True)
class Moment:
    """Where a round stands: its number in the turn, and the absolute position of the first token it can emit."""

    round: int
    position: int


class Law:
    """Draws and judges for one turn; every random number comes from a key of (seed, round or position, purpose).

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

    def draw(self, logits: mx.array, moment: Moment, step: int) -> tuple[mx.array, mx.array | None]:
        """Draft `step` of a round from the head's logits [B, V]: tokens [B], and their law [B, V] where it counts."""
        if self.sampling.greedy:
            return mx.argmax(laws.log_probs(logits), axis=-1), None
        law = laws.distribution(logits, self.sampling)
        if self.verify == "seeded":
            return mx.argmax(law + self._noise(moment.position + step, 1, law), axis=-1), None
        return mx.random.categorical(law, key=self._once(moment, _DRAFTS + step)), law

    def judge(self, logits: mx.array, draft: Draft, moment: Moment) -> tuple[Verdict, mx.array]:
        """The verdict on a draft from the target's logits [B, k + 1, V], and whether they were sound [B].

        Sound: every token that the verdict lets through has a finite log-probability, which a row with NaN or
        infinite logits never gives.
        """
        own = laws.log_probs(logits) if self.sampling.greedy else laws.distribution(logits, self.sampling)
        if self.sampling.greedy:
            verdict = matching(mx.argmax(own, axis=-1), draft.tokens)
        elif self.verify == "seeded":
            verdict = matching(mx.argmax(own + self._noise(moment.position, own.shape[1], own), axis=-1), draft.tokens)
        elif draft.depth == 0:
            token = mx.random.categorical(own[:, 0], key=self._once(moment, _VERDICT))
            verdict = Verdict(mx.zeros(token.shape, mx.int32), token)
        else:
            accept = block if self.verify == "block" else rejection
            verdict = accept(own, draft.tokens, mx.stack(draft.laws, axis=1), self._once(moment, _VERDICT))
        return verdict, _sound(own, draft, verdict)

    def _noise(self, position: int, rows: int, like: mx.array) -> mx.array:
        return laws.gumbel(self._key, position, rows, like.shape[-1])

    def _once(self, moment: Moment, purpose: int) -> mx.array:
        """The key of one purpose in one round."""
        return laws.fold(self._key, moment.round, purpose)


def _sound(own: mx.array, draft: Draft, verdict: Verdict) -> mx.array:
    """Whether the emitted tokens' log-probabilities in `own` [B, k + 1, V] are finite."""
    rows = mx.arange(own.shape[1])[None]
    tokens = mx.concatenate([draft.tokens, verdict.token[:, None]], axis=1)
    tokens = mx.where(rows < verdict.accepted[:, None], tokens, verdict.token[:, None])
    finite = mx.isfinite(mx.take_along_axis(own, tokens[..., None], axis=-1)[..., 0])
    return mx.all(finite | (rows > verdict.accepted[:, None]), axis=1)
