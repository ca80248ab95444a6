"""Block-scaled FP8, as official FP8 repos store linear layers: e4m3 weights, one scale per block of 128 x 128."""

from collections.abc import Mapping

import mlx.core as mx

from mlxmtp.errors import CheckpointError

FP8_BLOCK = 128
"""Rows, and columns, of a block."""
_SCALE = "_scale_inv"


def dequantise_fp8(weights: Mapping[str, mx.array]) -> dict[str, mx.array]:
    """Replace each pair of `X` and `X_scale_inv` by their product in bfloat16, lazily; return the weights.

    `X` [..., M, N] is e4m3 (as bytes). The scales [..., ceil(M / 128), ceil(N / 128)] are floats, or exponents of two
    (e8m0, as bytes). Source: DeepSeek-V3's README_WEIGHTS.md; Qwen's FP8 repos use the same format.

    Raises:
        CheckpointError: a scale has no weight, or another shape.
    """
    out = {name: weight for name, weight in weights.items() if not name.endswith(_SCALE)}
    for name in weights.keys() - out.keys():
        scaled = name.removesuffix(_SCALE)
        if scaled not in out:
            raise CheckpointError(f"{name} has no weight beside it; download the model again")
        out[scaled] = _multiply(scaled, out[scaled], weights[name])
    return out


def _multiply(name: str, weight: mx.array, scales: mx.array) -> mx.array:
    rows, columns = weight.shape[-2:]
    blocks = (-(-rows // FP8_BLOCK), -(-columns // FP8_BLOCK))
    if scales.shape[-2:] != blocks:
        raise CheckpointError(
            f"{name}: FP8 scales {scales.shape} for a weight {weight.shape}; "
            f"expected {blocks}, one for each {FP8_BLOCK} x {FP8_BLOCK} block"
        )
    values = mx.from_fp8(weight, dtype=mx.float32) if weight.dtype == mx.uint8 else weight.astype(mx.float32)
    if scales.dtype == mx.uint8:
        scales = (scales.astype(mx.uint32) << 23).view(mx.float32)  # e8m0 is the exponent of a float32
    spread = mx.repeat(mx.repeat(scales.astype(mx.float32), FP8_BLOCK, axis=-2), FP8_BLOCK, axis=-1)
    return (values * spread[..., :rows, :columns]).astype(mx.bfloat16)
