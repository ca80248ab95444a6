"""The sampler of a turn: draws drafts and verifies them so that tokens keep the target's own distribution."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import mlx.core as mx

from mlxmtp.decoding.logits_processors import LogitsProcessor, logits_processors
from mlxmtp.decoding.sampling import Distribution, Sampling, distribution, fold, gumbel, log_probs, most_likely
from mlxmtp.decoding.stats import TokenLogprob
from mlxmtp.decoding.verify import Acceptance, block, draw, matching, rejection
from mlxmtp.limits import VerifyMode

_ACCEPTANCE_KEY = 1
"""Purpose of the key of a round's acceptance. Purpose 0 is the noise that all depths share (`sampling.gumbel`)."""
_DRAFT_KEY = 2
"""Purpose of the key of a round's first draft; each deeper draft has the next number."""


@dataclass(frozen=True)
class Draft:
    """Proposed tokens [B, k].

    Args:
        distributions: the k distributions of rows [B] that the tokens were drawn from; empty where the tokens were
            certain, or where verification does not need them.
        from_lookup: the tokens come from the text.
        narrowed: the head drafted them from the narrowed vocabulary.
        error: what went wrong when they were drawn; it ends the turn.
    """

    tokens: mx.array
    distributions: list[Distribution]
    from_lookup: bool = False
    narrowed: bool = False
    error: Exception | None = None

    @property
    def depth(self) -> int:
        """The number of tokens."""
        return self.tokens.shape[1]

    @property
    def arrays(self) -> list[mx.array]:
        """The tokens, and what they were drawn from."""
        return [self.tokens, *(one.logs for one in self.distributions)]


def no_draft(error: Exception | None = None) -> Draft:
    """A draft of no token. It is made anew, for a lazy array belongs to the thread that made it."""
    return Draft(mx.zeros((1, 0), mx.uint32), [], error=error)


class Sampler:
    """Draws drafts and verifies them. Every random number has a key of (seed, position, purpose), used once.

    The position of a round is that of the first token it can emit. Rounds of one sequence never share it.

    Args:
        sampling: the chain that the logits of target and head go through.
        mode: "token" or "block" rejection sampling, or "seeded": the same seed gives the same tokens at any depth.
            None: "seeded" where a seed is given, else "block", which accepts most drafts. All are equal at
            temperature 0.
        processors: logits processors of this turn, applied after the sampling's bias and penalties.

    Raises:
        ValueError: there is no such mode.
    """

    def __init__(
        self, sampling: Sampling, mode: VerifyMode | None = None, processors: Sequence[LogitsProcessor] = ()
    ) -> None:
        if mode is not None and mode not in get_args(VerifyMode):
            raise ValueError(f"verify is {mode!r}; expected one of {', '.join(get_args(VerifyMode))}")
        self.sampling = sampling
        self.mode: VerifyMode = mode or ("block" if sampling.seed is None else "seeded")
        seed = secrets.randbits(64) if sampling.seed is None else sampling.seed
        self._key = mx.random.split(mx.random.key(seed))[0]
        self._processors = [*logits_processors(sampling), *processors]

    @property
    def reads_tokens(self) -> bool:
        """A pass waits until the host has read all tokens before it, and the drafts in it."""
        return any(processor.reads_tokens for processor in self._processors)

    @property
    def takes_the_best(self) -> bool:
        """It takes the most likely token of the target's own logits, as any other such sampler does."""
        return self.sampling.greedy and not self._processors

    def begin(self, prompt: Sequence[int]) -> None:
        """A turn begins after these tokens."""
        for processor in self._processors:
            processor.begin(prompt)

    def advance(self, tokens: Sequence[int]) -> None:
        """These tokens of the turn are accepted."""
        for processor in self._processors:
            processor.advance(tokens)

    def draw_draft(
        self, logits: mx.array, position: int, drafts: Sequence[mx.array]
    ) -> tuple[mx.array, Distribution | None]:
        """The round's next draft from the head's logits [B, V], after its drafts so far, each [B, 1].

        Processors that read tokens process the first draft only: for a deeper one they would wait for those before.

        Returns:
            The tokens [B] and, where verification needs it, the distribution that they were drawn from.
        """
        step = len(drafts)
        if processors := [each for each in self._processors if step == 0 or not each.reads_tokens]:
            before = mx.concatenate([no_draft().tokens, *drafts], axis=1)
            for processor in processors:
                logits = processor.process(logits[:, None], before)[:, 0]
        if self.sampling.greedy:
            return mx.argmax(logits, axis=-1), None
        if self.mode == "seeded":
            row = distribution(logits[:, None], self.sampling)
            return self._choices(row, position + step, logits.shape[-1])[:, 0], None
        q = distribution(logits, self.sampling)
        return draw(q, fold(self._key, position, _DRAFT_KEY + step)), q

    def verify(
        self, logits: mx.array, draft: Draft, position: int, pending_token: mx.array | None = None
    ) -> tuple[Acceptance, mx.array]:
        """The acceptance of a draft by the target's logits [B, k + 1, V], and whether it is finite [B].

        Finite: every emitted token has a finite log-probability. A row with NaN or infinite logits gives none.

        Args:
            pending_token: [B, 1], the token before the drafts, where the host has not read it, so that `advance` has
                not been told of it.
        """
        tokens = draft.tokens if pending_token is None else mx.concatenate([pending_token, draft.tokens], axis=1)
        for processor in self._processors:
            logits = processor.process(logits, tokens)
        p = Distribution(log_probs(logits)) if self.sampling.greedy else distribution(logits, self.sampling)
        if self.sampling.greedy or self.mode == "seeded":
            acceptance = matching(self._choices(p, position, logits.shape[-1]), draft.tokens)
        elif draft.depth == 0:
            token = draw(p.map(lambda rows: rows[:, 0]), fold(self._key, position, _ACCEPTANCE_KEY))
            acceptance = Acceptance(mx.zeros(token.shape, mx.int32), token)
        else:
            accept = block if self.mode == "block" else rejection
            acceptance = accept(p, draft.tokens, _drawn_from(draft), fold(self._key, position, _ACCEPTANCE_KEY))
        return acceptance, _finite(p, draft, acceptance)

    def _choices(self, p: Distribution, position: int, vocabulary: int) -> mx.array:
        """The tokens [B, n] of positions from `position` on: the most likely ones, under a seed with its noise."""
        if self.sampling.greedy:
            return p.best(p.logs)
        return p.best(p.logs + gumbel(self._key, position, p.logs.shape[1], vocabulary, p.tokens))


