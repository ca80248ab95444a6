"""Sequences on disk, so that a conversation goes on after a restart without being read again.

A file is whole or not there: it is written under another name, and what it is called says what it must hold, the
model by its key and all bytes by their SHA-256. Whatever does not check is removed; nothing here ends a turn.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints.tensors import header_length, parse_header
from mlxmtp.checkpoints.writer import DTYPES, header, raw_bytes
from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot, thin_out
from mlxmtp.errors import CheckpointError, is_out_of_memory
from mlxmtp.files import remove_abandoned, unfinished_file
from mlxmtp.heads import Head
from mlxmtp.targets import CacheState, Target
from mlxmtp.units import size

FACTS = "mlxmtp_prefix"
"""The key of a file's metadata under which stands what its tensors are."""
SPARE = 256 << 20
"""Bytes to leave free on a disk."""
WORTH = 10
"""A file is read for prompts of which it saves at least so manieth a part of what it holds."""
LEAST = 256
"""Tokens of a sequence that is worth a file: fewer are read again as fast."""
POINTS = 4
"""Points that go into a file, of which each can be as large as all the rest."""
BLOCK = 4 << 20
STAGE = "prefix"
"""The name of a file that is being written, before its content gives it one."""
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{64})\.safetensors")
_DAMAGED = (CheckpointError, ValueError, KeyError, TypeError, IndexError, AttributeError)


@dataclass(frozen=True)
class _Stored:
    """A file, by its header: what it can be of use for, and what its tensors are."""

    file: Path
    prefix_info: PrefixInfo
    facts: dict[str, Any]


