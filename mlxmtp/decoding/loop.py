"""The round loop: draft, verify, accept, commit. One evaluation a round; token ids only."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import mlx.core as mx

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.logprobs import Report
from mlxmtp.decoding.stats import PhaseTimes, Round, TokenLogprob
from mlxmtp.decoding.verifier import NO_DRAFT, Draft, Verifier, emitted
from mlxmtp.decoding.verify import Acceptance
from mlxmtp.errors import NumericsError

if TYPE_CHECKING:
    from mlxmtp.decoding.depth import DepthPolicy
    from mlxmtp.decoding.drafters import Drafter
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.targets import Pass, Target

# Every so often a round is evaluated in parts, to see where time goes: too rarely to cost anything.
TIMED_FROM, TIMED_EVERY = 3, 64
CLEAR_EVERY = 256  # tokens between returns of MLX's cached buffers, as mlx-lm does


@dataclass(frozen=True)
class StopDecision:
    """How many of a round's tokens belong to the turn, and why the turn ends there, if it does."""

    count: int
    finish: str | None


StopCheck = Callable[[list[int]], StopDecision]


def never_stop(tokens: list[int]) -> StopDecision:
    """For turns that go past end tokens."""
    return StopDecision(len(tokens), None)


def speculate(
    target: Target,
    drafter: Drafter,
    sequence: Sequence,
    verifier: Verifier,
    policy: DepthPolicy,
    keep: StopCheck,
    max_tokens: int,
    logprobs: int | None = None,
) -> Iterator[Round]:
    """Generate with drafts. Whoever reads this may stop at any round: the caches stand at its last token.

    Args:
        sequence: prefilled: its last token is what the first round feeds.
        keep: told each round's tokens, once and in order; says how many belong to the turn.
        max_tokens: >= 1; the turn ends there with "length".
        logprobs: report each token's log-probability, with those of so many of the likeliest; None: do not.

    Raises:
        NumericsError: the target's logits are not finite. No token is taken from them.

    After an exception the caches may be ahead of the tokens: the sequence is spent.
    """
    left, number, finish = max_tokens, 0, None
    verifier.begin(sequence.tokens)
    depth, ended = policy.next(), time.perf_counter()
    while finish is None:
        if min(depth, left - 1) == 0:
            left, finish, depth = yield from _plainly(target, sequence, verifier, policy, keep, left, logprobs)
            ended = time.perf_counter()
            continue
        clock = _Clock(timed=number % TIMED_EVERY == TIMED_FROM, drafts_read=verifier.constrained)
        draft = drafter.propose(sequence, min(depth, left - 1), verifier)
        clock.drafted(draft)
        rows = target.open(mx.concatenate([mx.array([sequence.tokens[-1:]]), draft.tokens], axis=1), sequence.cache)
        clock.verified(rows)
        verdict, sound = verifier.verify(rows.logits, draft, len(sequence.tokens))
        outcome = _Outcome(rows.logits, draft, verdict, sound, logprobs)
        accepted, tokens = outcome.fetch()
        kept = keep(tokens)
        tokens = tokens[: kept.count]
        rows.commit(kept.count)
        sequence.advance(tokens, rows.hidden[:, : kept.count])
        verifier.advance(tokens)
        left -= kept.count
        finish = kept.finish or (None if left else "length")
        told = outcome.report(tokens)
        seconds, ended = time.perf_counter() - ended, time.perf_counter()
        parts, evaluations = clock.parts(), clock.evaluations
        one = Round(tuple(tokens), draft.depth, accepted, evaluations, finish, parts, told, seconds, draft.looked_up)
        policy.observe(one)
        yield one
        _tidy(sequence, len(tokens))
        number, depth = number + 1, depth if finish else policy.next()


def decode_plainly(
    target: Target,
    sequence: Sequence,
    verifier: Verifier,
    keep: StopCheck,
    max_tokens: int,
    logprobs: int | None = None,
) -> Iterator[Round]:
    """Generate without drafts; each pass is queued before the token that it feeds has been read.

    A constraint has to see that token: there, each pass waits for it.

    Arguments, errors and the caches afterwards as for `speculate`; while it is suspended they are one row ahead.
    """
    verifier.begin(sequence.tokens)
    yield from _plainly(target, sequence, verifier, FixedDepth(0), keep, max_tokens, logprobs)


