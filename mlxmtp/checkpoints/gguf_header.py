"""Read what a GGUF file says of itself: its metadata, and the types, shapes and places of its tensors.

The file is hostile until read. Counts, lengths and offsets are compared with the file's size before anything is read
or kept; of the metadata, numbers and short texts are kept. Source: ggml's `docs/gguf.md`.
"""

import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from mlxmtp.checkpoints.tensors import TensorInfo
from mlxmtp.errors import CheckpointError
from mlxmtp.units import size as in_words

VERSIONS = (2, 3)
"""Versions of the format that are read; both have the same layout. Version 1 has shorter counts."""
HEADER_BLOCK = 4 << 20
"""Bytes of one read; most headers have 5 to 15 MB, of which a tokenizer is the most."""
MAX_HEADER_BYTES = 64 << 20
"""A longer header is refused. It bounds the time to walk through it, too."""
MAX_ENTRIES = 1 << 16
"""Tensors, or entries of the metadata. The largest models have 2,000 tensors."""
MAX_NAME_BYTES = 1024
"""Bytes of a name; ggml allows a tensor's 64."""
MAX_TEXT_BYTES = 1024
"""Longer texts of the metadata, such as chat templates, are not kept."""
MAX_DIMENSIONS = 4
"""ggml's own limit."""
ALIGNMENT_KEY, ALIGNMENT = "general.alignment", 32
"""Tensors begin at multiples of this entry, or of the default, in bytes."""
MAX_ALIGNMENT = 1 << 16
"""Bytes; a larger alignment is refused."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_TEXT, _ARRAY = 8, 9
_LENGTH = struct.Struct("<Q")
_MIN_ENTRY_BYTES, _MIN_TENSOR_BYTES = 13, 32

Read = Callable[[int, int], bytes]
"""read(start, stop) returns these bytes of the file."""
Value = int | float | bool | str
"""A value of the metadata."""


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file, or of all parts of a split one.

    Args:
        metadata: its numbers and short texts; arrays are left out.
        tensors: by name; `dtype` is ggml's name of the type ("Q8_0"), or "type 139" for an unknown one, which has no
            bytes. Shapes are in row-major order, the longest stride first.
    """

    metadata: Mapping[str, Value]
    tensors: Mapping[str, TensorInfo]

    def number(self, key: str) -> int | None:
        """Return a whole number of the metadata that is not negative; None: there is none, or an array."""
        value = self.metadata.get(key)
        return value if type(value) is int and value >= 0 else None

    @property
    def architecture(self) -> str:
        """The architecture, as llama.cpp names it; "" if the file states none that is a name."""
        value = self.metadata.get("general.architecture")
        return value if isinstance(value, str) and value.isprintable() else ""


