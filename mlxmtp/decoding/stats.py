"""Statistics: a record for each round, sums for a turn. Every surface shows these and no others."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self


@dataclass(frozen=True)
class PhaseTimes:
    """Seconds of the phases of one round that was evaluated phase by phase: an estimate for the rounds around it."""

    draft_s: float
    verify_s: float
    other_s: float


@dataclass(frozen=True)
class TokenLogprob:
    """The natural logarithm of a generated token's probability, and the most likely tokens in its place.

    Args:
        top: (token, logprob) pairs, the most likely first; of equals, the lower id first.
    """

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class Round:
    """What one round did.

    Args:
        tokens: emitted tokens that belong to the turn, in order. The sequence ends with the last of them.
        drafted: proposed drafts. accepted: drafts that verification accepted.
        evaluations: graph evaluations that the round waited for: one, or one a phase where it was timed, and one more
            for the drafts where a logits processor reads them.
        finish: why the turn ends with this round, or None.
        phases: the time of each phase, in the rounds that were timed.
        logprobs: a record for each of `tokens`, where they were asked for.
        seconds: since the end of the previous round, or since the start. The time of the reader is included.
        from_lookup: the drafts come from the text so far.
        narrowed: the head drafted from the narrowed vocabulary.
        num_sequences: turns that shared its pass, this one included.
    """

    tokens: tuple[int, ...]
    drafted: int
    accepted: int
    evaluations: int
    finish: str | None = None
    phases: PhaseTimes | None = None
    logprobs: tuple[TokenLogprob, ...] = ()
    seconds: float = 0.0
    from_lookup: bool = False
    narrowed: bool = False
    num_sequences: int = 1


@dataclass(frozen=True)
class Stats:
    """A turn so far. Times in seconds, rates in tokens a second.

    Args:
        prompt_tokens: tokens of the prompt. tokens: generated tokens. rounds: passes of the target.
        reused_tokens: prompt tokens that the caches held from an earlier turn.
        drafted, accepted: proposed and accepted drafts of the head. A round that a stop cuts short counts whole.
        looked_up, looked_up_accepted: the same for drafts from prompt lookup.
        narrowed: of `drafted`, the drafts from the narrowed vocabulary.
        tokens_per_round: generated tokens a round.
        acceptance_by_depth: at i, the accepted share of the head's drafts at depth i + 1. A draft after a rejected one
            counts as rejected: over full rounds of drafts, tokens_per_round is 1 + the sum.
        drafted_by_depth: the number of these drafts.
        ttft_s: from the request to the first token.
        prefill_tps: rate of the prompt tokens that were read.
        decode_tps: rate of the tokens after the first round.
        draft_s, verify_s, other_s: decoding time, split as in the rounds that were timed by phase: an estimate.
            Plain decoding overlaps host and device and counts all its time as verify.
        peak_memory_bytes: MLX's peak during the turn, weights included.
        evaluations: graph evaluations that decoding waited for: one a round, three in each of the timed_rounds, and
            one more a round where a logits processor reads the drafts.
        policy: the depth that was chosen last, and why; "" where the depth was given.
        longest_pause_s: the longest time from the end of a round to the end of the next.
        tokens_by_sequences: at i, the generated tokens of rounds whose pass i + 1 turns shared.
    """

    prompt_tokens: int
    reused_tokens: int
    tokens: int
    rounds: int
    drafted: int
    accepted: int
    tokens_per_round: float
    acceptance_by_depth: tuple[float, ...]
    ttft_s: float
    prefill_tps: float
    decode_tps: float
    draft_s: float
    verify_s: float
    other_s: float
    peak_memory_bytes: int
    evaluations: int
    timed_rounds: int
    drafted_by_depth: tuple[int, ...] = ()
    policy: str = ""
    looked_up: int = 0
    looked_up_accepted: int = 0
    narrowed: int = 0
    longest_pause_s: float = 0.0
    tokens_by_sequences: tuple[int, ...] = ()

    @property
    def accepted_by_depth(self) -> tuple[int, ...]:
        """The number of accepted drafts of the head at each depth."""
        shares = zip(self.acceptance_by_depth, self.drafted_by_depth, strict=True)
        return tuple(round(share * drafted) for share, drafted in shares)

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON types."""
        return asdict(self) | {name: list(getattr(self, name)) for name in _LISTS}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """The record that `to_dict` returned, perhaps in an earlier version."""
        return cls(**{**content, **{name: tuple(content.get(name, ())) for name in _LISTS}})


