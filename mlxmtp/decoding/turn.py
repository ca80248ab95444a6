"""One turn between rounds: what it drafts next, what its pass gave, what it keeps. Token ids only."""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as List
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.decoding.depth import Observation
from mlxmtp.decoding.draft import DraftRequest, PromptLookup
from mlxmtp.decoding.sampler import Draft, TopLogprobs, emitted
from mlxmtp.errors import NumericsError, is_out_of_memory

if TYPE_CHECKING:
    from mlxmtp.decoding.depth import DepthPolicy, Plan
    from mlxmtp.decoding.draft import Drafter
    from mlxmtp.decoding.sampler import Sampler
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.decoding.stats import Round, TokenLogprob
    from mlxmtp.decoding.verify import Acceptance
    from mlxmtp.targets import Pass


@dataclass(frozen=True)
class StopDecision:
    """How many of a round's tokens belong to the turn, and why the turn ends with them; None: it goes on."""

    count: int
    finish: str | None


StopCheck = Callable[[list[int]], StopDecision]


def never_stop(tokens: list[int]) -> StopDecision:
    """Continue past end tokens."""
    return StopDecision(len(tokens), None)


class Turn:
    """A turn in progress.

    Args:
        sequence: prefilled; its last token is the input of the first round.
        drafter: the source of drafts; None where `policy` plans none.
        stop_check: gets each round's tokens once, in order, and decides which of them belong to the turn.
        max_tokens: at least 1; there the turn ends with "length".
        logprobs: also report each token's log-probability and this many of the most likely tokens; None: no report.
        narrowed: the source of drafts from the narrowed vocabulary; None where `policy` plans none.

    Attributes:
        finish: why the turn has ended; None: it goes on.
        left: tokens that it may still generate.
        queued: its part of a plain pass whose input has not been read yet.
    """

    def __init__(
        self,
        sequence: Sequence,
        drafter: Drafter | None,
        sampler: Sampler,
        policy: DepthPolicy,
        stop_check: StopCheck,
        max_tokens: int,
        logprobs: int | None = None,
        narrowed: Drafter | None = None,
    ) -> None:
        self.sequence = sequence
        self.sampler = sampler
        self.policy = policy
        self.left = max_tokens
        self.finish: str | None = None
        self.queued: Forward | None = None
        self._stop_check = stop_check
        self._logprobs = logprobs
        self._lookup = PromptLookup(sequence.tokens if policy.max_lookup else ())
        self._drafters: dict[str, Drafter | None] = {
            "head": drafter,
            "narrowed": narrowed or drafter,
            "lookup": self._lookup,
        }
        sampler.begin(sequence.tokens)
        policy.begin_turn(sequence.tokens)

    @property
    def match(self) -> int:
        """Tokens at the end of the text that occurred before."""
        return self._lookup.match

    def request(self, plan: Plan, longest: int) -> DraftRequest:
        """What a plan asks for, within the tokens that are left and the longest pass."""
        drafter, depth = self._drafters[plan.source], min(plan.depth, self.left - 1, longest - 1)
        return DraftRequest(drafter, self.sequence, depth if drafter else 0, self.sampler)

    def input(self, draft: Draft) -> mx.array:
        """The tokens [1, k + 1] of the next pass: the last one and the drafts."""
        last = mx.array([self.sequence.tokens[-1:]], mx.uint32)  # as drafts are
        return mx.concatenate([last, draft.tokens], axis=1) if draft.depth else last

    def forward(self, rows: Pass, draft: Draft, pending_token: mx.array | None = None) -> Forward:
        """The turn's part of a pass with the acceptance of its drafts, lazily.

        Args:
            pending_token: [1, 1], the input, where it has not been read yet.
        """
        position = len(self.sequence.tokens) + (0 if pending_token is None else 1)
        try:
            if draft.error:
                raise draft.error
            acceptance, finite = self.sampler.verify(rows.logits, draft, position, pending_token)
        except Exception as error:  # of a logits processor: `keep` raises it, and other turns go on
            if is_out_of_memory(error):
                raise
            nothing = mx.zeros(1, mx.int32)
            return Forward(rows, draft, nothing, nothing, error=error)
        values = _values(draft, acceptance, finite)[0]
        top = None
        if self._logprobs is not None:
            top = TopLogprobs(rows.logits, emitted(draft, acceptance), self._logprobs)
        return Forward(rows, draft, acceptance.token, values, top)

    @property
    def takes_the_best(self) -> bool:
        """It takes the target's most likely tokens, and reports nothing else of them."""
        return self.sampler.takes_the_best and self._logprobs is None

    def take_queued(self) -> Forward:
        """Return the queued pass, which is then no longer queued."""
        forward, self.queued = self.queued, None
        assert forward is not None
        return forward

    def keep(self, forward: Forward) -> Kept:
        """Evaluate the round; leave caches, sequence and sampler at its last token.

        Raises:
            NumericsError: the logits were not finite.
        """
        accepted, tokens = forward.read()
        decision = self._stop_check(tokens)
        tokens = tokens[: decision.count]
        forward.commit(len(tokens))
        self.sequence.advance(tokens, forward.rows.hidden[:, : len(tokens)])
        self.sampler.advance(tokens)
        self.left -= len(tokens)
        self.finish = decision.finish or (None if self.left else "length")
        return Kept(tuple(tokens), accepted, forward.logprobs(tokens))

    def observe(self, round: Round) -> Observation:
        """What the policy learns from a round; the lookup learns its tokens."""
        match = self._lookup.match
        pairs = zip(round.tokens, self._lookup.after(len(round.tokens)) if match else (), strict=False)
        repeated = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        if self.policy.max_lookup:
            self._lookup.extend(round.tokens)
        return Observation(round, match, repeated)

    def close(self) -> None:
        """Take back the pass that is queued."""
        if self.queued:
            self.queued.commit(0)
            self.queued = None


