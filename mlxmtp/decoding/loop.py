"""The round loop: draft, verify, commit. One pass of the target and one evaluation a round; token ids only.

Turns that run together share passes and nothing else: each has caches, a sampler and an end of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import mlx.core as mx

from mlxmtp.decoding.depth import plan_round
from mlxmtp.decoding.draft import propose
from mlxmtp.decoding.sampler import no_draft
from mlxmtp.decoding.stats import PhaseTimes, Round
from mlxmtp.decoding.turn import Forward, Kept, StopCheck, StopDecision, Turn, never_stop, verified
from mlxmtp.errors import is_out_of_memory

if TYPE_CHECKING:
    from mlxmtp.decoding import sequence as sequences
    from mlxmtp.decoding.depth import DepthPolicy, Observation
    from mlxmtp.decoding.draft import Drafter
    from mlxmtp.decoding.sampler import Draft, Sampler
    from mlxmtp.targets import Target

__all__ = ["RoundLoop", "StopCheck", "StopDecision", "Turn", "generate", "never_stop"]

TIMED_EVERY = 64
"""Draft rounds from one that is evaluated in phases to the next: their extra waits cost under 0.1 %."""
TIMED_FIRST = 3
"""The first such round. Earlier ones compile kernels."""
CLEAR_EVERY = 256
"""Tokens between two returns of MLX's cached buffers, as in mlx-lm."""
Outcome = Round | Exception
"""What a round was for a turn, or the error that ended the turn."""


def generate(
    target: Target,
    drafter: Drafter | None,
    sequence: sequences.Sequence,
    sampler: Sampler,
    policy: DepthPolicy,
    stop_check: StopCheck,
    max_tokens: int,
    logprobs: int | None = None,
    narrowed: Drafter | None = None,
) -> Iterator[Round]:
    """Generate the tokens of one turn, a record a round. The reader may stop after any round.

    After a round of drafts the caches end at its last token. After a plain round they may hold one token more, which
    is taken back when the iterator is closed or exhausted.

    Args:
        drafter, sequence, sampler, policy, stop_check, max_tokens, logprobs, narrowed: as in `Turn`.

    Raises:
        NumericsError: the target's logits are not finite. No token is taken from them.

    After an exception the caches may be ahead of the tokens: the sequence cannot be used again.
    """
    turn = Turn(sequence, drafter, sampler, policy, stop_check, max_tokens, logprobs, narrowed)
    loop = RoundLoop(target)
    try:
        while turn.finish is None:
            outcome = loop.round([turn])[turn]
            if isinstance(outcome, Exception):
                raise outcome
            yield outcome
    finally:
        turn.close()


