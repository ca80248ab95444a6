"""Read a head from where it is: a folder, or a repo on the Hub, from which only the head is downloaded."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints import HeadFiles, TensorInfo
from mlxmtp.checkpoints.attached import partial_file
from mlxmtp.checkpoints.remote import BLOCK, RemoteRepo
from mlxmtp.checkpoints.writer import DTYPES, header
from mlxmtp.errors import HeadError
from mlxmtp.files import check_space, explain_full_disk, locked

SAMPLE = (".layers.0.input_layernorm.weight", ".layers.0.post_attention_layernorm.weight", "model.norm.weight",
          ".language_model.norm.weight", ".layers.0.norm.weight", ".layers.0.linear_attn.conv1d.weight")  # fmt: skip
"""The last parts of the names of the few small tensors by which two trunks are compared."""

OnBytes = Callable[[int, int], None]
"""Called with (bytes done, bytes in total)."""


@dataclass(frozen=True)
class Source:
    """A model, or a drafter, with a head.

    Args:
        name: repo or folder.
        revision: the commit of that repo.
        config: the content of config.json.
        tensors: those whose headers were read, by name.
        head: the head's tensors; their files are local, or names in `remote`.
        remote: the repo on the Hub; None: the files are local.
    """

    name: str
    revision: str | None
    config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]
    head: HeadFiles
    remote: RemoteRepo | None

    def read(self, name: str) -> mx.array:
        """Return one small tensor."""
        if self.remote is None:
            return load_tensor(name, self.tensors)
        info = self.tensors[name]
        return array_of(self.remote.read(str(info.file), info.start, info.stop), info)

    @contextmanager
    def local_head(self, on_bytes: OnBytes) -> Iterator[HeadFiles]:
        """Yield the head in local files, which exist during the block; a stopped download continues.

        Raises:
            CheckpointError: the download fails, the disk is full, or another process downloads the same head.
        """
        if self.remote is None:
            yield self.head
            return
        with local_copies(self.remote, self.remote.repo, self.head.tensors, on_bytes) as local:
            yield replace(self.head, tensors=local)


@contextmanager
def local_copies(
    remote: RemoteRepo, name: str, tensors: Mapping[str, TensorInfo], on_bytes: OnBytes
) -> Iterator[dict[str, TensorInfo]]:
    """Download tensors to one local file, which exists during the block; yield where they are in it.

    Args:
        name: the repo, or the file in it, whose head this is; a later run with this name continues.

    Raises:
        CheckpointError: the download fails, the disk is full, or another process downloads the same head.
    """
    file = partial_file(name, remote.commit)
    order = sorted(tensors.items(), key=lambda item: (str(item[1].file), item[1].start))
    start = header([(name, info.dtype, info.shape, info.nbytes) for name, info in order])
    at, local = len(start), {}
    for tensor, info in order:
        local[tensor] = replace(info, file=file, start=at, stop=at + info.nbytes)
        at += info.nbytes
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with locked(file, file):
        check_space(file, at - file.stat().st_size)
        with explain_full_disk(file):
            _download(remote, [info for _, info in order], file, start, on_bytes)
        try:
            yield local
        except HeadError:
            file.unlink()  # or the next run would use it again
            raise
        with suppress(OSError):
            file.unlink()


def load_tensor(name: str, tensors: Mapping[str, TensorInfo]) -> mx.array:
    """Return one tensor of a local file, lazily."""
    arrays: dict[str, mx.array] = mx.load(str(tensors[name].file))  # type: ignore[assignment]
    return arrays[name]


def _download(remote: RemoteRepo, pieces: list[TensorInfo], file: Path, start: bytes, on_bytes: OnBytes) -> None:
    """Fill a safetensors file with pieces of remote files, in order; bytes of an earlier run are kept."""
    total = len(start) + sum(piece.nbytes for piece in pieces)
    with file.open("a+b") as out:
        out.seek(0)
        if out.read(len(start)) != start or out.seek(0, os.SEEK_END) > total:
            out.truncate(0)
            out.write(start)
        done = out.seek(0, os.SEEK_END)
        on_bytes(done, total)
        for name, first, last in _ranges(pieces, skip=done - len(start)):
            while first < last:
                content = remote.read(name, first, min(first + BLOCK, last))
                out.write(content)
                out.flush()
                first += len(content)
                done += len(content)
                on_bytes(done, total)


def _ranges(pieces: list[TensorInfo], skip: int) -> Iterator[tuple[str, int, int]]:
    """Yield byte ranges (file, start, stop) of the pieces after the first `skip` bytes; neighbours are joined."""
    joined: list[tuple[str, int, int]] = []
    for piece in pieces:
        start = piece.start + min(skip, piece.nbytes)
        skip -= min(skip, piece.nbytes)
        if joined and joined[-1][0] == str(piece.file) and joined[-1][2] == start:
            joined[-1] = (*joined[-1][:2], piece.stop)
        elif start < piece.stop:
            joined.append((str(piece.file), start, piece.stop))
    yield from joined


def array_of(content: bytes, info: TensorInfo) -> mx.array:
    """Return the values of a small tensor from its bytes."""
    dtypes = {name: dtype for dtype, name in DTYPES.items()}
    if info.dtype not in dtypes:
        raise HeadError(f"{info.dtype} tensors cannot be compared")
    return mx.array(list(content), mx.uint8).view(dtypes[info.dtype]).reshape(info.shape)
