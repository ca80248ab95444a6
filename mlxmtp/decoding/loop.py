"""The round loop: draft, verify, commit. One evaluation a round; token ids only."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.decoding.depth import PLAIN
from mlxmtp.decoding.draft import PromptLookup
from mlxmtp.decoding.sampler import TopLogprobs, emitted, no_draft
from mlxmtp.decoding.stats import PhaseTimes, Round
from mlxmtp.errors import NumericsError

if TYPE_CHECKING:
    from mlxmtp.decoding.depth import DepthPolicy
    from mlxmtp.decoding.draft import Drafter
    from mlxmtp.decoding.sampler import Draft, Sampler
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.decoding.stats import TokenLogprob
    from mlxmtp.decoding.verify import Acceptance
    from mlxmtp.targets import Pass, Target

TIMED_EVERY = 64
"""Draft rounds from one that is evaluated in phases to the next: their extra waits cost under 0.1 %."""
TIMED_FIRST = 3
"""The first such round. Earlier ones compile kernels."""
CLEAR_EVERY = 256
"""Tokens between two returns of MLX's cached buffers, as in mlx-lm."""


@dataclass(frozen=True)
class StopDecision:
    """How many of a round's tokens belong to the turn, and why the turn ends with them; None: it goes on."""

    count: int
    finish: str | None


StopCheck = Callable[[list[int]], StopDecision]


def never_stop(tokens: list[int]) -> StopDecision:
    """Continue past end tokens."""
    return StopDecision(len(tokens), None)


def generate(
    target: Target,
    drafter: Drafter | None,
    sequence: Sequence,
    sampler: Sampler,
    policy: DepthPolicy,
    stop_check: StopCheck,
    max_tokens: int,
    logprobs: int | None = None,
    narrowed: Drafter | None = None,
) -> Iterator[Round]:
    """Generate tokens, a record a round. The reader may stop after any round.

    After a round of drafts the caches end at its last token. After a plain round they may hold one token more, which
    is taken back when the iterator is closed or exhausted.

    Args:
        drafter: the source of drafts; None where `policy` plans none.
        sequence: prefilled; its last token is the input of the first round.
        stop_check: gets each round's tokens once, in order, and decides which of them belong to the turn.
        max_tokens: at least 1; there the turn ends with "length".
        logprobs: also report each token's log-probability and this many of the most likely tokens; None: no report.
        narrowed: the source of drafts from the narrowed vocabulary; None where `policy` plans none.

    Raises:
        NumericsError: the target's logits are not finite. No token is taken from them.

    After an exception the caches may be ahead of the tokens: the sequence cannot be used again.
    """
    turn = _Turn(target, drafter, sequence, sampler, policy, stop_check, max_tokens, logprobs, narrowed)
    try:
        while turn.finish is None:
            draft = turn.draft()
            forward = turn.verify(draft)
            yield turn.commit(forward)
    finally:
        turn.close()


