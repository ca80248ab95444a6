"""Heads that are decoder layers over the projected pair of an embedding and a hidden state.

    z_p = eh_proj([enorm(E[x_{p+1}]); hnorm(h_p)]),  y = block(z),  out = norm(y),  logits = the output matrix

Most families differ in the names of these parts, in their block, and in which matrices are the trunk's.
Source: DeepSeek-V3 (2412.19437), section 2.2.
"""

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_attention_mask
from mlx_lm.models.cache import KVCache

from mlxmtp.errors import HeadError
from mlxmtp.heads.head import Recursion
from mlxmtp.targets import Cache, LatentAttention, RecentKVCache, Target, first_leaf, has_latents, matrix_rows

LAYER = "layers.0."
PARTS = ("enorm.", "hnorm.", "eh_proj.", "norm.", "lm_head.", "embed_tokens.")
"""Prefixes of a layer's tensors outside its block, by the module's names."""
FC_NAMES = {"fc.": "eh_proj.", "pre_fc_norm_embedding.": "enorm.", "pre_fc_norm_hidden.": "hnorm."}
"""Names of some families, which follow Qwen's, and the module's."""
MATRICES = ("embed_tokens", "lm_head")
"""Matrices that a layer may have for itself; the trunk's are used for the others."""
ABSORBED = 32
"""Rows; up to this many, latents are used as keys and values. Longer calls are prefills."""
_EXPERT = re.compile(r"(.*\bexperts\.)(\d+)(\..+)")
COMPARED_ROWS = 1024
"""Rows by which a layer's embedding and output matrix are compared with the trunk's."""


class HeadLayer(nn.Module):
    """One layer of a head.

    Args:
        target: the trunk.
        block: its decoder layer, called with (z [B, T, H], mask, cache).
        own: the matrices that it has for itself, of MATRICES.
        norm: makes a norm of a size; its last argument is `eps`.
        last_norm: whether a norm comes between the block and the output matrix.
        hidden_first: the projection takes the hidden state before the embedding.
        bias: the projection has a bias.
        window: tokens that the block's attention sees; None: all.
    """

    def __init__(
        self,
        target: Target,
        block: nn.Module,
        *,
        eps: float,
        own: set[str] | frozenset[str] = frozenset(),
        norm: Callable[..., nn.Module] = nn.RMSNorm,
        last_norm: bool = True,
        hidden_first: bool = False,
        bias: bool = False,
        window: int | None = None,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        rows, size = target.vocab_size, target.text_model.args.hidden_size
        self.enorm = norm(size, eps=eps)
        self.hnorm = norm(size, eps=eps)
        self.eh_proj = nn.Linear(2 * size, size, bias=bias)
        self.block = block
        if last_norm:
            self.norm = norm(size, eps=eps)
        if "embed_tokens" in own:
            self.embed_tokens = nn.Embedding(rows, size)
        if "lm_head" in own:
            self.lm_head = nn.Linear(size, rows, bias=False)
        self._own = own
        self._target = target
        self._hidden_first = hidden_first
        self._window = window

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Any) -> mx.array:
        """Return the block's output [B, T, H], before the last norm."""
        own = "embed_tokens" in self._own
        pair = [self.enorm((self.embed_tokens if own else self._target.embed)(tokens)), self.hnorm(hidden)]
        x = self.eh_proj(mx.concatenate(pair[::-1] if self._hidden_first else pair, axis=-1))
        latent = self.latent
        mask = create_attention_mask(x, first_leaf(cache), self._window, return_array=latent is not None)
        if latent:
            latent.on = 1 < x.shape[1] <= ABSORBED
        y: mx.array = self.block(x, mask, cache)
        return y

    def make_cache(self) -> Any:
        """Return an empty cache for keys and values of the block."""
        return RecentKVCache(self._window) if self._window else KVCache()

    def last_normed(self, states: mx.array) -> mx.array:
        """Apply the last norm, if there is one."""
        normed: mx.array = self.norm(states) if "norm" in self else states
        return normed

    @property
    def output(self) -> Any:
        """The module of the output matrix."""
        return self.lm_head if "lm_head" in self._own else self._target.output

    def project(self, states: mx.array) -> mx.array:
        """Return logits of normed states."""
        logits: mx.array = (self.output if "lm_head" in self._own else self._target.project)(states)
        return logits

    @cached_property
    def latent(self) -> LatentAttention | None:
        """The block's latent attention; None: it has another."""
        attention = next((module for module in self.block.modules() if has_latents(module)), None)
        return LatentAttention(attention) if attention else None


