"""What headers tell of a part of a checkpoint: its bytes, its dtype, and how it is quantised."""

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
    """A part of a checkpoint: `dtype` is that of most of what is not quantised, None where there is nothing.

    `files` are relative to the checkpoint's folder, or whole paths of those that are kept elsewhere.
    """

    nbytes: int
    dtype: str | None
    quantization: str | None
    files: list[str]


def weights_of(tensors: Mapping[str, TensorInfo], quantization: Any, folder: Path) -> Weights:
    """Sum up tensors; `quantization` is what the config says of them."""
    settings = quantization if isinstance(quantization, dict) else {}
    sizes: Counter[str] = Counter()
    for name, info in tensors.items():
        scaled = name.removesuffix(".weight") + _SCALES in tensors or name + _BLOCK_SCALES in tensors
        if info.dtype in _FLOATS and not scaled and not name.endswith((_SCALES, ".biases", _BLOCK_SCALES)):
            sizes[info.dtype] += info.nbytes
    kept = {info.file for info in tensors.values()}
    files = sorted(str(file.relative_to(folder) if file.is_relative_to(folder) else file) for file in kept)
    dtype = sizes.most_common(1)[0][0] if sizes else None
    return Weights(sum(info.nbytes for info in tensors.values()), dtype, _packing(tensors, settings), files)


def _packing(tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> str | None:
    """ "4-bit affine, groups of 64", from the config and what the shapes add to it."""
    if any(name.endswith(_BLOCK_SCALES) for name in tensors):
        return "FP8, blocks of 128 x 128"
    paths = [name.removesuffix(_SCALES) for name in tensors if name.endswith(_SCALES)]
    if not paths:
        return settings.get("quant_method") if tensors else None
    ways = Counter(_way(path, tensors, settings) for path in paths).most_common()
    others = (f"; {count} of {len(paths)} matrices {way}" for way, count in ways[1:])
    return ways[0][0] + "".join(others)


def _way(path: str, tensors: Mapping[str, TensorInfo], settings: Mapping[str, Any]) -> str:
    """How one matrix is packed. Its own entry in the config, or else the default, names the groups and the mode."""
    own = settings.get(path)
    how = own if isinstance(own, dict) else settings
    group = how.get("group_size")
    weight, scales = tensors.get(f"{path}.weight"), tensors[path + _SCALES]
    if not isinstance(group, int) or weight is None:
        return "quantised"
    bits = 32 * weight.shape[-1] // (scales.shape[-1] * group)
    return f"{bits}-bit {how.get('mode', 'affine')}, groups of {group}"
