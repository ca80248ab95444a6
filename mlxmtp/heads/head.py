"""The interface of a head, and what most families share."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx

from mlxmtp.heads.draft_output import DraftOutput
from mlxmtp.targets import Cache, HiddenSide, share_attention


class Head(Protocol):
    """A draft model that reads a target's hidden states.

    Row p takes the target's hidden state of token p and token p + 1, and predicts token p + 2
    (DeepSeek-V3, 2412.19437, section 2.2; docs/families.md).

    Attributes:
        family: the name of its family.
        has_kv_cache: True: its cache has one row per pair, and it must read every pair. False: it reads the target's
            keys and values, and only the newest pair counts.
        convention: one of its family's `conventions`.
    """

    family: str
    has_kv_cache: bool
    convention: Any

    @property
    def hidden_at(self) -> HiddenSide:
        """Which hidden states of the target it reads."""

    def make_cache(self, target_cache: Cache) -> Cache:
        """Return an empty cache for the sequence in `target_cache`."""

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        """Run the head over hidden states [B, T, H] and the tokens [B, T] after them; return states [B, T, _].

        `logits` and `next_hidden` take these states. At depth 1, `hidden` is the target's; at the next depth it is what
        `next_hidden` returned.
        """

    def logits(self, states: mx.array) -> mx.array:
        """Return logits [B, T, V] of the states that a call returned; -inf for tokens that are never drafted."""

    def next_hidden(self, states: mx.array) -> mx.array:
        """Return the hidden states [B, T, H] for the next depth."""

    def prepare(self) -> None:
        """Patch the head's modules; its weights are loaded."""

    def restrict_vocab(self, tokens: Sequence[int]) -> None:
        """Draft only these tokens from now on.

        Raises:
            OptionError: the head restricts its vocabulary by itself.
        """


@dataclass(frozen=True)
class Convention:
    """Which hidden states a head reads: before or after a norm.

    Args:
        fed: the target's, relative to its final norm.
        recycled: the head's own at the next depth, relative to its last norm.
    """

    fed: HiddenSide = "post"
    recycled: HiddenSide = "post"


CONVENTIONS = (Convention(), Convention(recycled="pre"), Convention(fed="pre"), Convention(fed="pre", recycled="pre"))


class Recursion:
    """The common part of heads whose last norm is between their block and the output matrix.

    A subclass calls `normed` twice: on the block's output with `for_logits=False`, and in `logits` with
    `for_logits=True`. Together they apply the norm once, before or after the states are returned, by `convention`.
    """

    has_kv_cache = True
    convention = CONVENTIONS[0]
    draft_output: DraftOutput | None = None
    """The restricted output matrix, after `restrict_vocab`."""

    @property
    @abstractmethod
    def output(self) -> Any:
        """The module of the output matrix."""

    @property
    def hidden_at(self) -> HiddenSide:
        return self.convention.fed

    def restrict_vocab(self, tokens: Sequence[int]) -> None:
        """Draft only these tokens from now on."""
        self.draft_output = DraftOutput(self.output, tokens)

    @abstractmethod
    def logits(self, states: mx.array) -> mx.array:
        """Return logits as `Head.logits`, by `draft_output` where it is set."""

    def logits_with(self, output: DraftOutput, states: mx.array) -> mx.array:
        """Return logits by another restriction of the output matrix, for this call."""
        own, self.draft_output = self.draft_output, output
        try:
            return self.logits(states)
        finally:
            self.draft_output = own

    def prepare(self) -> None:
        """Let several sequences share a pass."""
        share_attention(self.modules())  # type: ignore[attr-defined]

    def normed(self, states: mx.array, norm: Any, *, for_logits: bool) -> mx.array:
        """Apply the last norm where `convention` puts it: to returned states, or only to the logits' input."""
        here = for_logits == (self.convention.recycled == "pre")
        return norm(states) if here else states

    def next_hidden(self, states: mx.array) -> mx.array:
        return states
