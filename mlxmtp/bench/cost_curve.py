"""Measure the cost of a round on this machine: passes of the target, draft steps, and the overhead."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import mlx.core as mx

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.heads.several import LayerChain

if TYPE_CHECKING:
    from mlxmtp.decoding.sequence import Sequence
    from mlxmtp.heads import Head
    from mlxmtp.targets import Target

STEPS = 2
"""Draft steps by which two timed chains differ. Their difference leaves out the wait that both have."""
ROUND_DEPTH = 3
"""Drafts of a timed round, at most."""
SPARE_ROUNDS = 8
"""Rounds beyond the counted ones: the first two are not counted, nor is one in 64, which is evaluated by phase."""


@dataclass(frozen=True)
class CostCurve:
    """The cost of a round at one context length.

    Args:
        context: tokens in the caches. For the median of several curves, their mean.
        pass_s: seconds of a pass of the target over m tokens, at index m - 1.
        draft_s: seconds of a draft step. 0.0 without a head.
        overhead_s: seconds of a round besides its pass and its draft steps. 0.0 without a head.
    """

    context: float
    pass_s: tuple[float, ...]
    draft_s: float
    overhead_s: float

    @property
    def curve(self) -> tuple[float, ...]:
        """C(m): the cost of a pass over m tokens, in passes over one token."""
        return tuple(seconds / self.pass_s[0] for seconds in self.pass_s)

    @property
    def draft_cost(self) -> float:
        """The cost of a draft step, in passes over one token: c of Leviathan et al. 2023 (arXiv:2211.17192)."""
        return self.draft_s / self.pass_s[0]

    def to_dict(self) -> dict[str, Any]:
        """Return the curve as JSON values."""
        return {"context": self.context, "rows": list(self.pass_s), "draft": self.draft_s, "other": self.overhead_s}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Self:
        """Return the curve of `to_dict`."""
        return cls(content["context"], tuple(content["rows"]), content["draft"], content["other"])


def measure_cost(target: Target, head: Head | None, sequence: Sequence, max_tokens: int, repeats: int = 5) -> CostCurve:
    """Return the median times of passes over 1 to `max_tokens` tokens, of draft steps, and of whole greedy rounds.

    All are timed in turn, so that drift of the machine affects them alike. The first turn is not counted. The sequence
    is not changed.

    Args:
        target: a reversible target.
        head: the head of `sequence`, with a pending hidden state. None: only passes are timed.
        repeats: turns that are counted.

    Raises:
        ValueError: `max_tokens` or `repeats` is below 1, or nothing is pending for the head.
    """
    if max_tokens < 1 or repeats < 1:
        raise ValueError(f"max_tokens is {max_tokens} and repeats {repeats}; expected at least 1")
    fork = sequence.fork()
    chain = _Chain(head, fork) if head else None
    depth = min(ROUND_DEPTH, max_tokens - 1)
    count = (2 * repeats + SPARE_ROUNDS) * (depth + 1)
    rounds = _rounds(target, head, sequence.fork(), depth, count) if head and depth else None
    measured: list[tuple[float, ...]] = []
    for _ in range(repeats + 1):
        passes = [_time_pass(target, fork, num_tokens) for num_tokens in range(1, max_tokens + 1)]
        draft = chain.time_step() if chain else 0.0
        overhead = next(rounds) - passes[depth] - depth * draft if rounds else 0.0
        measured.append((*passes, draft, overhead))
    *medians, draft, overhead = map(statistics.median, zip(*measured[1:], strict=True))
    return CostCurve(len(sequence.tokens), tuple(medians), max(0.0, draft), max(0.0, overhead))


def _time_pass(target: Target, sequence: Sequence, num_tokens: int) -> float:
    """Return the seconds of a pass, and take the pass back.

    The input is the text's own tokens, because the time of experts depends on the tokens.
    """
    text = sequence.tokens[-num_tokens:]
    tokens = mx.array([(text * num_tokens)[:num_tokens]])
    start = time.perf_counter()
    forward = target.open(tokens, sequence.cache)
    mx.eval(forward.logits)
    seconds = time.perf_counter() - start
    forward.commit(0)
    return seconds


class _Chain:
    """Draft steps after the first one, which reads the pending hidden states."""

    def __init__(self, head: Head, sequence: Sequence) -> None:
        pending = sequence.take_pending()
        if pending is None:
            raise ValueError("nothing is pending for the head; expected a sequence that it goes along with")
        hidden, tokens = pending
        self._chain = LayerChain(head, [sequence.head_cache])
        self._token = self._newest(self._chain.begin([hidden], [tokens]))
        mx.eval(self._token)

    def time_step(self) -> float:
        """Return the seconds of a further step in a chain."""
        one_step = self._time(1)
        return (self._time(1 + STEPS) - one_step) / STEPS

    def _time(self, steps: int) -> float:
        tokens = [self._token]
        start = time.perf_counter()
        for _ in range(steps):
            tokens.append(self._newest(self._chain.draft([tokens])))
            mx.async_eval(tokens[-1])
        mx.eval(tokens[-1])
        seconds = time.perf_counter() - start
        self._chain.take_back()
        return seconds

    def _newest(self, states: list[mx.array]) -> mx.array:
        return mx.argmax(self._chain.layer.logits(states[0]), axis=-1)


def _rounds(target: Target, head: Head, sequence: Sequence, depth: int, tokens: int) -> Iterator[float]:
    """Yield the seconds of greedy rounds, without the turn's first round and those that are evaluated by phase."""
    rounds = generate(target, MTPChain(head), sequence, Sampler(Sampling()), FixedDepth(depth), never_stop, tokens)
    next(rounds)
    while True:
        start = time.perf_counter()
        round = next(rounds)
        if round.phases is None:
            yield time.perf_counter() - start
