"""Check that a head drafts for its trunk better than chance: a wrong format raises no error, it lowers acceptance."""

from dataclasses import dataclass

import mlx.core as mx

from mlxmtp.errors import PromptError
from mlxmtp.heads.head import Head
from mlxmtp.targets import Target, check_ids

MIN_ACCEPTANCE = 0.2
"""The part of first drafts that is accepted; below it a head costs more time than it saves."""
TEXT = (
    "The quick way to learn how something works is to take it apart and to put it together again. "
    "First, write down what each part does. Then, write down what you expect to happen when it is missing. "
    "If the result is not what you expected, you have learned something. If the result is what you expected, "
    "you have learned that you can trust your notes.\n\n"
    "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n"
    "    return total / len(values)\n"
)


@dataclass(frozen=True)
class SelfCheck:
    """The result of a check.

    Args:
        finite: whether all of the head's logits are finite.
        acceptance: the part of first drafts over a text that greedy verification accepts.
    """

    finite: bool
    acceptance: float

    @property
    def warning(self) -> str | None:
        """What is wrong, or None."""
        if not self.finite:
            return "the head's logits are not finite: its weights are damaged, or read in a wrong format"
        if self.acceptance < MIN_ACCEPTANCE:
            return (
                f"the trunk takes only {self.acceptance:.0%} of the head's drafts on a short text: "
                "they may not belong together, or the head was read in a wrong format"
            )
        return None


def self_check(target: Target, head: Head, tokens: list[int]) -> SelfCheck:
    """Run trunk and head over a text, and compare their likeliest tokens at each position.

    Raises:
        PromptError: the text has less than three tokens, or one that the embedding has no row for.
    """
    check_ids(tokens, target.vocab_size)
    if len(tokens) < 3:
        raise PromptError(f"the text has {len(tokens)} tokens; expected 3 or more")
    ids, cache = mx.array([tokens]), target.make_cache()
    logits, hidden = target.forward(ids[:, :-1], cache)
    drafts = head.logits(head(hidden, ids[:, 1:], head.make_cache(cache)))
    # -inf is allowed: a token that is never drafted
    finite = mx.all(mx.isfinite(mx.logsumexp(drafts, axis=-1)))
    agree = mx.mean(mx.argmax(drafts[:, :-1], axis=-1) == mx.argmax(logits[:, 1:], axis=-1))
    mx.eval(finite, agree)
    return SelfCheck(bool(finite), float(agree))