class TopLogprobs:
    """The log-probabilities of a round's tokens before processors, filters and temperature, lazily.

    Evaluate `arrays` with the round.

    Args:
        logits: [1, m, V], the target's own. tokens: [1, m], emitted in these rows.
        top: how many of the most likely tokens to report.
    """

    def __init__(self, logits: mx.array, tokens: mx.array, top: int) -> None:
        law = log_probs(logits[0].astype(mx.float32))
        values, ids = most_likely(law, min(top, law.shape[-1])) if top else (law[:, :0], tokens[0][:, None][:, :0])
        self.arrays = [mx.take_along_axis(law, tokens[0][:, None], axis=-1)[:, 0], ids, values]

    def read(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        """The records of the round's first tokens."""
        columns = zip(*(array.tolist() for array in self.arrays), strict=True)
        return tuple(
            TokenLogprob(token, own, tuple(zip(ids, values, strict=True)))
            for token, (own, ids, values) in zip(tokens, columns, strict=False)
        )


def emitted(draft: Draft, acceptance: Acceptance) -> mx.array:
    """The emitted token of each row [B, k + 1]: the accepted drafts, then the target's own token repeated."""
    token = acceptance.token[:, None]
    if draft.depth == 0:
        return token
    rows = mx.arange(draft.depth + 1)[None]
    accepted = rows < acceptance.accepted[:, None]
    return mx.where(accepted, mx.concatenate([draft.tokens, token], axis=1), token)


def _drawn_from(draft: Draft) -> Distribution:
    """The distributions of rows [B, k] that the drafts were drawn from; certain ones had probability 1."""
    if not draft.distributions:
        return Distribution(mx.zeros((*draft.tokens.shape, 1)), draft.tokens[..., None])
    logs = mx.stack([one.logs for one in draft.distributions], axis=1)
    tokens = [one.tokens for one in draft.distributions if one.tokens is not None]
    return Distribution(logs, mx.stack(tokens, axis=1) if tokens else None)


def _finite(p: Distribution, draft: Draft, acceptance: Acceptance) -> mx.array:
    """Whether the emitted tokens' log-probabilities in p, of rows [B, k + 1], are finite [B]."""
    own = p.of(emitted(draft, acceptance)[..., None])[..., 0]
    finite = own > -mx.inf  # they are never above 0, and a comparison with NaN is false
    if draft.depth == 0:
        return finite[:, 0]
    return mx.all(finite | (mx.arange(own.shape[1])[None] > acceptance.accepted[:, None]), axis=1)
