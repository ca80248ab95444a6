"""Write safetensors files tensor by tensor, so that memory holds one tensor at a time."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

MAX_SHARD_BYTES = 5 << 30
"""Bytes, the usual size on the Hub; a shard is larger only if it is one tensor."""
DTYPES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16",
    mx.int16: "I16", mx.uint32: "U32", mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64", mx.bool_: "BOOL",
}  # fmt: skip
"""MLX's dtypes and their names in safetensors."""
METADATA = {"format": "mlx"}
"""The metadata that mlx-lm writes, by which others tell whose layout it is."""

OnWritten = Callable[[int], None]
"""Called with the number of bytes that were just written."""


def silent(*counts: int) -> None:
    """Do nothing: a progress callback."""


def write_model(folder: Path, weights: dict[str, mx.array], on_written: OnWritten) -> None:
    """Write `model.safetensors` or numbered shards, and their index; remove each tensor from `weights` when written."""
    shards = list(_shards(weights))
    total = sum(weight.nbytes for weight in weights.values())
    where: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(names, file)
        write_safetensors(folder / file, {name: weights.pop(name) for name in names}, on_written)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(weights: dict[str, mx.array]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in weights.items():
        if names and size + weight.nbytes > MAX_SHARD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += weight.nbytes
    yield names


def write_safetensors(file: Path, weights: dict[str, mx.array], on_written: OnWritten) -> None:
    """Write one file; evaluate each lazy tensor, write it, and remove it from `weights`."""
    layout = [(name, DTYPES[weight.dtype], weight.shape, weight.nbytes) for name, weight in weights.items()]
    with file.open("wb") as out:
        out.write(header(layout))
        while weights:
            weight = weights.pop(next(iter(weights)))
            mx.eval(weight)
            out.write(raw_bytes(weight))
            on_written(weight.nbytes)
            del weight
            mx.clear_cache()


def header(layout: list[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] = METADATA) -> bytes:
    """Return the first bytes of a safetensors file, for tensors (name, dtype, shape, bytes) in that order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, dtype, shape, nbytes in layout:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}
        start += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # aligns the tensors
    return struct.pack("<Q", len(text)) + text


def raw_bytes(weight: mx.array) -> Any:
    """Return a buffer of an array's bytes in row-major order; as uint8, for Python's buffers have no bfloat16."""
    flat = mx.contiguous(weight).reshape(-1)
    return flat.view(mx.uint8) if flat.size else b""
