"""A draft vocabulary that follows the text, for heads that share a large output matrix.

The lowest ids are the most frequent merges of a tokenizer, but not the most frequent tokens of a text: they miss 4 to
30 % of it. With the tokens that occurred before, 1 to 4 % are missed (docs/decoding.md, "Draft vocabulary").
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxmtp.heads.draft_output import DraftOutput
from mlxmtp.heads.head import Head, Recursion
from mlxmtp.heads.several import layers_of
from mlxmtp.targets import Target

FIRST_TOKENS = 32_768
"""The ids below it are always in the vocabulary. Half as many miss half as many tokens again."""
MAX_OTHERS = 4096
"""Other ids, the newest of those that occurred: 4 to 12 MB of rows. 200 000 tokens of text have up to 2,400 of them."""
MIN_SAVING = 0.1
"""Share of a draft step's bytes. Drafts take less than half of a round: below this, a round would gain less than 5 %,
which is what the missed tokens cost."""
ROW_MULTIPLE = 64
"""The number of copied rows is a multiple of it: MLX has slower products for odd shapes."""


class DraftVocabulary:
    """The token ids that narrowed drafts may be: the first, the special ones, and those that occurred lately.

    Args:
        first: the ids below it.
        special: ids that are never dropped.
        max_saving: share of a draft step's bytes that is left out with them.
    """

    def __init__(self, first: int, special: Iterable[int] = (), max_saving: float = 1.0) -> None:
        self.first = first
        self.max_saving = max_saving
        self._special = tuple(sorted({token for token in special if token >= first}))
        self._recent: dict[int, None] = {}
        self._known = set(self._special)
        self._changes = 0

    def __contains__(self, token: int) -> bool:
        return token < self.first or token in self._known

    def __len__(self) -> int:
        return self.first + len(self._known)

    @property
    def changes(self) -> int:
        """How often `others` changed."""
        return self._changes

    @property
    def others(self) -> list[int]:
        """The ids from `first` on."""
        return [*self._special, *self._recent]

    def add(self, tokens: Iterable[int]) -> None:
        """Take in tokens of the text. Of those that are not there yet, the newest MAX_OTHERS stay."""
        for token in tokens:
            if token in self:
                continue
            self._known.add(token)
            self._recent[token] = None
            self._changes += 1
            if len(self._recent) > MAX_OTHERS:
                oldest = next(iter(self._recent))
                del self._recent[oldest]
                self._known.remove(oldest)


class NarrowedLogits:
    """The logits of a head's layers over a draft vocabulary. No row is copied before the first call.

    Args:
        vocabulary: may change between calls.
    """

    def __init__(self, vocabulary: DraftVocabulary) -> None:
        self.vocabulary = vocabulary
        self._outputs: dict[int, DraftOutput] = {}
        self._changes = -1

    def __call__(self, layer: Recursion, states: mx.array) -> mx.array:
        """Return logits [B, T, V] of the states that a layer returned; -inf for tokens outside the vocabulary."""
        if self._changes != self.vocabulary.changes:
            for output in self._outputs.values():
                output.choose(self._others)
        self._changes = self.vocabulary.changes
        output = self._outputs.get(id(layer.output)) or DraftOutput(layer.output, self._others, self.vocabulary.first)
        self._outputs[id(layer.output)] = output
        return layer.logits_with(output, states)

    @property
    def _others(self) -> list[int]:
        others = self.vocabulary.others or [0]
        return others + others[:1] * (-len(others) % ROW_MULTIPLE)


def narrowed_logits(head: Head, target: Target, special: Iterable[int]) -> NarrowedLogits | None:
    """Return a head's logits over a narrowed vocabulary; None: it would leave too few bytes of a draft step out.

    Args:
        special: ids that end turns or open calls.
    """
    layer = layers_of(head)[0]
    if not isinstance(layer, Recursion):
        return None
    matrix = layer.output
    vocab_size = matrix["weight"].shape[0]
    matrix_bytes = _nbytes(matrix)
    others = 0 if matrix is target.output else matrix_bytes
    args = target.text_model.args
    experts = getattr(args, "num_experts_per_tok", 0) or getattr(args, "num_experts_per_token", 0)  # the latter: Kimi's
    step_bytes = matrix_bytes + _nbytes(layer, experts) - others
    saving = matrix_bytes * (1 - (FIRST_TOKENS + MAX_OTHERS) / vocab_size) / step_bytes
    if saving < MIN_SAVING:
        return None
    return NarrowedLogits(DraftVocabulary(FIRST_TOKENS, (t for t in special if t < vocab_size), saving))


def _nbytes(module: Any, experts: int = 0) -> float:
    """Return the bytes of a module that a token reads; of stacked experts it reads this many."""
    flat: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    read = {name: min(experts / array.shape[0], 1) if "switch_mlp" in name and experts else 1 for name, array in flat}
    return sum(read[name] * array.nbytes for name, array in flat)
