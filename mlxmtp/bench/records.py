"""The measurements of a benchmark: a file of JSON lines, from which a benchmark that was stopped goes on."""

from __future__ import annotations

import errno
import json
import os
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from mlxmtp.errors import MlxmtpError, OptionError
from mlxmtp.files import parse_json, try_lock

FILE = "measurements.jsonl"


class RecordError(MlxmtpError):
    """A file of measurements is damaged, in use, or belongs to another benchmark."""


class Records:
    """The records of a benchmark in its folder, as a context manager that holds the file and its lock.

    Args:
        folder: made if it does not exist.
        head: description of the benchmark, with its `identity` (plan.py).

    Raises:
        RecordError: a line before the last is damaged, the file belongs to another benchmark, or another process
            writes it.
        OptionError: the folder cannot be made.
    """

    def __init__(self, folder: Path, head: dict[str, Any]) -> None:
        self.path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = FileIO(self.path, "a+")  # unbuffered: closing a buffered file would write a failed line again
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
        """The keys of the units that were measured. Units that failed are not among them."""
        return {record["key"] for record in self.all if "failed" not in record}

    def append(self, record: dict[str, Any]) -> None:
        """Write a record and flush it to disk."""
        self._write(record)
        self.all.append(record)

    def _lock(self) -> None:
        if not try_lock(self._file.fileno()):
            raise RecordError(f"{self.path}: another benchmark writes it; wait, or give another --out")

    def _begin(self, head: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """Return the head and the records of the file. A damaged last line is cut off."""
        self._file.seek(0)
        rows, intact_bytes = parse(self._file.readall(), str(self.path))
        self._file.truncate(intact_bytes)
        if not rows:
            self._write(head)
            return head, []
        identity = rows[0].get("identity")
        if identity is None or any("key" not in row for row in rows[1:]):
            raise RecordError(f"{self.path}: not a benchmark's measurements; give another --out")
        if identity != head["identity"]:
            raise RecordError(f"{self.path}: of another benchmark ({_changed(rows[0], head)}); give another --out")
        return rows[0] | {"settings": head["settings"]}, rows[1:]  # the number of repeats may have grown

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
    """Return the rows of a file, and the number of its bytes without a damaged last line.

    Raises:
        RecordError: a line before the last is damaged.
    """
    rows: list[dict[str, Any]] = []
    intact_bytes = 0
    lines = content.splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        row = _row(line)
        if row is None and number < len(lines):
            raise RecordError(f"{name}, line {number}: damaged; give another --out, or remove the file")
        if row is not None:
            rows.append(row)
            intact_bytes += len(line)
    return rows, intact_bytes


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = parse_json(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _changed(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the first difference between two heads in words."""
    for section in ("model", "machine", "versions", "settings", "prompts"):
        old, new = before.get(section, {}), json.loads(json.dumps(now.get(section, {})))
        for name in new:
            if name != "repeats" and old.get(name) != new[name]:
                return f"{section} {name}: {old.get(name)} there, {new[name]} now"
    return "other prompts"
