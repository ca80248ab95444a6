"""Whether a head belongs to its trunk: a fine-tune may have moved the trunk away from the head that its files hold.

First drafts that are rejected raise a suspicion. They prove nothing, for penalties, grammars and temperatures reject
drafts of good heads too. A text of the model decides: at each position the head's likeliest token is compared with the
trunk's, as in `mlxmtp inspect --check`.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

from mlxmtp.decoding.stats import Round
from mlxmtp.heads import Head, self_check
from mlxmtp.heads.check import MIN_ACCEPTANCE
from mlxmtp.targets import Target

SUSPICIOUS_DRAFTS = 5
"""First drafts before a text is compared: `--depth auto` stops drafting after six that are rejected."""
COMPARED_TOKENS = 256
"""Tokens of a text that are compared: one pass, and logits of so many rows twice."""
FALSE_ALARM = 1e-6
"""Probability that a head of acceptance `MIN_ACCEPTANCE` is called another model's; less for a better one."""
MAX_COMPARISONS = 4
"""Texts that are compared where the first ones do not decide."""


class HeadFit:
    """Watches a head.

    Args:
        head: None: it is not judged. That of several ranks is not, since all would have to compare; nor one with a
            draft vocabulary that the user chose, which may lack the text's tokens.
    """

    def __init__(self, target: Target, head: Head | None) -> None:
        self._target, self._head = target, head
        self._drafts = self._accepted = self._comparisons = 0
        self._compared = self._agreed = 0
        self._text: list[int] = []

    def observe(self, round: Round) -> None:
        """Count the first draft of a round. Drafts from a narrowed vocabulary are rejected for what it lacks."""
        if round.drafted and not round.from_lookup and not round.narrowed:
            self._drafts += 1
            self._accepted += round.accepted > 0

    def end_turn(self, tokens: Sequence[int]) -> None:
        """A turn has ended with these tokens, its prompt included."""
        self._text = list(tokens[-COMPARED_TOKENS:])

    def warning(self) -> str | None:
        """Return that the head is another model's, once; None: it is not, or that is not known.

        Where first drafts are suspicious, the text of the last turn is compared.
        """
        few = self._drafts < SUSPICIOUS_DRAFTS or self._accepted >= MIN_ACCEPTANCE * self._drafts
        if self._head is None or few or self._comparisons >= MAX_COMPARISONS or len(self._text) < 3:
            return None
        text, self._text = self._text, []
        self._comparisons += 1
        self._compared += len(text) - 2
        self._agreed += round(self_check(self._target, self._head, text).acceptance * (len(text) - 2))
        if at_most(self._agreed, self._compared, MIN_ACCEPTANCE) > FALSE_ALARM:
            return None
        self._comparisons = MAX_COMPARISONS
        return (
            f"the head's first drafts are the model's own tokens at {self._agreed / self._compared:.0%} of "
            f"{self._compared} positions, those of a head that fits at {MIN_ACCEPTANCE:.0%} or more: it does not "
            "belong to this model, which may be a fine-tune; --head BASE tries the head of its base, --no-mtp drops it"
        )


def at_most(successes: int, trials: int, probability: float) -> float:
    """Return the probability of at most so many successes in independent trials: the lower tail of the binomial."""
    rest = 1 - probability
    return sum(comb(trials, k) * probability**k * rest ** (trials - k) for k in range(successes + 1))
