"""Heads of several layers, which draft in turn: layer k makes draft k + 1, and the last layer all after it.

    y^0_p = layer_0(h_p, x_{p+1}),  y^k_p = layer_k(y^{k-1}_p, x_{p+1+k}),  y^k_p predicts x_{p+2+k}

Layer k reads its row p when x_{p+1+k} is known, one token later than layer k - 1. So it has read k rows less than layer
0, and one row of what layer k - 1 passes on waits for the next token. That token may be a draft: at draft step k, layer
k reads the row that waits, and those that layer k - 1 made of earlier drafts. A head of one layer is its own last layer
from the first draft on, which is the usual recursion.
Source: DeepSeek-V3 (2412.19437), section 2.2; vLLM takes layer = step too, and begins again after the last.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ArraysCache

from mlxmtp.errors import HeadError
from mlxmtp.heads.head import Convention, Head
from mlxmtp.heads.layer import LayerHead
from mlxmtp.targets import Cache, HiddenSide, leaf_caches, shared_cache

_LAYER = re.compile(r"layers\.(\d{1,4})\.(.+)")


@dataclass(frozen=True)
class LayerConvention(Convention):
    """How the layers of a head go together.

    Args:
        layers: "chained": layer k reads what layer k - 1 passes on; "target": each layer reads the target's hidden
            states; "first": the first layer alone, as a recursion.
    """

    layers: Literal["chained", "target", "first"] = "chained"


class SeveralLayers(nn.Module):
    """A head of several layers.

    Its cache has an entry for each layer, and one for the rows that wait: that of layer k is its array k - 1.

    Args:
        heads: its layers in order, each as a head.
    """

    has_kv_cache = True

    def __init__(self, heads: Sequence[LayerHead]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.family = heads[0].family
        self.layers = [head.layers[0] for head in heads]
        self._heads = tuple(heads)
        self.convention = LayerConvention()

    @property
    def convention(self) -> LayerConvention:
        return self._convention

    @convention.setter
    def convention(self, convention: LayerConvention) -> None:
        self._convention = convention
        for head in self._heads:
            head.convention = convention

    @property
    def in_turn(self) -> tuple[LayerHead, ...]:
        """The layers that draft, each as a head."""
        return self._heads[:1] if self.convention.layers == "first" else self._heads

    @property
    def hidden_at(self) -> HiddenSide:
        return self.convention.fed

    def make_cache(self, target_cache: Cache) -> Cache:
        waiting: Any = ArraysCache(len(self._heads) - 1)
        return [entry for head in self._heads for entry in head.make_cache(target_cache)] + [waiting]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        """Have every layer read the target's hidden states and the tokens after them; return the first's states."""
        return LayerChain(self, [cache]).read([hidden], [tokens])[0]

    def logits(self, states: mx.array) -> mx.array:
        return self._heads[0].logits(states)

    def next_hidden(self, states: mx.array) -> mx.array:
        return self._heads[0].next_hidden(states)

    def prepare(self) -> None:
        for head in self._heads:
            head.prepare()

    def restrict_vocab(self, tokens: Sequence[int]) -> None:
        for head in self._heads:
            head.restrict_vocab(tokens)


def layers_of(head: Head) -> Sequence[Head]:
    """Return the layers that draft in turn, each as a head; of a head of one layer the head itself."""
    return head.in_turn if isinstance(head, SeveralLayers) else (head,)


def split_layers(weights: Mapping[str, mx.array], declared: int = 0) -> list[dict[str, mx.array]]:
    """Return the tensors of each layer by their names inside it.

    Args:
        weights: by names such as "layers.1.eh_proj.weight".
        declared: layers that the config declares.

    Raises:
        HeadError: a layer is missing, or a tensor belongs to none.
    """
    layers: dict[int, dict[str, mx.array]] = {}
    for name, weight in weights.items():
        match = _LAYER.fullmatch(name)
        if match is None:
            raise HeadError(f"the head has an unknown tensor {name} {weight.shape}")
        layers.setdefault(int(match[1]), {})[match[2]] = weight
    count = max([declared, *(number + 1 for number in layers)])
    if missing := sorted(set(range(count)) - layers.keys()):
        raise HeadError(f"the head's layer {missing[0]} of {count} is missing; download the model again")
    return [layers[number] for number in range(count)]


class LayerChain:
    """A head's layers in turn over rows of several sequences: rows of the target, then rows of drafts, taken back last.

    Lists have one array [1, n, ...] for each sequence, and all sequences share each pass.

    Args:
        head: of one layer or several.
        caches: the head's, one for each sequence.

    Attributes:
        layer: the layer that made the newest states, as a head: it has their logits.
    """

    def __init__(self, head: Head, caches: Sequence[Cache]) -> None:
        self._several = isinstance(head, SeveralLayers)
        self._layers = layers_of(head)
        self._to_all = isinstance(head, SeveralLayers) and head.convention.layers == "target"
        self._caches = caches
        self._hidden: list[mx.array] = []
        self._states: list[mx.array] = []
        self._before: list[tuple[Any, int]] = []
        self.layer = self._layers[0]

    def begin(self, hidden: list[mx.array], tokens: list[mx.array]) -> list[mx.array]:
        """Read as `read` does; return the states of the newest row alone, which make the first draft."""
        if len(self._layers) == 1:  # of older rows the cache is needed, and their outputs are never evaluated
            self.read([rows[:, :-1] for rows in hidden], [own[:, :-1] for own in tokens])
            hidden, tokens = [_last(rows, 1) for rows in hidden], [_last(own, 1) for own in tokens]
        return [_last(own, 1) for own in self.read(hidden, tokens)]

    def read(self, hidden: list[mx.array], tokens: list[mx.array]) -> list[mx.array]:
        """Have every layer read the target's hidden states and the tokens after them; return the first's states."""
        states = first = self._run(0, hidden, tokens)
        for k in range(1, len(self._layers)):
            passed = self._passed_on(k - 1, hidden, states)
            hidden = [_delayed(cache[-1], k - 1, rows) for cache, rows in zip(self._caches, passed, strict=True)]
            states = self._run(k, hidden, tokens)
        self.layer, self._states = self._layers[0], first
        return first

    def draft(self, drafts: Sequence[Sequence[mx.array]]) -> list[mx.array]:
        """Return the states [1, 1, ...] that make the next draft.

        Args:
            drafts: each sequence's drafts [1, 1] so far: as many of each.
        """
        step, last = len(drafts[0]), len(self._layers) - 1
        if step == 1:
            leaves = leaf_caches(entry for cache in self._caches for entry in cache)
            self._before = [(leaf, leaf.offset) for leaf in leaves if hasattr(leaf, "offset")]
        if step > last:  # the layer reads its own output
            hidden = [self.layer.next_hidden(_last(own, 1)) for own in self._states]
        else:
            hidden = [cache[-1][step - 1] for cache in self._caches]
            if step > 1:
                passed = self._passed_on(step - 1, self._hidden, self._states)
                hidden = [_appended(waits, rows) for waits, rows in zip(hidden, passed, strict=True)]
        tokens = [_joined(own[-rows.shape[1] :]) for own, rows in zip(drafts, hidden, strict=True)]
        self._hidden, self._states = hidden, self._run(min(step, last), hidden, tokens)
        return [_last(own, 1) for own in self._states]

    def take_back(self) -> None:
        """Drop the rows of drafts from the caches."""
        for leaf, offset in self._before:
            leaf.trim(leaf.offset - offset)
        if self._several:  # drafts evaluate the layers that made them, and no other
            leaves = leaf_caches(entry for cache in self._caches for entry in cache[:-1])
            mx.async_eval([(leaf.keys, leaf.values) for leaf in leaves if leaf.offset])

    def _run(self, k: int, hidden: list[mx.array], tokens: list[mx.array]) -> list[mx.array]:
        """Run layer k over the rows of each sequence and as many of its last tokens; return the states.

        A sequence with fewer rows than another gets some that are taken back.
        """
        self.layer = self._layers[k]
        caches = [cache[k : k + 1] if self._several else cache for cache in self._caches]
        counts = [rows.shape[1] for rows in hidden]
        most = max(counts)
        if not most:
            return hidden
        tokens = [_last(own, count) for own, count in zip(tokens, counts, strict=True)]
        if len(caches) == 1:
            return [self.layer(hidden[0], tokens[0], caches[0])]
        rows = mx.concatenate([_padded(own, most) for own in hidden])
        states = self.layer(rows, mx.concatenate([_padded(own, most) for own in tokens]), shared_cache(caches))
        for cache, count in zip(caches, counts, strict=True):
            for entry in cache if count < most else ():
                entry.trim(most - count)
        parts = zip(mx.split(states, len(counts)), counts, strict=True)
        return [own[:, :count] if count < most else own for own, count in parts]

    def _passed_on(self, k: int, hidden: list[mx.array], states: list[mx.array]) -> list[mx.array]:
        """Return what layer k hands to the next layer: what it has read itself, or the hidden states that it makes."""
        return hidden if self._to_all else [self._layers[k].next_hidden(own) for own in states]


def _delayed(waiting: Any, i: int, rows: mx.array) -> mx.array:
    """Return the row that waits and `rows` but the last, which waits now."""
    rows = _appended(waiting[i], rows)
    waiting[i] = mx.contiguous(rows[:, -1:]) if rows.shape[1] else None  # a view would keep the whole chunk alive
    return rows[:, :-1]


def _appended(rows: mx.array | None, new: mx.array) -> mx.array:
    return new if rows is None else mx.concatenate([rows, new], axis=1)


def _last(rows: mx.array, count: int) -> mx.array:
    return rows if rows.shape[1] == count else rows[:, rows.shape[1] - count :]


def _padded(rows: mx.array, count: int) -> mx.array:
    """Return rows [1, n, ...] with zeros up to `count`."""
    missing = count - rows.shape[1]
    return mx.pad(rows, [(0, 0), (0, missing)] + [(0, 0)] * (rows.ndim - 2)) if missing else rows


def _joined(tokens: Sequence[mx.array]) -> mx.array:
    return mx.concatenate(list(tokens), axis=1) if len(tokens) > 1 else tokens[0]