class LayerHead(Recursion, nn.Module):
    """A head of one layer.

    Args:
        family: the family's name.
        make_cache: returns the block's empty cache; None: it has keys and values.
    """

    def __init__(self, family: str, layer: HeadLayer, make_cache: Callable[[], Any] | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.family = family
        self.layers = [layer]
        self._make_cache = make_cache or layer.make_cache

    def make_cache(self, target_cache: Cache) -> Cache:  # noqa: ARG002
        return [self._make_cache()]

    def __call__(self, hidden: mx.array, tokens: mx.array, cache: Cache) -> mx.array:
        layer = self.layers[0]
        return self.normed(layer(hidden, tokens, cache[0]), layer.last_normed, for_logits=False)

    def logits(self, states: mx.array) -> mx.array:
        layer = self.layers[0]
        project = self.draft_output or layer.project
        return project(self.normed(states, layer.last_normed, for_logits=True))

    @property
    def output(self) -> Any:
        return self.layers[0].output

    def prepare(self) -> None:
        _ = self.layers[0].latent  # before the module is split by sequence
        super().prepare()


def build_layer(
    family: str,
    target: Target,
    weights: Mapping[str, mx.array],
    names: Mapping[str, str],
    block: Callable[[Mapping[str, mx.array]], nn.Module],
    *,
    make_cache: Callable[[], Any] | None = None,
    sanitise: Callable[[Target, Mapping[str, mx.array]], dict[str, mx.array]] | None = None,
    eps: float | None = None,
    **options: Any,
) -> tuple[LayerHead, dict[str, mx.array]]:
    """Return a head of one layer without its weights, and its weights by the module's names.

    Args:
        weights: by their names inside the head, with or without LAYER.
        names: as in `sorted_parts`.
        block: makes the decoder layer that has these tensors; their names begin with "block.".
        make_cache: as in `LayerHead`.
        sanitise: does what `sanitised` does, which is the default.
        eps: of the norms; None: the config's `rms_norm_eps`.
        options: other ones of `HeadLayer`.
    """
    outside, inside = sorted_parts({name.removeprefix(LAYER): weight for name, weight in weights.items()}, names)
    own = own_matrices(outside, target)
    found = without_shared(outside, own) | (sanitise or sanitised)(target, inside)
    options |= {"own": own, "bias": "eh_proj.bias" in outside, "eps": eps or target.text_model.args.rms_norm_eps}
    layer = HeadLayer(target, block(found), **options)
    return LayerHead(family, layer, make_cache), {LAYER + name: weight for name, weight in found.items()}


def sorted_parts(
    weights: Mapping[str, mx.array], names: Mapping[str, str]
) -> tuple[dict[str, mx.array], dict[str, mx.array]]:
    """Return a layer's tensors outside its block by the module's names, and the block's by the trunk layer's names.

    Args:
        weights: by their names inside the layer.
        names: prefixes as a family stores them, and the module's: of PARTS, or "block."; the module's own are known.

    Raises:
        HeadError: the projection is missing.
    """
    outside: dict[str, mx.array] = {}
    block: dict[str, mx.array] = {}
    for name, weight in weights.items():
        stored = next((prefix for prefix in names if name.startswith(prefix)), "")
        ours = names.get(stored, "") + name.removeprefix(stored)
        if ours.startswith(PARTS):
            outside[ours] = weight
        else:
            block[ours.removeprefix("block.")] = weight
    if "eh_proj.weight" not in outside:
        expected = next((stored for stored, part in names.items() if part == "eh_proj."), "eh_proj.")
        raise HeadError(f"the head's tensors have no {expected}weight; they are not a head of this model's family")
    return outside, block


def own_matrices(outside: Mapping[str, mx.array], target: Target) -> set[str]:
    """Return which of MATRICES a layer has for itself: those that are stored and differ from the trunk's."""
    trunk = {"embed_tokens": target.embedding, "lm_head": target.output}
    return {name for name in MATRICES if not _is_shared(name, outside, trunk[name])}


def without_shared(outside: Mapping[str, mx.array], own: set[str]) -> dict[str, mx.array]:
    """Return the tensors without copies of the trunk's matrices."""
    shared = tuple(f"{name}." for name in MATRICES if name not in own)
    return {name: weight for name, weight in outside.items() if not name.startswith(shared)}


def sanitised(
    target: Target, block: Mapping[str, mx.array], index: int = 0, *, layers: str = "model.layers."
) -> dict[str, mx.array]:
    """Return a block's tensors as the trunk's `sanitize` makes those of its own layer `index`, with "block." before.

    It stacks experts and splits latent projections.

    Args:
        layers: begins the names of the trunk's layers.

    Raises:
        HeadError: an expert is missing, or it or a latent projection has another shape than expected.
    """
    _check_experts(block)
    _check_latents(block, target.text_model.args)
    prefix = f"{layers}{index}."
    done = target.text_model.sanitize({prefix + name: weight for name, weight in block.items()})
    return {f"block.{name.removeprefix(prefix)}": weight for name, weight in done.items()}


def _check_experts(block: Mapping[str, mx.array]) -> None:
    """Check that experts can be stacked, where they are stored one by one."""
    stored = [match for name in block if (match := _EXPERT.fullmatch(name))]
    count = max((int(match[2]) + 1 for match in stored), default=0)
    for place, rest in sorted({(match[1], match[3]) for match in stored}):
        names = [f"{place}{e}{rest}" for e in range(count)]
        if missing := next((name for name in names if name not in block), None):
            raise HeadError(f"the head's {missing} is missing; download the model again")
        shapes = [block[name].shape for name in names]
        usual = Counter(shapes).most_common(1)[0][0]
        for name, shape in zip(names, shapes, strict=True):
            if shape != usual:
                raise HeadError(f"the head's {name} is {shape}, expected {usual}")


def _check_latents(block: Mapping[str, mx.array], args: Any) -> None:
    """Check that the projection of latents can be split into keys and values, where it is stored whole."""
    for name, weight in block.items():
        if name.endswith("kv_b_proj.weight") and name.replace("weight", "scales") not in block:
            rows = args.num_attention_heads * (
                (args.qk_nope_head_dim or args.head_dim) + (args.v_head_dim or args.head_dim)
            )
            if weight.shape != (rows, args.kv_lora_rank):
                raise HeadError(f"the head's {name} is {weight.shape}, expected {(rows, args.kv_lora_rank)}")


def _is_shared(name: str, outside: Mapping[str, mx.array], matrix: nn.Module) -> bool:
    """Return whether the layer lacks a matrix or has the trunk's; a quantised trunk's may differ by its rounding."""
    weight = outside.get(f"{name}.weight")
    if weight is None:
        return True
    if f"{name}.scales" in outside:
        return False
    rows = min(weight.shape[0], matrix["weight"].shape[0])  # a fine-tune's has rows for its new tokens
    ids = mx.arange(0, rows, max(1, rows // COMPARED_ROWS))
    ours, theirs = matrix_rows(matrix, ids).astype(mx.float32), weight[ids].astype(mx.float32)
    if ours.shape != theirs.shape:
        return False
    error = mx.linalg.norm(ours - theirs) / mx.linalg.norm(theirs)
    return float(error) < (0.3 if hasattr(matrix, "scales") else 1e-2)