_LISTS = ("acceptance_by_depth", "drafted_by_depth", "tokens_by_sequences")


class StatsAccumulator:
    """Adds up the rounds of a turn.

    Args:
        prompt_tokens: tokens that the prompt has. reused: of them, in the caches already.
        started: clock at the request, in seconds; the other clocks are on the same scale.
    """

    def __init__(self, prompt_tokens: int, started: float, reused: int = 0) -> None:
        self._prompt_tokens = prompt_tokens
        self._reused = reused
        self._started = self._prefilled = self._first = self._last = started
        self._tokens = self._first_tokens = self._rounds = self._evaluations = 0
        self._drafted: list[int] = []
        self._accepted: list[int] = []
        self._looked_up = self._looked_up_accepted = self._narrowed = 0
        self._phases: list[PhaseTimes] = []
        self._longest_pause_s = 0.0
        self._by_sequences: list[int] = []

    def prefilled(self, clock: float) -> None:
        """The prompt has been read."""
        self._prefilled = clock

    def add(self, one: Round, clock: float) -> None:
        """A round ended at `clock`."""
        if not self._rounds:
            self._first, self._first_tokens = clock, len(one.tokens)
        else:
            self._longest_pause_s = max(self._longest_pause_s, clock - self._last)
        self._last = clock
        self._rounds += 1
        self._tokens += len(one.tokens)
        self._by_sequences.extend([0] * (one.num_sequences - len(self._by_sequences)))
        self._by_sequences[one.num_sequences - 1] += len(one.tokens)
        self._evaluations += one.evaluations
        if one.from_lookup:
            self._looked_up += one.drafted
            self._looked_up_accepted += one.accepted
        else:
            self._count(one)
            self._narrowed += one.drafted * one.narrowed
        if one.phases:
            self._phases.append(one.phases)

    def stats(self, peak_memory_bytes: int, policy: str = "") -> Stats:
        """The turn so far."""
        decode_s = self._last - self._first
        accepted = self._accepted + [0] * (len(self._drafted) - len(self._accepted))
        draft_s, verify_s, other_s = self._split(decode_s)
        return Stats(
            prompt_tokens=self._prompt_tokens,
            reused_tokens=self._reused,
            tokens=self._tokens,
            rounds=self._rounds,
            drafted=sum(self._drafted),
            accepted=sum(accepted),
            tokens_per_round=_ratio(self._tokens, self._rounds),
            acceptance_by_depth=tuple(_ratio(a, d) for a, d in zip(accepted, self._drafted, strict=True)),
            ttft_s=self._first - self._started,
            prefill_tps=_ratio(self._prompt_tokens - self._reused, self._prefilled - self._started),
            decode_tps=_ratio(self._tokens - self._first_tokens, decode_s),
            draft_s=draft_s,
            verify_s=verify_s,
            other_s=other_s,
            peak_memory_bytes=peak_memory_bytes,
            evaluations=self._evaluations,
            timed_rounds=len(self._phases),
            drafted_by_depth=tuple(self._drafted),
            policy=policy,
            looked_up=self._looked_up,
            looked_up_accepted=self._looked_up_accepted,
            narrowed=self._narrowed,
            longest_pause_s=self._longest_pause_s,
            tokens_by_sequences=tuple(self._by_sequences),
        )

    def _count(self, one: Round) -> None:
        for counts, n in ((self._drafted, one.drafted), (self._accepted, one.accepted)):
            counts.extend([0] * (n - len(counts)))
            for i in range(n):
                counts[i] += 1

    def _split(self, decode_s: float) -> tuple[float, float, float]:
        if not self._phases:
            return 0.0, decode_s, 0.0
        draft = sum(p.draft_s for p in self._phases)
        verify = sum(p.verify_s for p in self._phases)
        total = draft + verify + sum(p.other_s for p in self._phases)
        return (
            decode_s * draft / total,
            decode_s * verify / total,
            decode_s * (total - draft - verify) / total,
        )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0
