"""Names, shapes and dtypes of a checkpoint's tensors, read from the safetensors headers alone."""

import math
import os
import re
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

from mlxmtp.errors import CheckpointError
from mlxmtp.files import open_regular, parse_json, read_regular

SIDECAR = "mtp.safetensors"
"""The file of a head next to a model that was converted without it, as mlxmtp writes it."""
SIDECAR_FOLDER = "mtp"
"""The folder of a head within a model's folder."""
SIDECARS = (SIDECAR, "mtp-*-of-*.safetensors", f"{SIDECAR_FOLDER}/weights.safetensors",
            f"{SIDECAR_FOLDER}/model*.safetensors", "model-mtp.safetensors")  # fmt: skip
"""That name, and patterns of the names that other programs give it, relative to the model's folder; the first has
priority."""
WHOLE = "model.safetensors"
"""The file of a model that is not in shards."""
WEIGHTS = "model*.safetensors"
"""The pattern of the files that mlx-lm reads; `adapters.safetensors` and `consolidated.safetensors` are others'."""
HEADS = "*mtp*.safetensors"
"""The pattern of the files that may hold a head, for downloads."""
INDEX = WEIGHTS + ".index.json"
"""The pattern of the files that say which shard holds which tensor."""
EXPECTED = "expected a model in Hugging Face or MLX layout (config.json and model*.safetensors files)"
"""The end of messages on a folder or repo that is not a model."""
MAX_HEADER_BYTES = 100_000_000
"""The safetensors library's own limit; a longer header is refused."""
COMPARED = 16 << 20
"""Bytes of each of two tensors that are compared at once."""
_BYTES = {"F64": 8, "I64": 8, "U64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}
_BYTES |= {"F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "I8": 1, "U8": 1, "BOOL": 1}
_MAX_DIMENSIONS, _MAX_SIZE = 16, 1 << 63
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


@contextmanager
def readable(name: str | Path, kind: str = "JSON") -> Iterator[None]:
    """Raise the errors of reading a file as `CheckpointError`.

    Args:
        name: of the file, for messages.
        kind: what the file should be, for messages.
    """
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise CheckpointError(f"{name}: not valid {kind} ({error})") from error


class Tensors(dict[str, TensorInfo]):
    """Tensors by name.

    Attributes:
        hidden: tensors that a later file has another of with the same name.
    """

    def __init__(self, tensors: Iterable[tuple[str, TensorInfo]] = ()) -> None:
        super().__init__()
        self.hidden: dict[str, list[TensorInfo]] = {}
        for name, info in tensors:
            if name in self:
                self.hidden.setdefault(name, []).append(self[name])
            self[name] = info


def sidecar_rank(name: str) -> int | None:
    """Return which of SIDECARS matches the name of a file, relative to the model's folder; None: it is no side-car."""
    matches = (i for i, pattern in enumerate(SIDECARS) if fnmatchcase(name, pattern))
    return next((i for i in matches if name.count("/") == SIDECARS[i].count("/")), None)


def sidecar_tensors(tensors: Mapping[str, TensorInfo]) -> dict[str, int]:
    """Return the names of the tensors in side-cars, each with its file's index in SIDECARS."""
    folders = {info.file.parent for info in tensors.values()}
    ranks: dict[Path, int | None] = {}
    for file in {info.file for info in tensors.values()}:
        # a folder within the model's: a head in a folder of that name that is opened by itself is no side-car
        within = file.parent.name == SIDECAR_FOLDER and file.parent.parent in folders
        ranks[file] = sidecar_rank(f"{SIDECAR_FOLDER}/{file.name}" if within else file.name)
    found = ((name, ranks[info.file]) for name, info in tensors.items())
    return {name: rank for name, rank in found if rank is not None}


def file_names(folder: Path) -> list[str]:
    """Return the names of a folder's files and of those in its `SIDECAR_FOLDER`, relative to the folder."""
    inner = folder / SIDECAR_FOLDER
    within = os.listdir(inner) if inner.is_dir() else ()
    return [*os.listdir(folder), *(f"{SIDECAR_FOLDER}/{name}" for name in within)]


def weight_files(names: Iterable[str], indices: Iterable[Mapping[str, str]] = ()) -> list[str]:
    """Return the names that hold tensors, relative to the model's folder; side-cars last, mlxmtp's at the end.

    Args:
        names: of all files.
        indices: of shards; a file counts that one of them names besides files of this model.
    """
    names = set(names)
    found = {name for name in names if "/" not in name and fnmatchcase(name, WEIGHTS)}
    for index in indices:
        listed = {name for name in index.values() if name.endswith(".safetensors")} & names
        found |= listed if listed & found else set()
    ranks = {name: sidecar_rank(name) for name in names}
    found |= {name for name, rank in ranks.items() if rank is not None}
    return sorted(found, key=lambda name: (-len(SIDECARS) if ranks[name] is None else -(ranks[name] or 0), name))


def index_files(names: Iterable[str]) -> list[str]:
    """Return the names of the indices of shards."""
    return sorted(name for name in names if "/" not in name and fnmatchcase(name, INDEX))


def list_tensors(folder: Path) -> Tensors:
    """Return the tensors of a folder's safetensors files; of two with one name, the side-car's.

    Raises:
        CheckpointError: there are no such files, a shard is missing, or a file is shorter than its header says.
    """
    names = file_names(folder)
    indices = {}
    for name in index_files(names):
        with readable(folder / name):
            indices[name] = read_index(read_regular(folder / name), f"{folder}/{name}")
    check_complete(str(folder), names, indices)
    files = weight_files(names, indices.values())
    return Tensors(item for file in files for item in read_header(folder / file).items())


def read_header(file: Path) -> dict[str, TensorInfo]:
    """Return the tensors of one safetensors file; check its header against its size."""
    with readable(file, "safetensors"), open_regular(file) as stream:
        size = os.fstat(stream.fileno()).st_size
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
        entries: dict[str, Any] = parse_json(header)
        entries.pop("__metadata__", None)
        tensors = {tensor: _info(entry, file, data) for tensor, entry in entries.items()}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise CheckpointError(f"{name}: its safetensors header cannot be read; download it again") from error
    spans = sorted((info.start, info.stop) for info in tensors.values() if info.nbytes)
    if any(following < stop for (_, stop), (following, _) in pairwise(spans)):
        raise CheckpointError(f"{name}: two tensors of its safetensors header share bytes; download it again")
    expected = max((info.stop for info in tensors.values()), default=data)
    if size < expected:
        raise CheckpointError(f"{name}: {size} bytes, expected {expected}: the file is cut short; download it again")
    return tensors


def _info(entry: dict[str, Any], file: Path, data: int) -> TensorInfo:
    first, last = entry["data_offsets"]
    shape, dtype = tuple(entry["shape"]), entry["dtype"]
    if not isinstance(dtype, str) or len(shape) > _MAX_DIMENSIONS:
        raise ValueError(f"{dtype} {shape}")
    if any(type(number) is not int or not 0 <= number < _MAX_SIZE for number in (first, last, *shape)):
        raise ValueError(f"{dtype} {shape} in bytes {first} to {last}")
    size = math.prod(shape) * _BYTES[dtype] if dtype in _BYTES else last - first
    if last - first != size:
        raise ValueError(f"{dtype} {shape} in bytes {first} to {last}")
    return TensorInfo(file, dtype, shape, data + first, data + last)


def same_bytes(one: TensorInfo, other: TensorInfo) -> bool:
    """Return whether two tensors in local files are the same, number for number."""
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return False
    with readable(one.file, "safetensors"), open_regular(one.file) as first, open_regular(other.file) as second:
        first.seek(one.start)
        second.seek(other.start)
        sizes = (min(COMPARED, one.nbytes - at) for at in range(0, one.nbytes, COMPARED))
        return all(first.read(size) == second.read(size) for size in sizes)


def contents(names: Iterable[str]) -> str:
    """Return a phrase on what a folder or repo holds, for messages; weights of other formats come first."""
    found = sorted((n for n in names if not n.startswith(".")), key=lambda n: (not n.endswith((".gguf", ".bin")), n))
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return f"it holds {', '.join(found[:3])}{more}" if found else "it is empty"


def read_index(content: bytes, name: str) -> dict[str, str]:
    """Return the file of each tensor, as an index of shards called `name` says.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        files = dict(parse_json(content)["weight_map"].items())
        if not all(isinstance(file, str) for file in files.values()):
            raise TypeError("expected the name of a file for each tensor")
        return files
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{name}: cannot be read as an index of shards ({error})") from error


def check_complete(where: str, names: Iterable[str], indices: Mapping[str, Mapping[str, str]]) -> None:
    """Check that every weight file is present that an index or the numbering of the shards names.

    mlx-lm reads no index. One that names none of the weight files that are present is of other weights.

    Args:
        where: the folder or repo, for messages.
        names: all of its files.
        indices: each index, by its name.

    Raises:
        CheckpointError: files are missing.
    """
    names = list(names)
    present = set(weight_files(names, indices.values()))
    if not present:
        raise CheckpointError(f"{where}: no model*.safetensors files; {contents(names)}; {EXPECTED}")
    sidecars = {name for name in present if sidecar_rank(name) is not None}
    others = present == sidecars  # the model's own weights are not here
    listed = (set(index.values()) for index in indices.values())
    missing = {name for files in listed if others or files & present for name in files - present}
    missing |= set(_missing_shards(sidecars if WHOLE in present else present))
    if missing:
        more = " and more" if len(missing) > 3 else ""
        raise CheckpointError(f"{where}: missing {', '.join(sorted(missing)[:3])}{more}; download the model again")


def _missing_shards(present: Iterable[str]) -> Iterator[str]:
    """Yield up to four names that are missing from each set of numbered shards; the sets can be huge."""
    sets: dict[tuple[str, str, int], set[int]] = {}
    for name in present:
        if match := _SHARD.search(name):
            key = name[: match.start()], match[2], len(match[1])
            sets.setdefault(key, set()).add(int(match[1]))
    for (stem, total, width), numbers in sets.items():
        missing = (number for number in range(1, int(total) + 1) if number not in numbers)
        for number in islice(missing, 4):
            yield f"{stem}-{number:0{width}}-of-{total}.safetensors"
