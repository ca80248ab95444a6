"""FP8 as official repos store linear layers: e4m3 weights, a scale for each block of 128 x 128 or for each matrix."""

from collections.abc import Mapping

import mlx.core as mx

from mlxmtp.errors import CheckpointError

FP8_BLOCK = 128
"""Rows, and columns, of a block."""
_SCALE = "_scale_inv"
_MX_COLUMNS = 32
"""Columns of a row that share a scale in MXFP8, which MLX computes with as it is stored."""


def dequantise_fp8(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Replace each pair of `X` and `X_scale_inv` by their product in bfloat16, lazily; return the weights.

    `X` [..., M, N] is e4m3 (as bytes). The scales [..., ceil(M / 128), ceil(N / 128)] are floats, or exponents of two
    (e8m0, as bytes). Source: DeepSeek-V3's README_WEIGHTS.md; Qwen's FP8 repos use the same format. Mistral's have one
    scale for each matrix: [] or [..., 1, 1]. MXFP8 is left as it is, for mlx-lm.

    Raises:
        CheckpointError: a scale has no weight, or another shape.
    """
    out = {name: weight for name, weight in weights.items() if not name.endswith(_SCALE)}
    for name in weights.keys() - out.keys():
        scaled = name.removesuffix(_SCALE)
        if scaled not in out:
            raise CheckpointError(f"{name} has no weight beside it; download the model again")
        if _is_mxfp8(out[scaled], weights[name]):
            out[name] = weights[name]
        else:
            out[scaled] = _multiply(scaled, out[scaled], weights[name])
    return out


def _is_mxfp8(weight: mx.array, scales: mx.array) -> bool:
    return scales.dtype == mx.uint8 and scales.shape == (*weight.shape[:-1], weight.shape[-1] // _MX_COLUMNS)


def _multiply(name: str, weight: mx.array, scales: mx.array) -> mx.array:
    rows, columns = weight.shape[-2:]
    blocks, shape = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK)), scales.shape
    values = mx.from_fp8(weight, dtype=mx.float32) if weight.dtype == mx.uint8 else weight.astype(mx.float32)
    if scales.dtype == mx.uint8:
        scales = (scales.astype(mx.uint32) << 23).view(mx.float32)  # e8m0 is the exponent of a float32
    if scales.size == 1:
        spread = scales.astype(mx.float32).reshape(())
    elif shape == (*weight.shape[:-2], 1, 1):
        spread = scales.astype(mx.float32)
    elif shape[-2:] == blocks:
        spread = mx.repeat(mx.repeat(scales.astype(mx.float32), FP8_BLOCK, axis=-2), FP8_BLOCK, axis=-1)
        spread = spread[..., :rows, :columns]
    else:
        raise CheckpointError(
            f"{name}: FP8 scales {shape} for a weight {weight.shape}; "
            f"expected {blocks}, one for each {FP8_BLOCK} x {FP8_BLOCK} block, or one for each matrix"
        )
    return (values * spread).astype(mx.bfloat16)