class _Turn:
    """One turn's state between rounds, and the three steps of a round.

    A plain round is a round without drafts. Its successor is queued before its token has been read, so that the device
    does not wait for the host.
    """

    def __init__(
        self,
        target: Target,
        drafter: Drafter | None,
        sequence: Sequence,
        sampler: Sampler,
        policy: DepthPolicy,
        stop_check: StopCheck,
        max_tokens: int,
        logprobs: int | None,
        narrowed: Drafter | None,
    ) -> None:
        self.finish: str | None = None
        self._target = target
        self._sequence = sequence
        self._sampler = sampler
        self._policy = policy
        self._stop_check = stop_check
        self._left = max_tokens
        self._logprobs = logprobs
        self._lookup = PromptLookup(sequence.tokens if policy.max_lookup else ())
        self._drafters: dict[str, Drafter | None] = {
            "head": drafter,
            "narrowed": narrowed or drafter,
            "lookup": self._lookup,
        }
        self._queued: _Forward | None = None
        self._draft_rounds = 0
        self._clock = _PhaseClock(timed=False)
        sampler.begin(sequence.tokens)
        policy.begin_turn(sequence.tokens)
        self._round_end = time.perf_counter()

    def draft(self) -> Draft:
        """Propose the round's drafts, lazily; no_draft() makes it a plain round."""
        plan = PLAIN if self._queued else self._policy.plan(self._lookup.match)
        depth = min(plan.depth, self._left - 1, self._target.longest_pass(self._sequence.offset) - 1)
        drafter = self._drafters[plan.source] if depth else None
        if drafter is None:
            return no_draft()
        self._clock = _PhaseClock(timed=self._draft_rounds % TIMED_EVERY == TIMED_FIRST)
        self._draft_rounds += 1
        draft = drafter.propose(self._sequence, depth, self._sampler)
        self._clock.phase_ends(draft.tokens, *(one.logs for one in draft.distributions))
        return draft

    def verify(self, draft: Draft) -> _Forward:
        """Feed the last token and the drafts in one pass of the target, lazily; or take the pass that is queued."""
        forward, self._queued = self._queued, None
        if forward:
            return forward
        last = mx.array([self._sequence.tokens[-1:]], mx.uint32)  # as drafts are
        if draft.depth:
            return self._forward(mx.concatenate([last, draft.tokens], axis=1), draft)
        return self._forward(last, draft).start()

    def commit(self, forward: _Forward) -> Round:
        """Evaluate the round; leave the caches, the sequence and the policy at its last token."""
        draft = forward.draft
        if draft.depth == 0:
            forward.rows.commit(1)
            self._queued = self._queue_after(forward)
        accepted, tokens = forward.fetch()
        decision = self._stop_check(tokens)
        tokens = tokens[: decision.count]
        if draft.depth:
            forward.rows.commit(len(tokens))
        self._sequence.advance(tokens, forward.rows.hidden[:, : len(tokens)])
        self._sampler.advance(tokens)
        self._left -= len(tokens)
        self.finish = decision.finish or (None if self._left else "length")
        started, self._round_end = self._round_end, time.perf_counter()
        waits_for_drafts = draft.depth > 0 and self._sampler.reads_tokens
        round = Round(
            tokens=tuple(tokens),
            drafted=draft.depth,
            accepted=accepted,
            evaluations=(self._clock.evaluations if draft.depth else 1) + waits_for_drafts,
            finish=self.finish,
            phases=self._clock.phases() if draft.depth else None,
            logprobs=forward.logprobs(tokens),
            seconds=self._round_end - started,
            from_lookup=draft.from_lookup,
            narrowed=draft.narrowed,
        )
        self._learn(round)
        if len(self._sequence.tokens) % CLEAR_EVERY < len(tokens):
            mx.clear_cache()
        return round

    def close(self) -> None:
        """Take back the pass that is queued."""
        if self._queued:
            self._queued.rows.commit(0)

    def _forward(self, tokens: mx.array, draft: Draft, pending_token: mx.array | None = None) -> _Forward:
        """A pass over tokens [1, k + 1] with the acceptance of its drafts.

        Args:
            pending_token: [1, 1], the input, where it has not been read yet.
        """
        rows = self._target.open(tokens, self._sequence.cache)
        if draft.depth:
            self._clock.phase_ends(rows.logits)
        position = len(self._sequence.tokens) + (0 if pending_token is None else 1)
        acceptance, finite = self._sampler.verify(rows.logits, draft, position, pending_token)
        return _Forward(rows, draft, acceptance, finite, self._logprobs)

    def _queue_after(self, forward: _Forward) -> _Forward | None:
        """Queue a plain pass on the token of this one, unless drafts come next or the token must be read first."""
        if self._left < 2 or not self._target.reversible or self._sampler.reads_tokens:
            return None
        if min(self._policy.plan(self._lookup.match).depth, self._left - 2) > 0:
            return None
        token = forward.acceptance.token[:, None]
        return self._forward(token, no_draft(), pending_token=token).start()

    def _learn(self, round: Round) -> None:
        """Tell the policy of the round, and the lookup of its tokens."""
        match = self._lookup.match
        pairs = zip(round.tokens, self._lookup.after(len(round.tokens)) if match else (), strict=False)
        self._policy.observe(round, match, sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs)))
        if self._policy.max_lookup:
            self._lookup.extend(round.tokens)


class _Forward:
    """A pass of the target whose tokens have not been read: an open transaction on the caches."""

    def __init__(
        self, rows: Pass, draft: Draft, acceptance: Acceptance, finite: mx.array, logprobs: int | None
    ) -> None:
        self.rows = rows
        self.draft = draft
        self.acceptance = acceptance
        self._values = mx.where(finite, acceptance.token.astype(mx.int32), -1)  # -1: the logits were not finite
        if draft.depth:
            counts = [acceptance.accepted.astype(mx.int32), draft.tokens[0].astype(mx.int32)]
            self._values = mx.concatenate([self._values, *counts])
        self._top = None if logprobs is None else TopLogprobs(rows.logits, emitted(draft, acceptance), logprobs)

    def start(self) -> _Forward:
        """Have the device work on it."""
        mx.async_eval(self._values, *(self._top.arrays if self._top else ()))
        return self

    def fetch(self) -> tuple[int, list[int]]:
        """The evaluation of the round: how many drafts are accepted, and the tokens it emits."""
        if self._top:
            self.start()
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


class _PhaseClock:
    """Times a round's phases by evaluating them one after the other, where `timed`."""

    def __init__(self, *, timed: bool) -> None:
        self._ends = [time.perf_counter()] if timed else []
        self.evaluations = 3 if timed else 1

    def phase_ends(self, *arrays: mx.array) -> None:
        if self._ends:
            mx.eval(*arrays)
            self._ends.append(time.perf_counter())

    def phases(self) -> PhaseTimes | None:
        if not self._ends:
            return None
        start, drafted, verified = self._ends
        return PhaseTimes(draft_s=drafted - start, verify_s=verified - drafted, other_s=time.perf_counter() - verified)
