"""Summarise a part of a checkpoint from its headers: bytes, dtype, quantization."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.checkpoints import TensorInfo

_FLOATS = ("BF16", "F16", "F32", "F64")
_SCALES, _BLOCK_SCALES = ".scales", "_scale_inv"


@dataclass(frozen=True)
class Weights:
    """The summary of a part of a checkpoint.

    Args:
        nbytes: its size.
        dtype: of most bytes that are not quantised; None: all are quantised.
        quantization: in words; None: nothing is quantised.
        files: relative to the checkpoint's folder, or absolute paths of files elsewhere.
    """

    nbytes: int
    dtype: str | None
    quantization: str | None
    files: list[str]


def weights_of(tensors: Mapping[str, TensorInfo], quantization: Any, folder: Path) -> Weights:
    """Summarise tensors; `quantization` is the config's entry on them."""
    settings = quantization if isinstance(quantization, dict) else {}
    sizes: Counter[str] = Counter()
    for name, info in tensors.items():
        scaled = name.removesuffix(".weight") + _SCALES in tensors or name + _BLOCK_SCALES in tensors
        if info.dtype in _FLOATS and not scaled and not name.endswith((_SCALES, ".biases", _BLOCK_SCALES)):
            sizes[info.dtype] += info.nbytes
    paths = {info.file for info in tensors.values()}
    files = sorted(str(file.relative_to(folder) if file.is_relative_to(folder) else file) for file in paths)
    dtype = sizes.most_common(1)[0][0] if sizes else None
    return Weights(sum(info.nbytes for info in tensors.values()), dtype, _quantization(tensors, settings), files)


def _quantization(tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> str | None:
    """Return the quantization in words, by the config and the shapes: "4-bit affine, groups of 64"."""
    if any(name.endswith(_BLOCK_SCALES) for name in tensors):
        return "FP8, blocks of 128 x 128"
    paths = [name.removesuffix(_SCALES) for name in tensors if name.endswith(_SCALES)]
    if not paths:
        method = settings.get("quant_method")
        return method if tensors and isinstance(method, str) else None
    formats = Counter(_format(path, tensors, settings) for path in paths).most_common()
    others = (f"; {count} of {len(paths)} matrices {name}" for name, count in formats[1:])
    return formats[0][0] + "".join(others)


def _format(path: str, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> str:
    """Return the quantization of one matrix; its entry in the config, or the default, states group size and mode."""
    own = settings.get(path)
    how = own if isinstance(own, dict) else settings
    group = how.get("group_size")
    weight, scales = tensors.get(f"{path}.weight"), tensors[path + _SCALES]
    columns = scales.shape[-1] * group if scales.shape and isinstance(group, int) else 0
    if not columns or weight is None or not weight.shape:
        return "quantised"
    bits = 32 * weight.shape[-1] // columns
    return f"{bits}-bit {how.get('mode', 'affine')}, groups of {group}"
