"""Batch-invariant passes: each row of a verify pass has the bits that it has alone, mostly by stock MLX operations.

MLX's own product of several rows is a variant only where it is known to run the kernel for one row: experts, whose
gathered products run each row alone, and a few rows of affine matrices on Apple's GPUs before M3
(`Target.one_row_products`).
Elsewhere it is none, even if it seems equal: in half precision most differences in the order of addition are rounded
away, and a small matrix has too few outputs to show the rest. The probe compares the model's logits besides.

A pass over B sequences of m tokens has B * m rows: for matrices and experts they are rows of one batch. Attention sees
one sequence at a time (targets/shared_pass.py), and runs its m rows as those of a sequence alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from mlx_lm.models.switch_layers import SwitchGLU, SwitchMLP

from mlxmtp.exactness.variants import (
    ROW_BY_ROW,
    STOCK,
    Call,
    Kernel,
    MatmulVariant,
    dense_variants,
    fastest_equal,
    in_parts,
    quantised_variants,
    row_by_row,
)
from mlxmtp.targets.patches.latent import has_latents
from mlxmtp.targets.patches.observe import rebind, replace_call
from mlxmtp.targets.shared_pass import ATTENTION, attention_of, split_attention

if TYPE_CHECKING:
    from mlxmtp.targets import Target

EXPERTS = (SwitchGLU, SwitchMLP)
ALL_ROWS = 1 << 31


class BatchInvariant:
    """Patches a target's modules; while `on`, each row of a pass over several rows has the bits it has alone.

    At the first pass of each number of rows, every matrix selects the fastest variant that has the bits of its rows
    alone, with its own weights. Other modules run row by row. So does attention, unless `attention` is set: rows that
    are equal at a short context may differ at a long one.

    Args:
        target: its modules are patched for good; nothing changes while `on` is False.
        kernels: further variants for affine matrices.

    Attributes:
        on: whether the patches are active.
        row_by_row: matrices and experts run row by row too.
        stock: modules may use MLX's own product of several rows where that is known to be equal, and compared.
        attention: attention runs over all rows in one call.
        ways: the selected variant of each kind of module and number of rows, by a key that is the same in each process.
    """

    def __init__(self, target: Target, kernels: Sequence[Kernel] = ()) -> None:
        self.on = self.row_by_row = self.stock = self.attention = False
        self.ways: dict[str, str] = {}
        self._num_tokens, self._num_sequences = 1, 1
        self._latents = target.latent
        self._kernels = kernels
        self._one_row_products = target.one_row_products
        for module in target.model.modules():
            self._patch_module(module)

    def begin_pass(self, num_tokens: int, num_sequences: int) -> None:
        if self.on:
            self._set_pass(num_tokens, num_sequences)

    def end_pass(self) -> None:
        self._set_pass(1, 1)

    def _set_pass(self, num_tokens: int, num_sequences: int) -> None:
        self._num_tokens, self._num_sequences = num_tokens, num_sequences
        for latent in self._latents:
            latent.row_by_row = num_tokens > 1 and not self.attention

    def _patch_module(self, module: nn.Module) -> None:
        kind: Any = type(module)
        if isinstance(module, nn.QuantizedLinear):
            self._patch_rows(module, quantised_variants(self._kernels), shared=self._one_row_products)
        elif isinstance(module, nn.Linear):
            self._patch_rows(module, dense_variants())
        elif isinstance(module, nn.QuantizedEmbedding):
            self._patch_rows(module, quantised_variants(self._kernels), "as_linear", shared=self._one_row_products)
        elif isinstance(module, nn.Embedding):
            self._patch_rows(module, dense_variants(), "as_linear")
        elif isinstance(module, EXPERTS):
            self._patch_rows(module, {}, shared=ALL_ROWS)
        elif kind.__name__ == "MoEGate":
            self._patch_rows(module, {})
        elif not has_latents(module) and (attention := attention_of(module)):
            rebind(module, **{ATTENTION: split_attention(self._attention(attention))})

    def _patch_rows(
        self,
        module: nn.Module,
        variants: Mapping[str, MatmulVariant],
        method: str = "__call__",
        *,
        shared: int = 0,
    ) -> None:
        """Let a method select among `variants` and the original method row by row, or of `shared` rows in one call."""
        original: Call = getattr(type(module), method)
        by_rows = row_by_row(original)
        weights: Any = tree_flatten(module.parameters())
        packing = tuple(getattr(module, name, None) for name in ("group_size", "bits", "mode"))
        kind = type(module).__name__, method, packing, tuple((name, w.shape, str(w.dtype)) for name, w in weights)
        experts = isinstance(module, EXPERTS)
        shared = shared if experts or packing[2] == "affine" else 0
        stock = in_parts(original) if experts else original
        every = {**variants, STOCK: stock, ROW_BY_ROW: by_rows}

        def rows_of_one_batch(module: nn.Module, x: mx.array, *others: mx.array) -> Any:
            rows = x.shape[-2] if x.ndim > 1 else 1
            if rows < 2 or rows not in (self._num_tokens, self._num_tokens * self._num_sequences):
                return original(module, x, *others)
            offered = {**variants, STOCK: stock} if rows <= shared and self.stock else variants
            if self.row_by_row or not offered:
                return by_rows(module, x, *others)
            key = _key(self.stock, kind, x.shape, str(x.dtype))
            if self.ways.get(key) not in (*offered, ROW_BY_ROW):
                self.ways[key] = fastest_equal(offered, by_rows, module, x, *others)
            return every[self.ways[key]](module, x, *others)

        def call(module: nn.Module, x: mx.array, *others: mx.array) -> Any:
            batch = self._num_sequences, self._num_tokens
            if batch[0] == 1 or x.ndim < 3 or (x.shape[0], x.shape[-2]) != batch:
                return rows_of_one_batch(module, x, *others)
            if x.ndim == 3:
                joined = rows_of_one_batch(module, *(rows.reshape(1, -1, rows.shape[-1]) for rows in (x, *others)))
                return tree_map(lambda y: y.reshape(*batch, *y.shape[2:]), joined)
            each = [rows_of_one_batch(module, *(rows[b : b + 1] for rows in (x, *others))) for b in range(batch[0])]
            return tree_map(lambda *y: mx.concatenate([*y]), *each)

        replace_call(module, call, method)

    def _attention(self, original: Call) -> Call:
        def attend(queries: mx.array, keys: mx.array, values: mx.array, *rest: Any, **options: Any) -> Any:
            rows = queries.shape[2]
            if rows < 2 or rows != self._num_tokens or self.attention:
                return original(queries, keys, values, *rest, **options)
            mask, outputs = options.pop("mask", None), []
            for i in range(rows):
                own_keys, own_values, own_mask = _visible(i, rows, keys, values, mask)
                row = queries[:, :, i : i + 1]
                outputs.append(original(row, own_keys, own_values, *rest, mask=own_mask, **options))
            return mx.concatenate(outputs, axis=2)

        return attend


def offers_stock(target: Target) -> bool:
    """Return whether a module of the target has MLX's own product of several rows among its variants."""
    return target.one_row_products > 0 or any(isinstance(module, EXPERTS) for module in target.model.modules())


def _key(*facts: Any) -> str:
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


def _visible(i: int, rows: int, keys: mx.array, values: mx.array, mask: Any) -> tuple[mx.array, mx.array, Any]:
    """Return what row i attends to in plain decoding: keys and values [1, heads, _, D] and a mask.

    Keys are [1, heads, T, D], with the rows' own at the end, or one ring per row (targets/patches/window.py).
    """
    if keys.shape[0] == rows:
        keys, values = keys[i : i + 1], values[i : i + 1]
        # a mask: the ring is not full yet, which happens in one pass of a sequence
        filled = keys.shape[2] if mask is None else int(mx.sum(mask[i]))
        return keys[:, :, :filled], values[:, :, :filled], None
    last = keys.shape[2] - rows + 1 + i
    own = mask[..., i : i + 1, :last] if isinstance(mask, mx.array) else None
    return keys[:, :, :last], values[:, :, :last], own