def _plainly(
    target: Target,
    sequence: Sequence,
    verifier: Verifier,
    policy: DepthPolicy,
    keep: StopCheck,
    left: int,
    logprobs: int | None,
) -> Generator[Round, None, tuple[int, str | None, int]]:
    """Rounds without drafts until the turn ends, or until drafts are wanted again; no pass is queued beyond that.

    Returns what is left of the tokens then, why the turn ended, if it did, and the depth that is wanted.
    """
    depth, finish, ended = 0, None, time.perf_counter()
    ahead: _Queued | None = None
    try:
        while finish is None and depth == 0:
            now = ahead or _queue(target, sequence, verifier, logprobs)
            now.rows.commit(1)
            left, ahead = left - 1, None
            depth = policy.next() if left else 0
            if left and depth == 0 and target.reversible and not verifier.constrained:
                ahead = _queue(target, sequence, verifier, logprobs, behind=now)
            _, tokens = now.outcome.fetch()
            finish = keep(tokens).finish or (None if left else "length")
            sequence.advance(tokens, now.rows.hidden)
            verifier.advance(tokens)
            told = now.outcome.report(tokens)
            seconds, ended = time.perf_counter() - ended, time.perf_counter()
            one = Round(tuple(tokens), 0, 0, 1, finish, logprobs=told, seconds=seconds)
            policy.observe(one)
            yield one
            _tidy(sequence, 1)
    finally:
        if ahead:
            ahead.rows.commit(0)
    return left, finish, depth


class _Queued(NamedTuple):
    """A pass over one row that the device works on: a transaction that is still open."""

    rows: Pass
    token: mx.array
    outcome: _Outcome


def _queue(
    target: Target, sequence: Sequence, verifier: Verifier, logprobs: int | None, behind: _Queued | None = None
) -> _Queued:
    """Feed the sequence's last token; or, behind a pass that is under way, the token that will come of it."""
    pending_token = behind.token[:, None] if behind else NO_DRAFT.tokens
    token = pending_token if behind else mx.array([sequence.tokens[-1:]])
    rows = target.open(token, sequence.cache)
    verdict, sound = verifier.verify(
        rows.logits, NO_DRAFT, len(sequence.tokens) + pending_token.shape[1], pending_token
    )
    queued = _Queued(rows, verdict.token, _Outcome(rows.logits, NO_DRAFT, verdict, sound, logprobs))
    queued.outcome.start()
    return queued


class _Outcome:
    """What the host needs of a round: its last token, -1 if not sound; then how many drafts stand, and the drafts.

    With it, in the same evaluation, the log-probabilities that were asked for.
    """

    def __init__(
        self, logits: mx.array, draft: Draft, verdict: Acceptance, sound: mx.array, logprobs: int | None
    ) -> None:
        self._values = mx.where(sound, verdict.token.astype(mx.int32), -1)
        if draft.depth:
            counted = [verdict.accepted.astype(mx.int32), draft.tokens[0].astype(mx.int32)]
            self._values = mx.concatenate([self._values, *counted])
        self._report = None if logprobs is None else Report(logits, emitted(draft, verdict), logprobs)

    def start(self) -> None:
        """Have the device work on it."""
        mx.async_eval(self._values, *(self._report.arrays if self._report else ()))

    def fetch(self) -> tuple[int, list[int]]:
        """The evaluation of a round: how many drafts stand, and the tokens it emits."""
        if self._report:
            self.start()
        values: list[int] = self._values.tolist()  # type: ignore[assignment]
        token, accepted, *drafts = values if len(values) > 1 else [*values, 0]
        if token < 0:
            raise NumericsError(
                "the model's logits are not finite (NaN or infinity); check the checkpoint's files and its dtype "
                "(float16 overflows in some models that bfloat16 and float32 run)"
            )
        return accepted, [*drafts[:accepted], token]

    def report(self, tokens: list[int]) -> tuple[TokenLogprob, ...]:
        """The log-probabilities of the round's first tokens."""
        return self._report.read(tokens) if self._report else ()


def _tidy(sequence: Sequence, new: int) -> None:
    """Now and then, behind so many new tokens."""
    if len(sequence.tokens) % CLEAR_EVERY < new:
        mx.clear_cache()


class _Clock:
    """Times a round; where asked for, its parts too, by evaluating them one after the other."""

    def __init__(self, *, timed: bool, drafts_read: bool) -> None:
        self._marks = [time.perf_counter()]
        self._timed = timed
        self._drafts_read = drafts_read
        self.evaluations = 3 if timed else 1

    def drafted(self, draft: Draft) -> None:
        self.evaluations += self._drafts_read and draft.depth > 0
        self._mark(draft.tokens, *draft.distributions)

    def verified(self, rows: Pass) -> None:
        self._mark(rows.logits)

    def parts(self) -> PhaseTimes | None:
        if not self._timed:
            return None
        start, drafted, verified = self._marks
        return PhaseTimes(drafted - start, verified - drafted, time.perf_counter() - verified)

    def _mark(self, *arrays: mx.array) -> None:
        if self._timed:
            mx.eval(*arrays)
            self._marks.append(time.perf_counter())
