"""Decode one greedy text with and without MTP, and find the first token that differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlxmtp.decoding.depth import FixedDepth
from mlxmtp.decoding.draft import MTPChain
from mlxmtp.decoding.loop import generate, never_stop
from mlxmtp.decoding.sampler import Sampler
from mlxmtp.decoding.sampling import Sampling
from mlxmtp.decoding.sequence import Sequence

if TYPE_CHECKING:
    from mlxmtp.decoding.stats import Round, TokenLogprob
    from mlxmtp.heads import Head
    from mlxmtp.targets import Target

NEAR_TIE_FACTOR = 4.0
"""A gap up to this multiple of the probe's largest difference counts as a near-tie: both logits of the tie move by
rounding, and the text is not the probe's."""


@dataclass(frozen=True)
class GreedyRun:
    """The common beginning of both texts.

    Args:
        tokens: its length; the requested length if nothing differs.
        gap: between plain decoding's two best log-probabilities, in nats, at the first token that differs; None: no
            token differs.
    """

    tokens: int
    gap: float | None = None

    @property
    def same(self) -> bool:
        return self.gap is None

    def near_tie(self, difference: float) -> bool:
        """Return whether rounding that moves logits by `difference` explains the token that differs."""
        return self.gap is not None and self.gap <= NEAR_TIE_FACTOR * difference


def greedy_run(
    target: Target,
    head: Head,
    prompt: list[int],
    depth: int,
    count: int,
    on_progress: Callable[[int, int], None] | None = None,
) -> GreedyRun:
    """Decode `count` tokens after a prompt plainly and with drafts, past end tokens, until a token differs.

    Args:
        on_progress: called with (done, total) tokens.

    Raises:
        NumericsError: the model's logits are not finite.
    """
    sequence = Sequence(target, head)
    sequence.prefill(prompt)
    fork = sequence.fork()
    fork.drafting = False
    greedy = Sampling()
    plain = generate(target, None, fork, Sampler(greedy), FixedDepth(0), never_stop, count, 2)
    drafted = generate(target, MTPChain(head), sequence, Sampler(greedy), FixedDepth(depth), never_stop, count, 2)
    for done, (one, other) in enumerate(zip(_tokens(plain), _tokens(drafted), strict=True)):
        if one.token != other.token:
            (_, best), (_, second) = one.top[:2]
            return GreedyRun(done, best - second)
        if on_progress:
            on_progress(done + 1, count)
    return GreedyRun(count)


def _tokens(rounds: Iterable[Round]) -> Iterator[TokenLogprob]:
    for one in rounds:
        yield from one.logprobs
