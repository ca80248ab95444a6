"""The same greedy text with and without MTP, and where the two part."""

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

SLACK = 4.0
"""How much wider than the probe's largest difference a gap may be that rounding has closed: two logits move by it, and
the text is not the probe's."""


@dataclass(frozen=True)
class GreedyRun:
    """Both texts, as far as they are the same.

    Args:
        tokens: how many are; all that were asked for, or those before the first that differs.
        gap: there, what lies between plain decoding's two best log-probabilities; None: nothing differs.
    """

    tokens: int
    gap: float | None = None

    @property
    def same(self) -> bool:
        return self.gap is None

    def near_tie(self, difference: float) -> bool:
        """Whether rounding explains where the texts part, given by how much it moves logits."""
        return self.gap is not None and self.gap <= SLACK * difference


def greedy_run(
    target: Target,
    head: Head,
    prompt: list[int],
    depth: int,
    count: int,
    tell: Callable[[int, int], None] | None = None,
) -> GreedyRun:
    """Decode `count` tokens behind a prompt plainly and with drafts, past end tokens, until they differ.

    Args:
        tell: told (done, total) tokens.

    Raises:
        NumericsError: the model's logits are not finite.
    """
    read = Sequence(target, head)
    read.prefill(prompt)
    plainly = read.fork()
    plainly.drafting = False
    law = Sampling()
    plain = generate(target, None, plainly, Sampler(law), FixedDepth(0), never_stop, count, 2)
    drafted = generate(target, MTPChain(head), read, Sampler(law), FixedDepth(depth), never_stop, count, 2)
    for done, (one, other) in enumerate(zip(_tokens(plain), _tokens(drafted), strict=True)):
        if one.token != other.token:
            (_, best), (_, second) = one.top[:2]
            return GreedyRun(done, best - second)
        if tell:
            tell(done + 1, count)
    return GreedyRun(count)


def _tokens(rounds: Iterable[Round]) -> Iterator[TokenLogprob]:
    for one in rounds:
        yield from one.logprobs
