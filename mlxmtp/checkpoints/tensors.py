"""Names, shapes and dtypes of a checkpoint's tensors, read from the safetensors headers alone."""

import json
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlxmtp.errors import CheckpointError

SIDECAR = "mtp.safetensors"
"""The file of a head next to a model that was converted without it, as mlxmtp writes it."""
SIDECARS = (SIDECAR, "mtp/weights.safetensors", "model-mtp.safetensors")
"""That name, and the names that other programs give it, relative to the folder; the first has priority."""
EXPECTED = "expected a model in Hugging Face or MLX layout (config.json and .safetensors files)"
"""The end of messages on a folder or repo that is not a model."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit; a longer header is refused."""
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1}
_SHARD = re.compile(r"-(\d+)-of-(\d+)\.safetensors$")


@dataclass(frozen=True)
class TensorInfo:
    """One tensor in a file.

    Args:
        file: the safetensors file.
        dtype: as safetensors names it ("BF16", "F32", "U32", ...).
        shape: its sizes.
        start: its first byte, counted from the beginning of the file.
        stop: the byte after its last.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        return self.stop - self.start


def weight_files(names: Iterable[str]) -> list[str]:
    """Return the names that hold tensors, relative to the model's folder; side-cars last, mlxmtp's at the end."""
    known = [name for name in names if name.endswith(".safetensors") and ("/" not in name or name in SIDECARS)]
    return sorted(known, key=lambda name: (-SIDECARS.index(name) if name in SIDECARS else -len(SIDECARS), name))


def list_tensors(folder: Path) -> dict[str, TensorInfo]:
    """Return the tensors of a folder's safetensors files; of two with one name, the side-car's.

    Raises:
        CheckpointError: there are no such files, a shard is missing, or a file is shorter than its header says.
    """
    here = {file.name for file in folder.glob("*.safetensors")}
    files = weight_files(here.union(name for name in SIDECARS if (folder / name).is_file()))
    indices = {index.name: index.read_bytes() for index in sorted(folder.glob("*.safetensors.index.json"))}
    check_complete(str(folder), files, indices, os.listdir(folder))
    return {name: info for file in files for name, info in read_header(folder / file).items()}


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file; check its header against its size."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = header_length(stream.read(8), size, str(file))
        return parse_header(stream.read(length), file, size, str(file))


def header_length(prefix: bytes, size: int, name: str) -> int:
    """Return the bytes of the JSON header, from the 8 bytes that begin every safetensors file.

    Raises:
        CheckpointError: a file of `size` bytes cannot hold such a header.
    """
    length: int = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
    if not 0 < length <= min(size - 8, MAX_HEADER_BYTES):
        raise CheckpointError(f"{name}: not a complete safetensors file ({size} bytes); download it again")
    return length


def parse_header(header: bytes, file: Path, size: int, name: str) -> dict[str, TensorInfo]:
    """Return the tensors that the JSON header of a file of `size` bytes describes, called `name` in messages.

    Raises:
        CheckpointError: it cannot be read, contradicts itself, or describes more bytes than the file has.
    """
    data = 8 + len(header)
    try:
        entries: dict[str, Any] = json.loads(header)
        entries.pop("__metadata__", None)
        tensors = {tensor: _info(entry, file, data) for tensor, entry in entries.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{name}: its safetensors header cannot be read; download it again") from error
    expected = max((info.stop for info in tensors.values()), default=data)
    if size < expected:
        raise CheckpointError(f"{name}: {size} bytes, expected {expected}: the file is cut short; download it again")
    return tensors


def _info(entry: dict[str, Any], file: Path, data: int) -> TensorInfo:
    first, last = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    size = math.prod(shape) * _BYTES[dtype] if dtype in _BYTES else last - first
    if not 0 <= first <= last or last - first != size:
        raise ValueError(f"{dtype} {shape} in bytes {first} to {last}")
    return TensorInfo(file, dtype, shape, data + first, data + last)


def contents(names: Iterable[str]) -> str:
    """Return a phrase on what a folder or repo holds, for messages; weights of other formats come first."""
    found = sorted((n for n in names if not n.startswith(".")), key=lambda n: (not n.endswith((".gguf", ".bin")), n))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"it holds {', '.join(found[:3])}{more}" if found else "it is empty"


def check_complete(where: str, present: Iterable[str], indices: dict[str, bytes], names: Iterable[str]) -> None:
    """Check that every weight file is present that an index or the numbering of the shards names.

    Args:
        where: the folder or repo, for messages.
        present: the weight files.
        indices: content of each index file, by name.
        names: all files, for the message if there are no weights.

    Raises:
        CheckpointError: files are missing, or an index cannot be read.
    """
    present = set(present)
    if not present:
        raise CheckpointError(f"{where}: no .safetensors files; {contents(names)}; {EXPECTED}")
    expected = set(present)
    for name, content in indices.items():
        try:
            expected |= set(map(str, json.loads(content)["weight_map"].values()))
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise CheckpointError(f"{where}/{name}: cannot be read as an index of shards") from error
    for name in present:
        expected |= set(_numbered(name))
    if missing := sorted(expected - present):
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{where}: missing {', '.join(missing[:3])}{more}; download the model again")


def _numbered(name: str) -> Iterator[str]:
    """Yield the names of all shards of the set to which a shard belongs."""
    if match := _SHARD.search(name):
        stem, width = name[: match.start()], len(match[1])
        for i in range(1, int(match[2]) + 1):
            yield f"{stem}-{i:0{width}}-of-{match[2]}.safetensors"
