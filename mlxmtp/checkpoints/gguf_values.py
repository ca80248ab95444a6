"""Write the tensors of a GGUF head as safetensors: whole ones as they are, quantised ones in float32.

Rows are read, dequantised and written in blocks, so that memory does not grow with a matrix.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from mlxmtp.checkpoints.gguf_names import GATE_UP, ROWS
from mlxmtp.checkpoints.head_files import HeadFiles
from mlxmtp.checkpoints.tensors import TensorInfo
from mlxmtp.checkpoints.writer import header
from mlxmtp.errors import HeadError

WHOLE = {"F32": 4, "F16": 2, "BF16": 2}
"""Types that are not quantised, and bytes of a value; safetensors has the same names."""
ROW_BYTES = 4 << 20
"""Bytes of quantised rows that are dequantised at once; in float32 they are up to 16 times as many."""

ReadTensor = Callable[[TensorInfo, int, int], bytes]
"""read(tensor, start, stop) returns bytes of a tensor, counted from its first."""


@dataclass(frozen=True)
class _Piece:
    """A tensor to write.

    Args:
        name: inside the head.
        source: the tensor that it comes from.
        shape: its own.
        half: 0 or 1: it is the first or second half of each expert's rows; None: it is the whole tensor.
    """

    name: str
    source: TensorInfo
    shape: tuple[int, ...]
    half: int | None = None

    @property
    def dtype(self) -> str:
        return self.source.dtype if self.source.dtype in WHOLE else "F32"

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=object)) * WHOLE[self.dtype]

    @property
    def rows(self) -> Iterator[tuple[int, int]]:
        """Yield ranges of the source's rows."""
        count = self.source.nbytes // self._row_bytes
        if self.half is None:
            yield 0, count
            return
        height = self.source.shape[-2] // 2
        for start in range(self.half * height, count, 2 * height):
            yield start, start + height

    def blocks(self, read: ReadTensor) -> Iterator[bytes]:
        """Yield the values in blocks."""
        step = max(1, ROW_BYTES // self._row_bytes)
        for first, last in self.rows:
            for start in range(first, last, step):
                stop = min(start + step, last)
                content = read(self.source, start * self._row_bytes, stop * self._row_bytes)
                yield content if self.source.dtype in WHOLE else _dequantise(content, self.source.dtype, stop - start)

    @property
    def _row_bytes(self) -> int:
        return self.source.nbytes * self.source.shape[-1] // int(np.prod(self.source.shape, dtype=object))


def check_values(head: HeadFiles, where: str) -> None:
    """Check that every tensor can be dequantised, and that no two are the same one of the head.

    Args:
        where: the file, for messages.

    Raises:
        HeadError: names the first that cannot be.
    """
    names = [piece.name for piece in _pieces(head)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise HeadError(f"{where}: two of its tensors are the head's {twice}, expected one")
    for name, info in head.tensors.items():
        if info.dtype not in WHOLE and not _dequantised(info.dtype):
            raise HeadError(
                f"{where}: {name} is stored as {info.dtype}, expected F32, F16, BF16, Q8_0, Q4_0, a K-quant or another "
                "type that the gguf package dequantises"
            )


def written_bytes(head: HeadFiles) -> int:
    """Return the bytes of values that `write_values` will write."""
    return sum(piece.nbytes for piece in _pieces(head))


def write_values(head: HeadFiles, read: ReadTensor, dest: Path) -> HeadFiles:
    """Write a head to a safetensors file, under the names inside the head; return the head in that file."""
    pieces = _pieces(head)
    start = header([(piece.name, piece.dtype, piece.shape, piece.nbytes) for piece in pieces])
    tensors: dict[str, TensorInfo] = {}
    with dest.open("wb") as out:
        out.write(start)
        for piece in pieces:
            at = out.tell()
            for block in piece.blocks(read):
                out.write(block)
            tensors[piece.name] = TensorInfo(dest, piece.dtype, piece.shape, at, out.tell())
    return replace(head, tensors=tensors, names={name: name for name in tensors})


def _pieces(head: HeadFiles) -> list[_Piece]:
    pieces: list[_Piece] = []
    for name, short in head.names.items():
        info = head.tensors[name]
        if GATE_UP in short:
            if len(info.shape) < 2 or info.shape[-2] % 2:
                raise HeadError(f"{name} is {info.shape}, expected gates and as many up-projections")
            shape = (*info.shape[:-2], info.shape[-2] // 2, info.shape[-1])
            halves = enumerate(("gate_proj", "up_proj"))
            pieces += [_Piece(short.replace("gate_up_proj", half), info, shape, i) for i, half in halves]
        else:
            row = short.endswith(ROWS) and len(info.shape) == 1
            pieces.append(_Piece(short, info, (1, *info.shape) if row else info.shape))
    return pieces


def _dequantise(content: bytes, dtype: str, rows: int) -> bytes:
    """Return the float32 values of rows; damaged scales may give values that are not finite."""
    from gguf import GGMLQuantizationType
    from gguf.quants import dequantize

    packed = np.frombuffer(content, np.uint8).reshape(rows, -1)
    with np.errstate(all="ignore"):
        values: Any = dequantize(packed, GGMLQuantizationType[dtype])
    return values.astype("<f4", copy=False).tobytes()  # type: ignore[no-any-return]


@cache
def _dequantised(dtype: str) -> bool:
    """Return whether the gguf package dequantises a type."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    if dtype not in GGMLQuantizationType.__members__:
        return False
    try:
        _dequantise(bytes(GGML_QUANT_SIZES[GGMLQuantizationType[dtype]][1]), dtype, 1)
    except NotImplementedError:
        return False
    return True
