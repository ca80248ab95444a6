"""Open the GGUF file of a folder or repo that has the best head, and all parts of a split one."""

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from mlxmtp.checkpoints.gguf_header import GgufHeader, Value, read_gguf
from mlxmtp.checkpoints.gguf_names import nextn_tensors
from mlxmtp.checkpoints.hub import cached
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.checkpoints.tensors import TensorInfo, readable, weight_files
from mlxmtp.errors import CheckpointError
from mlxmtp.files import open_regular
from mlxmtp.names import REPO

SUFFIX = ".gguf"
OTHERS = ("mmproj", "imatrix")
"""Parts of the names of GGUF files that are no language models: vision towers, statistics."""
MAX_HEADERS = 8
"""Files of which the header is read to choose one; a header has some 10 MB, and a repo up to 30 files."""
MAX_PARTS = 1000
"""Parts of a split file; the largest models have 50."""
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.IGNORECASE)
_BITS = re.compile(r"(?<![a-z0-9])(?:(bf|fp?)(16|32)|i?t?q([1-8])|(mxfp4|nvfp4))(?![0-9])", re.IGNORECASE)
_UNLABELLED = 99.0


class ReadableFiles(Protocol):
    """Files that are read in byte ranges: a `RemoteRepo`, or `LocalFiles`."""

    @property
    def sizes(self) -> Mapping[str, int]:
        """Bytes of each file, by name."""

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file."""


@dataclass(frozen=True)
class LocalFiles:
    """The GGUF files of a folder.

    Args:
        folder: theirs.
        sizes: bytes of each file, by its name relative to the folder.
    """

    folder: Path
    sizes: Mapping[str, int]

    @classmethod
    def open(cls, folder: Path) -> "LocalFiles":
        """Find the files, up to one folder deeper."""
        found = [file for pattern in (f"*{SUFFIX}", f"*/*{SUFFIX}") for file in folder.glob(pattern)]
        with readable(folder, "GGUF"):
            sizes = {file.relative_to(folder).as_posix(): file.stat().st_size for file in found if file.exists()}
        return cls(folder, sizes)

    def read(self, file: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file.

        Raises:
            CheckpointError: it cannot be read, or became shorter.
        """
        with readable(self.folder / file, "GGUF"), open_regular(self.folder / file) as stream:
            stream.seek(start)
            content = stream.read(stop - start)
        if len(content) != stop - start:
            raise CheckpointError(f"{self.folder / file}: {len(content)} bytes at {start}, expected {stop - start}")
        return content


@dataclass(frozen=True)
class GgufModel:
    """A GGUF file, or a split one, whose header was read.

    Args:
        files: where it is.
        file: its name there; of a split one, that of the first part.
        header: of all parts.
        name: the name by which a user can ask for it.
        others: names of the other files beside it.
        revision: the commit of a repo on the Hub.
    """

    files: ReadableFiles
    file: str
    header: GgufHeader
    name: str
    others: tuple[str, ...] = ()
    revision: str | None = None

    @property
    def head(self) -> dict[str, TensorInfo]:
        """The tensors of its head; {}: it has none."""
        return nextn_tensors(self.header)


def open_local_gguf(path: Path) -> GgufModel | None:
    """Open a GGUF file, or the best one in a folder that has no other weights; None: `path` is neither."""
    if path.is_dir():
        files = LocalFiles.open(path)
        names = os.listdir(path)
        return choose_gguf(files, str(path)) if files.sizes and not weight_files(names) else None
    if path.suffix.lower() != SUFFIX:
        return None
    return open_named(LocalFiles.open(path.parent), path.name, str(path))


def split_name(name: str) -> tuple[str, str] | None:
    """Return repo and file of a name like "owner/name/FILE.gguf"; None: it is another."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    return (f"{owner}/{repo}", file) if REPO.fullmatch(f"{owner}/{repo}") and file.lower().endswith(SUFFIX) else None


def open_hub_gguf(repo: str, file: str, revision: str | None) -> GgufModel:
    """Open one GGUF file of a repo: in the Hub cache, or on the Hub, of which the header alone is read."""
    name = f"{repo}/{file}"
    if (snapshot := cached(repo, revision)) and (snapshot / file).is_file():
        return open_named(LocalFiles.open(snapshot), file, name, snapshot.name)
    remote = RemoteRepo.open(repo, revision)
    return open_named(remote, file, name, remote.commit)


def gguf_files(names: Iterable[str]) -> list[str]:
    """Return the names of GGUF files that may hold a language model; of a split one, the first part's."""
    models = [name for name in names if name.lower().endswith(SUFFIX) and not any(o in name.lower() for o in OTHERS)]
    return sorted(name for name in models if not (part := _PART.fullmatch(name)) or int(part[2]) == 1)


