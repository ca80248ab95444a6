"""What the engine asks of a head, whatever its family."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlxmtp.heads.draft_output import DraftOutput
from mlxmtp.targets import Cache, HiddenSide


class Head(Protocol):
    """A draft model on top of a target's hidden states.

    Row p pairs the target's hidden state of token p with token p + 1 and predicts token p + 2 (families.md 0.1).

    Args:
        has_kv_cache: its cache holds one row for each pair that it was fed, and must be fed them all; otherwise it
            reads the target's keys and values, and only the newest pair counts.
        hidden_at: which hidden states of the target it is fed.
        reading: how it is read where references disagree, one of its family's `readings`.
    """

    family: str
    has_kv_cache: bool
    convention: Any

    @property
    def hidden_at(self) -> HiddenSide: ...

    def make_cache(self, target_cache: Cache) -> Cache:
        """An empty cache for the sequence that the target keeps in `target_cache`."""

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        """Feed rows: hidden [B, T, H] with the tokens [B, T] that follow them; returns states for the two below.

        True rows take the target's hidden states; the row of the next draft takes what `next_hidden` returns.
        """

    def logits(self, states: mx.array) -> mx.array:
        """Logits [B, T, V] of the states that a call returned; -inf where a token is never drafted."""

    def next_hidden(self, states: mx.array) -> mx.array:
        """The hidden states [B, T, H] that go on to the next depth."""

    def restrict_vocab(self, tokens: Sequence[int]) -> None:
        """From now on draft these tokens only.

        Raises:
            OptionError: the head chooses among fewer tokens by itself.
        """


@dataclass(frozen=True)
class Convention:
    """Hidden states before or after a norm (families.md 0.2).

    Args:
        fed: the target's, with regard to its final norm. recycled: the head's own, with regard to its last norm.
    """

    fed: HiddenSide = "post"
    recycled: HiddenSide = "post"


CONVENTIONS = (Convention(), Convention(recycled="pre"), Convention(fed="pre"), Convention(fed="pre", recycled="pre"))


class Recursion:
    """What heads share whose last norm stands between their block and the output matrix."""

    has_kv_cache = True
    convention = CONVENTIONS[0]
    _narrowed: DraftOutput | None = None

    @property
    @abstractmethod
    def output(self) -> Any:
        """The module of the output matrix."""

    @property
    def hidden_at(self) -> HiddenSide:
        return self.convention.fed

    def restrict_vocab(self, tokens: Sequence[int]) -> None:
        self._narrowed = DraftOutput(self.output, tokens)

    def normed(self, states: mx.array, norm: Any, *, for_logits: bool) -> mx.array:
        """The last norm, before the states are given out, or, where those are recycled without, before the logits."""
        here = for_logits == (self.convention.recycled == "pre")
        return norm(states) if here else states

    def next_hidden(self, states: mx.array) -> mx.array:
        return states
