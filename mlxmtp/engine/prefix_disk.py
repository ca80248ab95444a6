"""Sequences on disk, so that a conversation continues after a restart without being read again.

A file is complete or absent: it is written under a temporary name. Its final name holds the key of its model and the
SHA-256 of its bytes. A file that does not match is removed. No failure here ends a turn.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.decoding.sequence import Sequence
from mlxmtp.decoding.snapshots import Position, PrefixInfo, Snapshot, thin_out
from mlxmtp.engine.prefix_file import StoredSequence, digest_of, pack, read_header, unpack, write_sequence
from mlxmtp.errors import CheckpointError, is_out_of_memory
from mlxmtp.files import remove_abandoned, unfinished_file
from mlxmtp.heads import Head
from mlxmtp.targets import Target
from mlxmtp.units import size

MIN_FREE_BYTES = 256 << 20
"""Bytes to leave free on the disk; a sequence that needs them is not written."""
MIN_REUSE = 10
"""A file is read for a prompt if that saves at least one part in this many of the file's tokens."""
MIN_TOKENS = 256
"""Tokens of the shortest sequence that is written; a shorter one is read again as fast."""
MAX_FILE_SNAPSHOTS = 4
"""Snapshots of a sequence that are written; each can be as large as the rest of the file."""
STAGE = "prefix"
"""The name of a file while it is written."""
_NAME = re.compile(r"([0-9a-f]{16})-([0-9a-f]{64})\.safetensors")
_DAMAGED = (CheckpointError, ArithmeticError, ValueError, KeyError, TypeError, IndexError, AttributeError)


