"""The verifier of a turn: how drafts are drawn and verified so that tokens keep the target's own distribution."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import mlx.core as mx

from mlxmtp.decoding.constraint import Constraint, forbid
from mlxmtp.decoding.penalties import Penalties
from mlxmtp.decoding.sampling import Sampling, distribution, fold, gumbel, log_probs
from mlxmtp.decoding.verify import Acceptance, block, draw, matching, rejection

VerifyMode = Literal["token", "block", "seeded"]

# Purposes of keys; the noise that all depths share (`sampling.gumbel`) has purpose 0.
_VERDICT, _DRAFTS = 1, 2


@dataclass(frozen=True)
class Draft:
    """Proposed tokens [B, k].

    Args:
        distributions: k times [B, V], what they were drawn from; none where they were certain, or nobody asks.
        looked_up: they come from the text, not from a model.
    """

    tokens: mx.array
    distributions: list[mx.array]
    looked_up: bool = False

    @property
    def depth(self) -> int:
        """How many tokens are proposed."""
        return self.tokens.shape[1]


NO_DRAFT = Draft(mx.zeros((1, 0), mx.uint32), [])


class Verifier:
    """Draws and verifies; every random number comes from a key of (seed, position, purpose), each used once.

    The position of a round is that of the first token it can emit. Rounds of one sequence never share it.

    Where penalties or a constraint want it, `begin` and `advance` keep it told which tokens stand; row i of a pass is
    then processed with the prefix that it would have in plain decoding. Otherwise both do nothing.

    Args:
        sampling: the chain that target and draft go through alike.
        mode: "token" or "block" rejection sampling, or "seeded": the same seed gives the same tokens at any depth.
            None takes "seeded" where a seed is given, else "block", of which most drafts stand. At temperature 0 all
            are the same.
        constraint: of this turn alone; None allows every token.
    """

    def __init__(
        self, sampling: Sampling, mode: VerifyMode | None = None, constraint: Constraint | None = None
    ) -> None:
        if mode is not None and mode not in get_args(VerifyMode):
            raise ValueError(f"verify is {mode!r}; expected one of {', '.join(get_args(VerifyMode))}")
        self.sampling = sampling
        self.mode: VerifyMode = mode or ("block" if sampling.seed is None else "seeded")
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.split(mx.random.key(seed))[0]
        self._constraint = constraint
        self._prompt: list[int] = []
        self._penalties: Penalties | None = None

    @property
    def constrained(self) -> bool:
        """Whether a pass waits for the host: for the drafts in it, and for all tokens before them."""
        return self._constraint is not None

    def begin(self, prompt: Sequence[int]) -> None:
        """A turn starts behind these tokens."""
        self._prompt, self._penalties = list(prompt), None

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens of the turn stand now."""
        if self._penalties:
            self._penalties.advance(tokens)
        if self._constraint:
            self._constraint.advance(tokens)

    def draw(self, logits: mx.array, position: int, drafts: Sequence[mx.array]) -> tuple[mx.array, mx.array | None]:
        """The next draft of a round from the head's logits [B, V], behind the round's drafts so far, each [B, 1].

        Returns the tokens [B] and, where verification needs it, the log-probabilities [B, V] they were drawn from.
        Deeper drafts than the first are drawn without the constraint, which would have to see those before.
        """
        step = len(drafts)
        if self.sampling.penalised:
            logits = self._penalised(logits[:, None], [NO_DRAFT.tokens, *drafts])[:, 0]
        if self._constraint and step == 0:
            logits = forbid(logits, self._constraint.masks([]))
        if self.sampling.greedy:
            return mx.argmax(logits, axis=-1), None
        q = distribution(logits, self.sampling)
        if self.mode == "seeded":
            return mx.argmax(q + gumbel(self._key, position + step, 1, q.shape[-1]), axis=-1), None
        return draw(q, fold(self._key, position, _DRAFTS + step)), q

    def verify(
        self, logits: mx.array, draft: Draft, position: int, pending_token: mx.array | None = None
    ) -> tuple[Acceptance, mx.array]:
        """The verdict on a draft from the target's logits [B, k + 1, V], and whether they were sound [B].

        Sound: every token that the verdict lets through has a finite log-probability, which a row with NaN or
        infinite logits never gives.

        Args:
            pending_token: [B, n], tokens before the drafts that stand, but have not been read and told to `advance`.
        """
        if self.sampling.penalised:
            logits = self._penalised(logits, [draft.tokens] if pending_token is None else [pending_token, draft.tokens])
        if self._constraint:
            logits = forbid(logits, self._constraint.masks(_read(draft, while_running=logits)))
        p = log_probs(logits) if self.sampling.greedy else distribution(logits, self.sampling)
        if self.sampling.greedy or self.mode == "seeded":
            scores = p if self.sampling.greedy else p + gumbel(self._key, position, p.shape[1], p.shape[-1])
            verdict = matching(mx.argmax(scores, axis=-1), draft.tokens)
        elif draft.depth == 0:
            token = draw(p[:, 0], self._verdict_key(position))
            verdict = Acceptance(mx.zeros(token.shape, mx.int32), token)
        else:
            accept = block if self.mode == "block" else rejection
            q = mx.stack(draft.distributions, axis=1) if draft.distributions else _certain(draft.tokens, p.shape[-1])
            verdict = accept(p, draft.tokens, q, self._verdict_key(position))
        return verdict, _sound(p, draft, verdict)

    def _penalised(self, logits: mx.array, since: Sequence[mx.array]) -> mx.array:
        """Logits [B, m, V] whose last row comes behind all tokens of `since`, each [B, n]."""
        if self._penalties is None:  # now the vocabulary is known
            self._penalties = Penalties(self.sampling, self._prompt, logits.shape[-1])
        return self._penalties.apply(logits, mx.concatenate(list(since), axis=1))

    def _verdict_key(self, position: int) -> mx.array:
        return fold(self._key, position, _VERDICT)


def emitted(draft: Draft, verdict: Acceptance) -> mx.array:
    """The tokens [B, k + 1] by rows: the drafts that stand, then the verdict's, over and over."""
    token = verdict.token[:, None]
    if draft.depth == 0:
        return token
    rows = mx.arange(draft.depth + 1)[None]
    return mx.where(rows < verdict.accepted[:, None], mx.concatenate([draft.tokens, token], axis=1), token)


def _certain(tokens: mx.array, vocabulary: int) -> mx.array:
    """The log-probabilities [B, k, V] of drafts [B, k] that nothing else could have been."""
    return mx.where(mx.arange(vocabulary) == tokens[..., None], 0.0, -mx.inf)


def _sound(p: mx.array, draft: Draft, verdict: Acceptance) -> mx.array:
    """Whether the emitted tokens' log-probabilities in p [B, k + 1, V] are finite."""
    found = mx.take_along_axis(p, emitted(draft, verdict)[..., None], axis=-1)[..., 0]
    finite = found > -mx.inf  # they are never above 0, and NaN is above nothing
    if draft.depth == 0:
        return finite[:, 0]
    return mx.all(finite | (mx.arange(p.shape[1])[None] > verdict.accepted[:, None]), axis=1)


def _read(draft: Draft, while_running: mx.array) -> list[int]:
    """The drafts of the one sequence that there is, fetched while the device works on the pass behind them."""
    if draft.depth == 0:
        mx.async_eval(while_running)
        return []
    drafts = draft.tokens[0]
    mx.async_eval(drafts)
    mx.async_eval(while_running)
    found: list[int] = drafts.tolist()  # type: ignore[assignment]
    return found
