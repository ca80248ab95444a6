"""Which tensors a checkpoint folder holds: names, shapes and dtypes from the safetensors headers alone."""

import json
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.errors import CheckpointError

SIDE_CAR = "mtp.safetensors"  # a head beside a model that was converted without it
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file: `dtype` as safetensors names it ("BF16", "F32", "U32", ...)."""

    file: Path
    dtype: str
    shape: tuple[int, ...]


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """The tensors of every `*.safetensors` file of a folder; where a name stands twice, the side-car's wins.

    Raises:
        CheckpointError: no such files, a shard is missing, or a file is shorter than its header says.
    """
    files = sorted(folder.glob("*.safetensors"), key=lambda file: file.name == SIDE_CAR)
    _check_complete(folder, {file.name for file in files})
    return {name: info for file in files for name, info in read_header(file).items()}


def read_header(file: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file, checked against its size (format: 8-byte length, JSON header, data)."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 0 < length <= size - 8:
            raise CheckpointError(f"{file}: not a complete safetensors file ({size} bytes); download it again")
        try:
            header: dict[str, Any] = json.loads(stream.read(length))
            header.pop("__metadata__", None)
            end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
            tensors = {name: TensorInfo(file, entry["dtype"], tuple(entry["shape"])) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise CheckpointError(f"{file}: its safetensors header cannot be read; download it again") from error
    expected = 8 + length + end
    if size < expected:
        raise CheckpointError(f"{file}: {size} bytes, expected {expected}: the file is cut short; download it again")
    return tensors


def _check_complete(folder: Path, present: set[str]) -> None:
    if not present:
        raise CheckpointError(f"{folder}: no .safetensors files; expected a model's folder")
    expected = set(present)
    for index in folder.glob("*.safetensors.index.json"):
        try:
            expected |= set(json.loads(index.read_text())["weight_map"].values())
        except (ValueError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{index}: cannot be read as an index of shards") from error
    for name in present:
        if match := _SHARD.search(name):
            total, width = int(match[2]), len(match[1])
            stem = name[: match.start()]
            expected |= {f"{stem}-{i:0{width}}-of-{match[2]}.safetensors" for i in range(1, total + 1)}
    if missing := sorted(expected - present):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{folder}: missing {', '.join(missing[:3])}{more}; download the model again")