def read_gguf(read: Read, size: int, file: Path, name: str) -> GgufHeader:
    """Return the header of a file of `size` bytes, called `name` in messages.

    Args:
        file: stands in the tensors.

    Raises:
        CheckpointError: it is not a GGUF file that can be read; the message says what was found and expected.
    """
    cursor = _Cursor(read, size, name)
    cursor.check_version()
    tensor_count, entry_count = cursor.number("<Q"), cursor.number("<Q")
    cursor.check_count("tensors", tensor_count, _MIN_TENSOR_BYTES)
    cursor.check_count("metadata entries", entry_count, _MIN_ENTRY_BYTES)
    metadata: dict[str, Value] = {}
    names: set[str] = set()
    for _ in range(entry_count):
        key = cursor.name_of("a metadata entry")
        if key in names:
            raise cursor.refuse(f"two metadata entries {key!r}, expected one")
        names.add(key)
        if (value := cursor.value(key)) is not None:
            metadata[key] = value
    alignment = metadata.get(ALIGNMENT_KEY, ALIGNMENT)
    if type(alignment) is not int or not 0 < alignment <= MAX_ALIGNMENT or alignment & (alignment - 1):
        raise cursor.refuse(f"{ALIGNMENT_KEY} {alignment!r}, expected a power of two up to {MAX_ALIGNMENT}")
    described = [cursor.tensor() for _ in range(tensor_count)]
    data = -(-cursor.at // alignment) * alignment
    tensors: dict[str, TensorInfo] = {}
    for tensor, dtype, shape, offset, nbytes in described:
        if tensor in tensors:
            raise cursor.refuse(f"two tensors {tensor!r}, expected one")
        if offset % alignment:
            raise cursor.refuse(f"{tensor} begins at {offset}, expected a multiple of {alignment}")
        start = data + offset
        if start + nbytes > size:
            raise CheckpointError(
                f"{name}: {size} bytes, expected {start + nbytes} or more: the file is cut short; download it again"
            )
        tensors[tensor] = TensorInfo(file, dtype, shape, start, start + nbytes)
    _check_apart(tensors, cursor)
    return GgufHeader(metadata, tensors)


def _check_apart(tensors: Mapping[str, TensorInfo], cursor: "_Cursor") -> None:
    """Check that no two tensors share bytes; one of an unknown type has its first byte at least."""
    spans = sorted((info.start, max(info.stop, info.start + 1), name) for name, info in tensors.items())
    for (_, stop, name), (start, _, other) in pairwise(spans):
        if start < stop:
            raise cursor.refuse(f"{name} and {other} share bytes, expected each to have its own")


class _Cursor:
    """A place in a file that is read from its beginning, in blocks."""

    def __init__(self, read: Read, size: int, name: str) -> None:
        from gguf.constants import GGML_QUANT_SIZES  # with its package, it takes 0.1 s to import

        self.at = 0
        self._read, self._size, self._name = read, size, name
        self._buffer, self._first = b"", 0
        self._types = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}

    def refuse(self, found: str) -> CheckpointError:
        """Return the error for a header that contradicts itself."""
        return CheckpointError(f"{self._name}: its GGUF header has {found}; download it again, or take another file")

    def check_version(self) -> None:
        """Check what every file begins with."""
        magic = self.take(4) if self._size >= 24 else b""
        if magic != b"GGUF":
            found = f"it begins with {magic!r}" if magic else f"{self._size} bytes"
            raise CheckpointError(f"{self._name}: not a GGUF file ({found}, expected b'GGUF'); download it again")
        version = self.number("<I")
        if version in VERSIONS:
            return
        if version and not version & 0xFFFF:
            raise CheckpointError(f"{self._name}: a big-endian GGUF file, expected a little-endian one")
        raise CheckpointError(f"{self._name}: GGUF version {version}, expected 2 or 3; take a newer conversion")

    def check_count(self, what: str, count: int, nbytes: int) -> None:
        """Check a number of things that take `nbytes` each at least."""
        most = min(MAX_ENTRIES, (self._size - self.at) // nbytes)
        if count > most:
            raise self.refuse(f"{count} {what}, expected {most} at most in {in_words(self._size)}")

    def take(self, count: int) -> bytes:
        """Return the next bytes."""
        start = self._buffered(count)
        self.at += count
        return self._buffer[start : start + count]

    def number(self, form: str) -> int:
        """Return the next number; `form` is a format of `struct`."""
        (value,) = struct.unpack(form, self.take(struct.calcsize(form)))
        return value  # type: ignore[no-any-return]

    def skip(self, count: int) -> None:
        """Pass over bytes without reading them."""
        self._check_inside(count)
        self.at += count

    def name_of(self, what: str) -> str:
        """Return the next name."""
        length = self.number("<Q")
        if not 0 < length <= MAX_NAME_BYTES:
            raise self.refuse(f"{what} with a name of {length} bytes, expected 1 to {MAX_NAME_BYTES}")
        name = self.take(length)
        try:
            text = name.decode()
        except UnicodeDecodeError:
            text = ""
        if not text.isprintable() or not text:
            raise self.refuse(f"{what} called {name[:40]!r}, expected UTF-8 text")
        return text

    def value(self, key: str) -> Value | None:
        """Return the next value; None: it is not kept."""
        kind = self.number("<I")
        if kind == _ARRAY:
            self._skip_array(key)
            return None
        if kind != _TEXT:
            return self.number(self._scalar(key, kind))
        length = self.number("<Q")
        if length > MAX_TEXT_BYTES:
            self.skip(length)
            return None
        return self.take(length).decode(errors="replace")

    def tensor(self) -> tuple[str, str, tuple[int, ...], int, int]:
        """Return the next tensor's name, type, shape, offset and bytes."""
        name = self.name_of("a tensor")
        dimensions = self.number("<I")
        if not 0 < dimensions <= MAX_DIMENSIONS:
            raise self.refuse(f"{name} of {dimensions} dimensions, expected 1 to {MAX_DIMENSIONS}")
        shape = tuple(self.number("<Q") for _ in range(dimensions))[::-1]
        kind, offset = self.number("<I"), self.number("<Q")
        dtype, block, nbytes = self._types.get(kind, (f"type {kind}", 1, 0))
        count = math.prod(shape)
        if not 0 < count < 1 << 60:
            raise self.refuse(f"{name} of shape {list(shape)}, expected sizes from 1 up to what a file can hold")
        if shape[-1] % block:
            raise self.refuse(f"{name} in {dtype} with {shape[-1]} columns, expected a multiple of {block}")
        return name, dtype, shape, offset, count // block * nbytes

    def _scalar(self, key: str, kind: int) -> str:
        if kind not in _SCALARS:
            raise self.refuse(f"{key} of type {kind}, expected one of {', '.join(map(str, sorted(_SCALARS)))} or 8, 9")
        return _SCALARS[kind]

    def _skip_array(self, key: str) -> None:
        kind, count = self.number("<I"), self.number("<Q")
        if kind == _ARRAY:
            raise self.refuse(f"{key}, an array of arrays, expected one of numbers or texts")
        nbytes = 8 if kind == _TEXT else struct.calcsize(self._scalar(key, kind))
        self._check_inside(count * nbytes)
        if kind != _TEXT:
            return self.skip(count * nbytes)
        for _ in range(count):
            start = self._buffered(8)
            self.skip(8 + _LENGTH.unpack_from(self._buffer, start)[0])
        return None

    def _check_inside(self, count: int) -> None:
        """Check that `count` more bytes are in the file, and in a header of the longest kind."""
        if self.at + count > self._size:
            found = f"{self._size} bytes, and its header goes on to {self.at + count}"
            raise CheckpointError(f"{self._name}: {found}: the file is cut short or damaged; download it again")
        if self.at + count > MAX_HEADER_BYTES:
            raise self.refuse(f"more than {in_words(MAX_HEADER_BYTES)}, expected less")

    def _buffered(self, count: int) -> int:
        """Return where the next bytes are in the buffer; read a block if they are not there yet."""
        start, stop = self.at - self._first, self.at + count - self._first
        if stop > len(self._buffer):
            self._check_inside(count)
            kept = self._buffer[start:]
            first = self.at + len(kept)
            last = min(self._size, max(self.at + count, first + HEADER_BLOCK))
            self._buffer, self._first, start = kept + self._read(first, last), self.at, 0
        return start
