"""Raw checkpoints in block-scaled FP8, as the official FP8 repos have them."""

import json
import shutil
import struct
from pathlib import Path
from typing import Literal

import mlx.core as mx
import numpy as np

from tests.tiny.files import load_weights, save_weights, write_json

BLOCK = 128
LARGEST = 448.0
CONFIG = {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic", "weight_block_size": [BLOCK, BLOCK]}
KEPT = (
    "embed_tokens.weight", "lm_head.weight", "conv1d.weight", "mlp.gate.weight", "shared_expert_gate.weight",
    "eh_proj.weight", "shared_head.head.weight", "weights_proj.weight",
)  # fmt: skip
"""Ends of the names of matrices that official repos leave in bfloat16."""

Scales = Literal["BF16", "F32", "F8_E8M0"]


def fp8_twins(
    source: Path, folder: Path, *, scales: Scales = "BF16", trunk: bool = True, head: bool = True
) -> tuple[Path, Path]:
    """Two checkpoints of the same numbers, `fp8` and `bf16` in `folder`: block-scaled, and multiplied out.

    Args:
        source: a raw checkpoint in bfloat16, whose matrices are rounded.
        scales: how they are stored: as numbers, or as exponents of two.
        trunk, head: which matrices are in FP8.
    """
    config = json.loads((source / "config.json").read_text())
    heads = ("mtp.", f"model.layers.{config.get('num_hidden_layers')}.")
    packed, whole = load_weights(source), load_weights(source)
    for name, weight in list(packed.items()):
        wanted = head if name.startswith(heads) else trunk
        if wanted and weight.ndim > 1 and not name.endswith(KEPT):
            packed[name], packed[f"{name}_scale_inv"], whole[name] = _rounded(weight, scales)
    for twin, arrays, extra in (("fp8", packed, {"quantization_config": CONFIG}), ("bf16", whole, {})):
        save_weights(folder / twin, arrays, made_by="pt")
        write_json(folder / twin / "config.json", config | extra)
        for file in source.glob("*tokenizer*"):
            shutil.copy(file, folder / twin)
    _name_dtypes(folder / "fp8" / "model.safetensors", scales)
    return folder / "fp8", folder / "bf16"


def _rounded(weight: mx.array, scales: Scales) -> tuple[mx.array, mx.array, mx.array]:
    """Bytes, scales, and their product in bfloat16, block by block as DeepSeek-V3's README_WEIGHTS.md has it."""
    values = np.array(weight.astype(mx.float32))
    rows, columns = (range(0, size, BLOCK) for size in values.shape[-2:])
    numbers = np.zeros((*values.shape[:-2], len(rows), len(columns)), np.float32)
    codes, products = np.zeros(values.shape, np.uint8), np.zeros_like(values)
    for i, row in enumerate(rows):
        for j, column in enumerate(columns):
            block = (..., slice(row, row + BLOCK), slice(column, column + BLOCK))
            scale = np.abs(values[block]).max(axis=(-2, -1), keepdims=True) / LARGEST
            scale = _as_stored(scale, scales)
            codes[block] = np.array(mx.to_fp8(mx.array(values[block] / scale)))
            products[block] = _e4m3(codes[block]) * scale
            numbers[..., i, j] = scale[..., 0, 0]
    if scales == "F8_E8M0":
        stored = mx.array((np.log2(numbers) + 127).astype(np.uint8))
    else:
        stored = mx.array(numbers).astype(mx.bfloat16 if scales == "BF16" else mx.float32)
    return mx.array(codes), stored, mx.array(products).astype(mx.bfloat16)


def _as_stored(values: np.ndarray, scales: Scales) -> np.ndarray:
    if scales == "F8_E8M0":
        return np.exp2(np.ceil(np.log2(values)))
    return np.array(mx.array(values).astype(mx.bfloat16).astype(mx.float32)) if scales == "BF16" else values


def _e4m3(codes: np.ndarray) -> np.ndarray:
    sign = np.where(codes & 0x80, -1.0, 1.0)
    exponent, fraction = (codes >> 3 & 15).astype(np.int32), (codes & 7) / 8
    size = np.where(exponent > 0, (1 + fraction) * np.exp2(exponent - 7.0), fraction * 2.0**-6)
    return (sign * size).astype(np.float32)


def _name_dtypes(file: Path, scales: Scales) -> None:
    """MLX writes bytes as U8 only: give them their names in the header."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    for name, entry in header.items():
        if entry.get("dtype") == "U8":
            entry["dtype"] = scales if name.endswith("_scale_inv") else "F8_E4M3"
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