class PrefixStore:
    """Sequences in a folder, of any number of models; several processes can share it.

    Args:
        folder: made at once, readable by its owner only, because its files contain prompts.
        max_bytes: bound of all files in the folder; the least recently used go first.
        key: of the model (`mlxmtp.engine.store.ModelFacts.model_key`).
        warn: called with a sentence when something cannot be read or written. A full disk and a sequence of more than
            `max_bytes` are reported once, a folder that cannot be written at once.
        min_tokens: tokens of the shortest sequence that is written.
    """

    def __init__(
        self, folder: Path, max_bytes: int, key: str, warn: Callable[[str], None], *, min_tokens: int = MIN_TOKENS
    ) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._key = key
        self._warn = warn
        self._min_tokens = min_tokens
        self._files: dict[str, StoredSequence] = {}
        self._unreadable: set[str] = set()
        self._last_write_worked = True
        self._all_fitted = True
        remove_abandoned(folder)
        self._try_to_write()

    def load(
        self, prompt: list[int], target: Target, head: Head | None, in_memory: int, *, drafting: bool
    ) -> Sequence | None:
        """Return the sequence with the longest reusable prefix, or None.

        Args:
            head: of the model whose key the store has, also for a turn without drafts.
            in_memory: tokens of the prompt that need no file; a file that saves little more is not read.
            drafting: the turn uses the head.
        """
        self._refresh()
        matches: list[tuple[Position, str]] = []
        for name, stored in self._files.items():
            position = stored.prefix_info.longest_reusable_prefix(prompt, drafting=drafting)
            if position and (position.offset - in_memory) * MIN_REUSE >= stored.prefix_info.end.offset:
                matches.append((position, name))
        for _, name in sorted(matches, reverse=True):
            if sequence := self._read(self._files[name], target, head):
                return sequence
        return None

    def prefix_infos(self) -> list[PrefixInfo]:
        """Return the facts of all sequences of this model."""
        self._refresh()
        return [stored.prefix_info for stored in self._files.values()]

    def save(self, sequence: Sequence) -> None:
        """Write a sequence and remove the files that it extends. A failure is reported and leaves no file."""
        if not sequence.can_snapshot or sequence.offset < self._min_tokens:
            return
        self._refresh()
        snapshots = thin_out(sequence.snapshots, MAX_FILE_SNAPSHOTS)
        if stored := self._same(sequence, snapshots):
            self._touch(stored.file)
        elif name := self._try_write(*pack(sequence, snapshots)):
            for other, stored in list(self._files.items()):
                if other != name and sequence.prefix_info.extends(stored.prefix_info):
                    self._remove(stored.file)

    def _same(self, sequence: Sequence, snapshots: list[Snapshot]) -> StoredSequence | None:
        """The file that already holds this sequence with these snapshots."""
        info, positions = sequence.prefix_info, {snapshot.position for snapshot in snapshots}
        for stored in self._files.values():
            same = stored.prefix_info.tokens == info.tokens and stored.prefix_info.extends(info)
            if same and positions <= set(stored.prefix_info.positions):
                return stored
        return None

    def _try_write(self, arrays: dict[str, mx.array], facts: dict[str, Any]) -> str | None:
        """Make room and write a file; return its name, or report why there is none."""
        needed = sum(array.nbytes for array in arrays.values())
        if needed > self._max_bytes:
            if self._all_fitted:
                bound = f"{size(needed)}, and --cache-bytes allows {size(self._max_bytes)}"
                self._warn(f"{self._folder}: a conversation's cache is not kept, it has {bound}")
            self._all_fitted = False
            return None
        try:
            self._make_folder()
            self._make_room(needed)
            if (free := shutil.disk_usage(self._folder).free) < needed + MIN_FREE_BYTES:
                raise OSError(f"{size(needed)} to write, {size(free)} free")
            name = self._write(arrays, facts)
        except OSError as error:
            if self._last_write_worked:
                self._warn(f"{self._folder}: a conversation's cache was not kept ({error}); the model reads it again")
            self._last_write_worked = False
            return None
        self._last_write_worked = True
        return name

    def _make_folder(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)

    def _try_to_write(self) -> None:
        """Report now that nothing can be written, not when the first conversation is lost."""
        try:
            self._make_folder()
            with unfinished_file(self._folder, STAGE, 0o600):
                pass
        except OSError as error:
            self._last_write_worked = False
            why = error.strerror or str(error)
            self._warn(f"{self._folder}: no file can be written there ({why}); conversations are not kept")

    # -- files ------------------------------------------------------------------------------------------------

    def _scan(self) -> list[tuple[float, int, Path]]:
        """(time of last use, bytes, path) of all sequences in the folder, of all models. Only regular files count."""
        files = []
        with suppress(OSError):
            for entry in os.scandir(self._folder):
                with suppress(OSError):  # another process has just removed it
                    if _NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                        files.append((entry.stat().st_mtime, entry.stat().st_size, Path(entry.path)))
        return sorted(files)

    def _refresh(self) -> None:
        """Read the headers of this model's new files, whichever process wrote them, and forget removed files."""
        present = {file.name: file for _, _, file in self._scan() if file.name.startswith(self._key)}
        self._files = {name: stored for name, stored in self._files.items() if name in present}
        for name in present.keys() - self._files.keys() - self._unreadable:
            try:
                self._files[name] = read_header(present[name])
            except FileNotFoundError:
                continue
            except OSError as error:
                self._unreadable.add(name)
                self._warn(f"{present[name]}: cannot be read ({error.strerror or error})")
            except _DAMAGED as error:
                self._discard(present[name], str(error))

    def _read(self, stored: StoredSequence, target: Target, head: Head | None) -> Sequence | None:
        file = stored.file
        try:
            if digest_of(file) != _NAME.fullmatch(file.name)[2]:  # type: ignore[index]
                raise ValueError("its bytes are not those that were written")
            sequence = unpack(stored, target, head)
        except FileNotFoundError:
            return None
        except (*_DAMAGED, OSError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            if not file.exists():  # removed after its bytes were checked: mx.load has an error of its own for that
                return None
            self._discard(file, str(error))
            return None
        self._touch(file)
        return sequence

    def _write(self, arrays: dict[str, mx.array], facts: dict[str, Any]) -> str:
        """Write a file; return its name."""
        with unfinished_file(self._folder, STAGE, 0o600) as stage:
            digest = write_sequence(stage, arrays, facts)
            name = f"{self._key}-{digest}.safetensors"
            os.replace(stage, self._folder / name)
        return name

    def _make_room(self, needed: int) -> None:
        files = self._scan()
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
        self._files.pop(file.name, None)
        with suppress(OSError):
            file.unlink()

    def _discard(self, file: Path, why: str) -> None:
        self._remove(file)
        self._warn(f"{file}: a conversation's cache is damaged ({why}); it is removed, and the model reads it again")