def only_gguf(names: Iterable[str]) -> bool:
    """Return whether there are GGUF files among a repo's, and no weights in another format."""
    names = list(names)
    return bool(gguf_files(names)) and not weight_files(names)


def choose_gguf(files: ReadableFiles, where: str, revision: str | None = None) -> GgufModel:
    """Open the file whose head is the least quantised; if none has a head, the file that is.

    Args:
        where: the folder or repo, for messages.

    Raises:
        CheckpointError: two files have heads of the same quantisation, or the headers that are read do not decide.
    """
    names = gguf_files(files.sizes)
    found: list[GgufModel] = []
    first: GgufModel | None = None
    for count, name in enumerate(sorted(names, key=lambda name: (-_bits(name), name))):
        below = bool(found) and _bits(name) < _bits(found[-1].file)
        if below and (count == MAX_HEADERS or _bits(found[-1].file) < _UNLABELLED):
            break
        if count == MAX_HEADERS:
            raise CheckpointError(
                f"{where}: {len(names)} GGUF files, and the headers of {MAX_HEADERS} do not decide; "
                f"name the one to take, such as {where}/{name}"
            )
        model = open_named(files, name, f"{where}/{name}", revision, tuple(o for o in names if o != name))
        first = first or model
        if model.head:
            found.append(model)
    if found:
        return _best(found, where)
    if first is None:
        raise CheckpointError(f"{where}: no GGUF file of a language model; it holds {', '.join(files.sizes)}")
    return first


def _best(models: list[GgufModel], where: str) -> GgufModel:
    widths = [sum(t.nbytes for t in m.head.values()) / sum(_count(t) for t in m.head.values()) for m in models]
    best = [model for model, width in zip(models, widths, strict=True) if width == max(widths)]
    if len(best) > 1:
        found = ", ".join(model.file for model in best)
        raise CheckpointError(
            f"{where}: {len(best)} GGUF files with heads of the same quantisation ({found}); "
            f"name the one to take, such as {best[0].name}"
        )
    return best[0]


def _count(tensor: TensorInfo) -> int:
    count = 1
    for size in tensor.shape:
        count *= size
    return count


def _bits(name: str) -> float:
    """Return the bits of a weight by the name of a file; one without a label is read first, then compared."""
    found = _BITS.findall(name)
    if not found:
        return _UNLABELLED
    kind, wide, few, _ = found[-1]
    # bfloat16 before float16: most originals are in bfloat16
    return float(wide) + (0.5 if kind.lower() == "bf" else 0) if wide else float(few or 4)


def open_named(
    files: ReadableFiles, file: str, name: str, revision: str | None = None, others: tuple[str, ...] = ()
) -> GgufModel:
    """Open one file by its name in `files`, called `name` in messages.

    Raises:
        CheckpointError: it is not there, a part is missing, or a header cannot be read.
    """
    parts = _parts(files, file, name)
    metadata: dict[str, Value] = {}
    tensors: dict[str, TensorInfo] = {}
    for number, part in enumerate(parts):
        called = name if len(parts) == 1 else name.removesuffix(file) + part
        read = partial(files.read, part)
        header = read_gguf(read, files.sizes[part], Path(part), called)
        count, own = header.number("split.count") or 1, header.number("split.no") or 0
        if (count, own) != (len(parts), number):
            raise CheckpointError(
                f"{called}: part {own + 1} of {count} by its metadata, expected {number + 1} of {len(parts)} by its "
                "name (NAME-00001-of-00003.gguf); keep the names that the parts were published with"
            )
        if twice := tensors.keys() & header.tensors.keys():
            raise CheckpointError(f"{called}: {min(twice)} is in another part, too; download all parts again")
        metadata |= {key: value for key, value in header.metadata.items() if key not in metadata}
        tensors |= header.tensors
    return GgufModel(files, parts[0], GgufHeader(metadata, tensors), name, others, revision)


def _parts(files: ReadableFiles, file: str, name: str) -> list[str]:
    """Return the names of all parts of a file."""
    if file not in files.sizes:
        raise CheckpointError(
            f"{name}: no such file; there are {', '.join(gguf_files(files.sizes)) or 'no GGUF files'}"
        )
    match = _PART.fullmatch(file)
    if match is None:
        return [file]
    total = int(match[3])
    if not 0 < total <= MAX_PARTS:
        raise CheckpointError(f"{name}: {total} parts by its name, expected 1 to {MAX_PARTS}")
    parts = [f"{match[1]}-{number:05}-of-{match[3]}{file[-len(SUFFIX) :]}" for number in range(1, total + 1)]
    if missing := [part for part in parts if part not in files.sizes]:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise CheckpointError(f"{name}: missing {', '.join(missing[:3])}{more}; download all parts")
    return parts