class PrefixStore:
    """Sequences in a folder, of any number of models; several processes can share it.

    Args:
        folder: made at once, readable by nobody else: prompts stand in its files.
        max_bytes: bound of all files in it; those not used for longest go first.
        key: the model's (`model_key`).
        warn: told, in a sentence, what could not be read or written. A full disk is told once, and so is a sequence
            of more than `max_bytes`; a folder that cannot be written is told at once.
        least: tokens of a sequence that is written.
    """

    def __init__(
        self, folder: Path, max_bytes: int, key: str, warn: Callable[[str], None], *, least: int = LEAST
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._key = key
        self._warn = warn
        self._least = least
        self._known: dict[str, _Stored] = {}
        self._writes = True  # the last attempt did
        self._fits = True  # every sequence so far
        remove_abandoned(folder)
        self._try()

    def load(self, prompt: list[int], target: Target, head: Head | None, held: int) -> Sequence | None:
        """The sequence that holds most of a prompt, if that is worth it to who has `held` tokens of it in memory."""
        self._refresh()
        found: list[tuple[Position, str]] = []
        for name, stored in self._known.items():
            position = stored.prefix_info.longest_reusable_prefix(prompt, drafting=head is not None)
            if position and (position.offset - held) * WORTH >= stored.prefix_info.end.offset:
                found.append((position, name))
        for _, name in sorted(found, reverse=True):
            if sequence := self._read(self._known[name], target, head):
                return sequence
        return None

    def save(self, sequence: Sequence) -> None:
        """Write a sequence; what it goes on from is removed. A failure is told, and leaves nothing behind."""
        if not sequence.can_snapshot or sequence.offset < self._least:
            return
        self._refresh()
        tokens, points = sequence.tokens, thin_out(sequence.snapshots, POINTS)
        positions = {point.position for point in points}
        for stored in self._known.values():
            if stored.prefix_info.tokens == tokens and positions <= set(stored.prefix_info.positions):
                self._touch(stored.file)
                return
        arrays, facts = _packed(sequence, points)
        needed = sum(array.nbytes for array in arrays.values())
        if needed > self._max_bytes:
            if self._fits:
                bound = f"{size(needed)}, and --cache-bytes allows {size(self._max_bytes)}"
                self._warn(f"{self._folder}: a conversation's cache is not kept, it has {bound}")
            self._fits = False
            return
        try:
            self._make()
            self._make_room(needed)
            if (free := shutil.disk_usage(self._folder).free) < needed + SPARE:
                raise OSError(f"{size(needed)} to write, {size(free)} free")
            name = self._write(arrays, facts)
            self._writes = True
        except OSError as error:
            if self._writes:
                self._warn(f"{self._folder}: a conversation's cache was not kept ({error}); the model reads it again")
            self._writes = False
            return
        for other, stored in list(self._known.items()):
            if other != name and stored.prefix_info.tokens == tokens[: len(stored.prefix_info.tokens)]:
                self._remove(stored.file)

    def _make(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _try(self) -> None:
        """Whether anything could be written there is told now, and not when the first conversation is lost."""
        try:
            self._make()
            with unfinished_file(self._folder, STAGE, 0o600):
                pass
        except OSError as error:
            self._writes = False
            why = error.strerror or str(error)
            self._warn(f"{self._folder}: no file can be written there ({why}); conversations are not kept")

    # -- files ------------------------------------------------------------------------------------------------

    def _files(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all sequences in the folder."""
        files = []
        with suppress(OSError):
            for entry in os.scandir(self._folder):
                with suppress(OSError):  # another process has just removed it
                    if _NAME.fullmatch(entry.name):
                        files.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
        return sorted(files)

    def _refresh(self) -> None:
        """Know the files that are there, whoever wrote them; of new ones of this model, the headers are read."""
        mine = {file.name: file for _, _, file in self._files() if file.name.startswith(self._key)}
        self._known = {name: stored for name, stored in self._known.items() if name in mine}
        for name in mine.keys() - self._known.keys():
            try:
                self._known[name] = _outlined(mine[name])
            except FileNotFoundError:
                continue
            except OSError as error:
                self._warn(f"{mine[name]}: cannot be read ({error})")
            except _DAMAGED as error:
                self._refuse(mine[name], str(error))

    def _read(self, stored: _Stored, target: Target, head: Head | None) -> Sequence | None:
        file = stored.file
        try:
            if _digest(file) != _NAME.fullmatch(file.name)[2]:  # type: ignore[index]
                raise ValueError("its bytes are not those that were written")
            sequence = _unpacked(file, stored.facts, target, head)
        except FileNotFoundError:
            return None
        except (*_DAMAGED, OSError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            self._refuse(file, str(error))
            return None
        self._touch(file)
        return sequence

    def _write(self, arrays: dict[str, mx.array], facts: dict[str, Any]) -> str:
        """The name of the new file."""
        layout = [(name, DTYPES[array.dtype], array.shape, array.nbytes) for name, array in arrays.items()]
        digest = hashlib.sha256()
        with unfinished_file(self._folder, STAGE, 0o600) as stage:
            with stage.open("wb") as out:
                for piece in (header(layout, {FACTS: json.dumps(facts)}), *map(raw_bytes, arrays.values())):
                    out.write(piece)
                    digest.update(piece)
            name = f"{self._key}-{digest.hexdigest()}.safetensors"
            os.replace(stage, self._folder / name)
        return name

    def _make_room(self, needed: int) -> None:
        files = self._files()
        surplus = sum(nbytes for _, nbytes, _ in files) + needed - self._max_bytes
        for _, nbytes, file in files:
            if surplus <= 0:
                return
            self._remove(file)
            surplus -= nbytes

    def _touch(self, file: Path) -> None:
        with suppress(OSError):
            os.utime(file)

    def _remove(self, file: Path) -> None:
        self._known.pop(file.name, None)
        with suppress(OSError):
            file.unlink()

    def _refuse(self, file: Path, why: str) -> None:
        self._remove(file)
        self._warn(f"{file}: a conversation's cache is damaged ({why}); it is removed, and the model reads it again")


# -- a sequence as tensors ------------------------------------------------------------------------------------


def _packed(sequence: Sequence, points: list[Snapshot]) -> tuple[dict[str, mx.array], dict[str, Any]]:
    """Its arrays by names, and what says how they belong together."""
    arrays: dict[str, mx.array] = {}
    prefix_info, described = sequence.prefix_info, []
    for number, point in enumerate([*points, sequence.snapshot]):
        states: list[Any] = []
        for i, state in enumerate(point.states):
            given = {f"{number}.{i}.{j}": array for j, array in enumerate(state.arrays if state else ())}
            arrays |= {name: array for name, array in given.items() if array is not None}
            states.append(state and [[name if name in arrays else None for name in given], state.offset, state.slot])
        if point.pending is not None:
            arrays[f"{number}.pending"] = point.pending
        described.append([point.position.offset, point.position.pending, states])
    facts = {
        "points": described,
        "tokens": prefix_info.tokens,
        "trimmable": prefix_info.trimmable,
        "head_offset": prefix_info.head_offset,
    }
    return arrays, facts


def _outlined(file: Path) -> _Stored:
    """A file by its header."""
    nbytes = file.stat().st_size
    with file.open("rb") as stream:
        text = stream.read(header_length(stream.read(8), nbytes, file.name))
    parse_header(text, file, nbytes, file.name)
    facts = json.loads(json.loads(text)["__metadata__"][FACTS])
    *positions, end = (Position(int(rows), int(pending)) for rows, pending, _ in facts["points"])
    tokens, head_offset = list(map(int, facts["tokens"])), facts["head_offset"]
    head_offset = None if head_offset is None else int(head_offset)
    return _Stored(file, PrefixInfo(tokens, end, tuple(positions), bool(facts["trimmable"]), head_offset), facts)


def _unpacked(file: Path, facts: dict[str, Any], target: Target, head: Head | None) -> Sequence:
    """The sequence whose arrays stand in a file."""
    arrays: Any = mx.load(str(file))
    mx.eval(arrays)
    points = []
    for number, (rows, _, states) in enumerate(facts["points"]):
        made = [
            state and CacheState(tuple(name and arrays[name] for name in state[0]), state[1], state[2])
            for state in states
        ]
        points.append(Snapshot(rows, tuple(made), arrays.get(f"{number}.pending")))
    return Sequence.from_snapshots(target, head, list(facts["tokens"]), points[:-1], points[-1])


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as stream:
        for block in iter(partial(stream.read, BLOCK), b""):
            found.update(block)
    return found.hexdigest()
