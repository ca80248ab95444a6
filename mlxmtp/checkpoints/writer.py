"""Writing safetensors files tensor by tensor: memory holds one of them at a time, however large the file."""

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx

SHARD = 5 << 30
"""Bytes of a shard at most, unless one tensor is larger: the usual size on the Hub."""
DTYPES = {
    mx.bfloat16: "BF16", mx.float16: "F16", mx.float32: "F32", mx.uint8: "U8", mx.int8: "I8", mx.uint16: "U16",
    mx.int16: "I16", mx.uint32: "U32", mx.int32: "I32", mx.uint64: "U64", mx.int64: "I64", mx.bool_: "BOOL",
}  # fmt: skip
FORMAT = {"format": "mlx"}

OnBytes = Callable[[int], None]
"""Told the number of bytes that were just written."""


def silent(*counts: int) -> None:
    """For callers that show no progress."""


def write_model(folder: Path, weights: dict[str, mx.array], on_bytes: OnBytes) -> None:
    """`model.safetensors`, or numbered shards, and their index. Empties `weights` on the way."""
    shards = list(_shards(weights))
    total = sum(weight.nbytes for weight in weights.values())
    where: dict[str, str] = {}
    for i, names in enumerate(shards, start=1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05}-of-{len(shards):05}.safetensors"
        where |= dict.fromkeys(names, file)
        write_safetensors(folder / file, {name: weights.pop(name) for name in names}, on_bytes)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(where.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def _shards(weights: dict[str, mx.array]) -> Iterator[list[str]]:
    names: list[str] = []
    size = 0
    for name, weight in weights.items():
        if names and size + weight.nbytes > SHARD:
            yield names
            names, size = [], 0
        names.append(name)
        size += weight.nbytes
    yield names


def write_safetensors(file: Path, weights: dict[str, mx.array], on_bytes: OnBytes) -> None:
    """One file. Empties `weights` on the way, so that each lazy tensor is made, written and let go."""
    layout = [(name, DTYPES[weight.dtype], weight.shape, weight.nbytes) for name, weight in weights.items()]
    with file.open("wb") as out:
        out.write(header(layout))
        while weights:
            weight = weights.pop(next(iter(weights)))
            mx.eval(weight)
            out.write(raw_bytes(weight))
            on_bytes(weight.nbytes)
            del weight
            mx.clear_cache()


def header(layout: list[tuple[str, str, tuple[int, ...], int]], metadata: Mapping[str, str] = FORMAT) -> bytes:
    """What a safetensors file begins with, for tensors (name, dtype, shape, bytes) in that order."""
    entries: dict[str, object] = {"__metadata__": dict(metadata)}
    start = 0
    for name, dtype, shape, nbytes in layout:
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + nbytes]}
        start += nbytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)  # tensors stand aligned
    return struct.pack("<Q", len(text)) + text


def raw_bytes(weight: mx.array) -> Any:
    """The bytes of an array in row-major order; bfloat16, which Python's buffers do not know, by its bits."""
    flat = mx.contiguous(weight).reshape(-1)
    return flat.view(mx.uint8) if flat.size else b""
