"""The few-row products of a model on this machine: their time, and whether each row has the bits that it has alone."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlxmtp.checkpoints import Checkpoint
from mlxmtp.checkpoints.tensors import TensorInfo
from mlxmtp.errors import in_one_line
from mlxmtp.exactness.variants import STOCK, Kernel, MatmulVariant, dense_variants, quantised_variants

ROWS = (1, 2, 3, 4, 5, 6, 8)
"""Rows of a product: a plain step, and passes with drafts."""
CHAIN = 20
"""Products in one timed run, at most: one alone takes less than its launch on a GPU."""
RUN_S = 0.01
"""Seconds of a timed run. Fewer products are in it where they take longer."""
REPEATS = 5
MAX_MATRICES = 12
"""Kinds of matrices that are measured: those with the most bytes in a pass."""
DTYPES = {"F32": mx.float32, "F16": mx.float16, "BF16": mx.bfloat16}
SCALES = {"mxfp4": (120, 130), "mxfp8": (120, 130), "nvfp4": (48, 64)}
"""Random scales from, and below, that are finite and near 1, by the packing's mode."""

FINITE = 0xBF
"""The bits of a float8 that no random number makes infinite or no number."""


@dataclass(frozen=True)
class Matrix:
    """A kind of matrices of a model.

    Args:
        dtype: of the inputs, as safetensors names it.
        bits: 0: not quantised; `group_size` and `mode` say nothing then.
    """

    outputs: int
    inputs: int
    dtype: str
    bits: int = 0
    group_size: int = 0
    mode: str = ""

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return self.outputs * self.inputs * (self.bits or 8 * DTYPES[self.dtype].size) // 8


def matrices(checkpoint: Checkpoint) -> dict[Matrix, list[str]]:
    """Return the names of a checkpoint's matrices by kind, those with the most bytes first.

    Embeddings count where no other matrix gives the logits. Experts, which are stacked, are left out.
    """
    found: dict[Matrix, list[str]] = {}
    tied = not any(name.endswith("lm_head.weight") for name in checkpoint.tensors)
    packing = checkpoint.config.get("quantization") or {}
    for name, info in checkpoint.tensors.items():
        module = name.removesuffix(".weight")
        if module == name or len(info.shape) != 2 or (".embed" in module and not tied):
            continue
        if kind := _kind(info, checkpoint.tensors.get(f"{module}.scales"), packing.get(module) or packing):
            found.setdefault(kind, []).append(module)
    return dict(sorted(found.items(), key=lambda one: -one[0].nbytes * len(one[1])))


def _kind(info: TensorInfo, scales: TensorInfo | None, packing: Mapping[str, Any]) -> Matrix | None:
    """Return the kind of a matrix, or None of one that MLX does not multiply as it is stored."""
    if scales is None:
        return Matrix(info.shape[0], info.shape[1], info.dtype) if info.dtype in DTYPES else None
    if info.dtype != "U32" or not packing.get("group_size"):
        return None
    inputs = scales.shape[-1] * packing["group_size"]
    bits, mode = info.shape[-1] * 32 // inputs, packing.get("mode", "affine")
    dtype = scales.dtype if scales.dtype in DTYPES else "BF16"
    return Matrix(info.shape[0], inputs, dtype, bits, packing["group_size"], mode)


def few_row_products(
    kinds: Mapping[Matrix, Sequence[str]],
    kernels: Sequence[Kernel],
    on_matrix: Callable[[int, int], None] = lambda *_: None,
) -> list[dict[str, Any]]:
    """Return for each kind: its facts, and its `rows` or the reason why it `failed`.

    Args:
        kernels: further variants of quantised products.
        on_matrix: called with (done, total) kinds.
    """
    wanted = list(kinds.items())[:MAX_MATRICES]
    found = []
    for done, (kind, names) in enumerate(wanted):
        on_matrix(done, len(wanted))
        last = sorted({name.rpartition(".")[2] for name in names})
        facts: dict[str, Any] = asdict(kind) | {"names": last, "count": len(names)}
        try:
            found.append(facts | {"rows": measured_rows(kind, kernels)})
        except Exception as error:  # a finding about this kind; the others are measured all the same
            found.append(facts | {"failed": in_one_line(error)})
    return found


def measured_rows(kind: Matrix, kernels: Sequence[Kernel]) -> list[dict[str, Any]]:
    """Return for each variant and number of rows: seconds of a product, and whether its rows have one-row bits.

    The variants take turns; a time is the median of `REPEATS` runs.
    """
    matrix = random_matrix(kind)
    more = quantised_variants(kernels) if kind.bits else dense_variants()
    variants: dict[str, MatmulVariant] = {STOCK: lambda module, x: module(x), **more}
    found = []
    for rows in ROWS:
        x = mx.random.normal((1, rows, kind.inputs), key=mx.random.key(rows)).astype(DTYPES[kind.dtype])
        alone = mx.concatenate([matrix(x[:, i : i + 1]) for i in range(rows)], axis=1)
        mx.eval(x, alone)
        possible = {name: variant for name, variant in variants.items() if _runs(variant, matrix, x)}
        chain = min(CHAIN, ceil(RUN_S / _seconds(possible[STOCK], matrix, x, 1)))
        times: dict[str, list[float]] = {name: [] for name in possible}
        for _ in range(REPEATS):
            for name, variant in possible.items():
                times[name].append(_seconds(variant, matrix, x, chain))
        for name, variant in possible.items():
            equal = bool(mx.array_equal(variant(matrix, x), alone))
            found.append({"variant": name, "rows": rows, "seconds": statistics.median(times[name]), "equal": equal})
    return found


def random_matrix(kind: Matrix) -> nn.Module:
    """Return a layer of this kind with random weights: made as they are stored, as large ones fit in no other form."""
    dtype = DTYPES[kind.dtype]
    if not kind.bits:
        layer: nn.Module = nn.Linear(1, 1, bias=False)
        layer["weight"] = mx.random.normal((kind.outputs, kind.inputs), dtype, scale=kind.inputs**-0.5)
    else:
        packing: dict[str, Any] = {"group_size": kind.group_size, "bits": kind.bits, "mode": kind.mode}
        layer = nn.QuantizedLinear(max(kind.group_size, 32), 32, bias=False, **packing)
        words = kind.inputs * kind.bits // 32
        stored = mx.random.randint(0, 256, (kind.outputs, 4 * words), mx.uint8)
        layer["weight"] = (stored & FINITE if kind.mode == "mxfp8" else stored).view(mx.uint32)
        groups = kind.outputs, kind.inputs // kind.group_size
        if kind.mode == "affine":
            layer["scales"] = mx.random.uniform(0.001, 0.01, groups, dtype)
            layer["biases"] = mx.random.uniform(-0.05, 0.05, groups, dtype)
        else:
            layer["scales"] = mx.random.randint(*SCALES[kind.mode], groups, mx.uint8)
    mx.eval(layer.parameters())
    return layer


def _runs(variant: MatmulVariant, matrix: nn.Module, x: mx.array) -> bool:
    try:
        mx.eval(variant(matrix, x))
    except (ValueError, RuntimeError):
        return False  # this backend has no such kernel
    return True


def _seconds(variant: MatmulVariant, matrix: nn.Module, x: mx.array, count: int) -> float:
    start = time.perf_counter()
    mx.eval([variant(matrix, x) for _ in range(count)])
    return (time.perf_counter() - start) / count