class RoundLoop:
    """Rounds of one turn, or of several that share the passes of one target.

    A plain round is a round without drafts. Its successor is queued before its tokens have been read, so that the
    device does not wait for the host.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._tokens = 0
        self._clock = _PhaseClock(timed=False)
        self.begin()

    def begin(self) -> None:
        """No turn has gone before: the rounds that are timed by phase are those of a turn alone."""
        self._draft_rounds = 0
        self.resume()

    def resume(self) -> None:
        """Other work has ended: the time of the next round begins now."""
        self._round_end = time.perf_counter()

    def round(self, turns: Sequence[Turn], *, ahead: bool = True) -> dict[Turn, Outcome]:
        """Run one round of turns that go on; return what it was for each that took part.

        A pass that was queued is the round of the turns that it was queued for. An error ends its own turn alone, whose
        sequence cannot be used again. Where memory runs out, none of them can.

        Args:
            ahead: a plain pass may be queued after this round.
        """
        turns = [turn for turn in turns if turn.queued] or turns
        drafts = self._draft(turns)
        forwards = self._verify(turns, drafts)
        return self._commit(turns, forwards, ahead)

    def _draft(self, turns: Sequence[Turn]) -> list[Draft]:
        """Propose each turn's drafts, lazily; no_draft() where it has none, as in a pass that is queued."""
        if turns[0].queued:
            return [no_draft() for _ in turns]
        plans = plan_round([(turn.policy, turn.match) for turn in turns])
        longest = self._target.longest_pass(*(turn.sequence.offset for turn in turns))
        requests = [turn.request(plan, longest) for turn, plan in zip(turns, plans, strict=True)]
        if not any(request.depth for request in requests):
            return [no_draft() for _ in turns]
        self._clock = _PhaseClock(timed=self._draft_rounds % TIMED_EVERY == TIMED_FIRST)
        self._draft_rounds += 1
        drafts = propose(requests)
        self._clock.phase_ends(*(array for draft in drafts for array in draft.arrays))
        return drafts

    def _verify(self, turns: Sequence[Turn], drafts: Sequence[Draft]) -> list[Forward]:
        """Feed each turn's last token and drafts in one pass of the target, lazily; or take the pass that is queued."""
        if turns[0].queued:
            return [turn.take_queued() for turn in turns]
        inputs = [turn.input(draft) for turn, draft in zip(turns, drafts, strict=True)]
        passes = self._target.open_shared(inputs, [turn.sequence.cache for turn in turns])
        self._clock.phase_ends(*(rows.logits for rows in passes))
        forwards = verified(turns, passes, drafts, [None] * len(turns))
        if _plain(forwards) or len(forwards) > 1:
            _start(forwards)
        return forwards

    def _commit(self, turns: Sequence[Turn], forwards: Sequence[Forward], ahead: bool) -> dict[Turn, Outcome]:
        """Evaluate the round; leave the caches, the sequences and the policies at its last tokens."""
        if _plain(forwards):
            for forward in forwards:
                forward.commit(1)
            if ahead:
                self._queue_after(turns, forwards)
        kept = [_keep(turn, forward) for turn, forward in zip(turns, forwards, strict=True)]
        started, self._round_end = self._round_end, time.perf_counter()
        clock, self._clock = self._clock, _PhaseClock(timed=False)
        outcomes: dict[Turn, Outcome] = {}
        for turn, forward, one in zip(turns, forwards, kept, strict=True):
            if isinstance(one, Exception):
                outcomes[turn] = one
                continue
            drafted = forward.draft.depth
            waits_for_drafts = drafted > 0 and turn.sampler.reads_tokens
            outcomes[turn] = Round(
                tokens=one.tokens,
                drafted=drafted,
                accepted=one.accepted,
                evaluations=(clock.evaluations if drafted else 1) + waits_for_drafts,
                finish=turn.finish,
                phases=clock.phases(self._round_end) if drafted else None,
                logprobs=one.logprobs,
                seconds=self._round_end - started,
                from_lookup=forward.draft.from_lookup,
                narrowed=forward.draft.narrowed,
                num_sequences=len(turns),
            )
        _learn(outcomes)
        self._tokens += sum(len(one.tokens) for one in kept if isinstance(one, Kept))
        if self._tokens >= CLEAR_EVERY:
            self._tokens = 0
            mx.clear_cache()
        return outcomes

    def _queue_after(self, turns: Sequence[Turn], forwards: Sequence[Forward]) -> None:
        """Queue a plain pass on the tokens of this one, unless drafts come next or a token must be read first."""
        if not self._target.reversible or any(turn.left < 2 or turn.sampler.reads_tokens for turn in turns):
            return
        plans = plan_round([(turn.policy, turn.match) for turn in turns])
        if any(min(plan.depth, turn.left - 2) > 0 for plan, turn in zip(plans, turns, strict=True)):
            return
        tokens = [forward.token[:, None] for forward in forwards]
        passes = self._target.open_shared(tokens, [turn.sequence.cache for turn in turns])
        queued = verified(turns, passes, [no_draft() for _ in turns], [*tokens])
        for turn, forward in zip(turns, queued, strict=True):
            turn.queued = forward
        _start(queued)


def _plain(forwards: Sequence[Forward]) -> bool:
    return not any(forward.draft.depth for forward in forwards)


def _start(forwards: Sequence[Forward]) -> None:
    """Have the device work on a pass."""
    mx.async_eval([forward.arrays for forward in forwards])


def _keep(turn: Turn, forward: Forward) -> Kept | Exception:
    try:
        return turn.keep(forward)
    except Exception as error:  # of this turn alone: its logits, its constraint, its text
        if is_out_of_memory(error):
            raise
        turn.finish = "error"
        return error


def _learn(outcomes: Mapping[Turn, Outcome]) -> None:
    """Tell each policy of the rounds of its turns."""
    observations: dict[DepthPolicy, list[Observation]] = {}
    for turn, outcome in outcomes.items():
        if isinstance(outcome, Round):
            observations.setdefault(turn.policy, []).append(turn.observe(outcome))
    for policy, observed in observations.items():
        policy.observe(observed)


class _PhaseClock:
    """Times a round's phases by evaluating them one after the other, where `timed`."""

    def __init__(self, *, timed: bool) -> None:
        self._ends = [time.perf_counter()] if timed else []
        self.evaluations = 3 if timed else 1

    def phase_ends(self, *arrays: mx.array) -> None:
        if self._ends:
            mx.eval(*arrays)
            self._ends.append(time.perf_counter())

    def phases(self, end: float) -> PhaseTimes | None:
        if not self._ends:
            return None
        start, drafted, verified = self._ends
        return PhaseTimes(draft_s=drafted - start, verify_s=verified - drafted, other_s=end - verified)
