"""The measurements of a benchmark, a JSON line each, written as they come; what was killed goes on behind them."""

from __future__ import annotations

import errno
import fcntl
import json
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxmtp.errors import MlxmtpError, OptionError

FILE = "measurements.jsonl"


class RecordError(MlxmtpError):
    """A file of measurements that is damaged, in use, or of another benchmark."""


class Records:
    """The records in a folder, and room for more; use it as a context.

    Args:
        folder: made if it is not there. head: what the benchmark is, with its `identity`.

    Raises:
        RecordError: the file is damaged before its last line, of another benchmark, or another process writes it.
        OptionError: the folder cannot be made.
    """

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "a+")  # without a buffer, which would be written again when it is closed
        except OSError as error:
            raise OptionError(f"{folder}: {error.strerror or error}; expected a folder to write to") from error
        try:
            self._lock()
            self.head, self.all = self._begin(head)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    @property
    def done(self) -> set[str]:
        """The keys of the units that have been measured; what failed can be tried again."""
        return {record["key"] for record in self.all if "failed" not in record}

    def append(self, record: dict[str, Any]) -> None:
        """Write a record, so that it is there whatever comes."""
        self._write(record)
        self.all.append(record)

    def _lock(self) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RecordError(f"{self.path}: another benchmark writes it; wait, or give another --out") from error

    def _begin(self, head: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The head that counts, and the records behind it; a damaged last line is cut off."""
        self._file.seek(0)
        rows, sound = parse(self._file.readall(), str(self.path))
        self._file.truncate(sound)
        if not rows:
            self._write(head)
            return head, []
        found = rows[0].get("identity")
        if found is None or any("key" not in row for row in rows[1:]):
            raise RecordError(f"{self.path}: not a benchmark's measurements; give another --out")
        if found != head["identity"]:
            raise RecordError(f"{self.path}: of another benchmark ({_changed(rows[0], head)}); give another --out")
        return rows[0] | {"settings": head["settings"]}, rows[1:]  # there may be more repeats now

    def _write(self, row: dict[str, Any]) -> None:
        line = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        end = self._file.seek(0, os.SEEK_END)
        try:
            while line:
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            message = f"{error.strerror}; what was measured is kept, make room and run the same command again"
            raise OSError(error.errno, f"{message} ({end} bytes are safe)", str(self.path)) from error


def parse(content: bytes, name: str) -> tuple[list[dict[str, Any]], int]:
    """The rows of a file, and how many of its bytes hold them: a last line that is damaged does not count.

    Raises:
        RecordError: another line is damaged.
    """
    rows: list[dict[str, Any]] = []
    sound = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number < len(lines):
            raise RecordError(f"{name}, line {number}: damaged; give another --out, or remove the file")
        if row is not None:
            rows.append(row)
            sound += len(line)
    return rows, sound


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """What is different, in a few words."""
    for part in ("model", "machine", "versions", "settings", "prompts"):
        old, new = before.get(part, {}), json.loads(json.dumps(now.get(part, {})))
        for name in new:
            if name != "repeats" and old.get(name) != new[name]:
                return f"{part} {name}: {old.get(name)} there, {new[name]} now"
    return "other prompts"