@dataclass(frozen=True)
class Kept:
    """What a turn keeps of a round."""

    tokens: tuple[int, ...]
    accepted: int
    logprobs: tuple[TokenLogprob, ...]


def verified(
    turns: List[Turn], passes: List[Pass], drafts: List[Draft], pending_tokens: List[mx.array | None]
) -> list[Forward]:
    """Each turn's part of a pass. Of those that take the best tokens, all with as many drafts are verified at once."""
    alike: dict[int, list[int]] = {}
    for i, (turn, draft) in enumerate(zip(turns, drafts, strict=True)):
        if turn.takes_the_best and not draft.error:
            alike.setdefault(draft.depth, []).append(i)
    found: dict[int, Forward] = {}
    for places in (places for places in alike.values() if len(places) > 1):
        together = Draft(mx.concatenate([drafts[i].tokens for i in places]), [])
        logits = mx.concatenate([passes[i].logits for i in places])
        acceptance, finite = turns[places[0]].sampler.verify(logits, together, position=0)
        values, tokens = (mx.split(x, len(places)) for x in (_values(together, acceptance, finite), acceptance.token))
        for i, own, token in zip(places, values, tokens, strict=True):
            found[i] = Forward(passes[i], drafts[i], token, own[0])
    return [found.get(i) or turn.forward(passes[i], drafts[i], pending_tokens[i]) for i, turn in enumerate(turns)]


def _values(draft: Draft, acceptance: Acceptance, finite: mx.array) -> mx.array:
    """What the host reads of a round, int32 [B, 1]: the token or -1; with drafts [B, k + 2]: the count and they too."""
    token = mx.where(finite, acceptance.token.astype(mx.int32), -1)[:, None]  # -1: the logits were not finite
    if not draft.depth:
        return token
    return mx.concatenate([token, acceptance.accepted.astype(mx.int32)[:, None], draft.tokens.astype(mx.int32)], axis=1)


class Forward:
    """A turn's part of a pass whose tokens have not been read: an open transaction on its caches.

    Args:
        token: [1], the target's own token.
        values: int32, that token or -1, and with drafts the number of accepted ones and the drafts.
        top: the log-probabilities to report.
        error: what went wrong when it was built.
    """

    def __init__(
        self,
        rows: Pass,
        draft: Draft,
        token: mx.array,
        values: mx.array,
        top: TopLogprobs | None = None,
        error: Exception | None = None,
    ) -> None:
        self.rows = rows
        self.draft = draft
        self.token = token
        self._values = values
        self._top = top
        self._error = error
        self._open = True

    @property
    def arrays(self) -> list[mx.array]:
        """What the round evaluates."""
        return [self._values, *(self._top.arrays if self._top else ())]

    def commit(self, count: int) -> None:
        """Keep the first `count` tokens of the pass, unless it was committed before."""
        if self._open:
            self.rows.commit(count)
        self._open = False

    def read(self) -> tuple[int, list[int]]:
        """How many drafts are accepted, and the tokens that the round emits; evaluates what has not been.

        Raises:
            NumericsError: the logits were not finite.
        """
        if self._error:
            raise self._error
        if self._top:
            mx.async_eval(*self.arrays)
        values: list[int] = self._values.tolist()  # type: ignore[assignment]
        token, accepted, *drafts = values if len(values) > 1 else [*values, 0]
        if token < 0:
            raise NumericsError(
                "the model's logits are not finite (NaN or infinity); check the checkpoint's files and its dtype "
                "(float16 overflows in some models that bfloat16 and float32 run)"
            )
        return accepted, [*drafts[:accepted], token]

    def logprobs(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of the round's first tokens."""
        return self._top.read(tokens) if self._top else ()
