"""What was measured, kept between runs, a small file each; one that cannot be read is measured again, nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mlxmtp.exactness.verdict import PROMISES, Guarantee
from mlxmtp.files import data_folder, write_whole
from mlxmtp.machine import kernel_facts

FORMAT = 2
LARGEST = 1 << 16


def file_of(kind: str, **facts: Any) -> Path:
    """Where it stands what was measured of a kind, which depends on these facts and on the machine."""
    known = {"format": FORMAT, "machine": kernel_facts(), **facts}
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return data_folder() / kind / f"{key}.json"


def read(file: Path) -> Any:
    """A file's content; None: there is none, or it is damaged."""
    try:
        with file.open("rb") as stream:
            return json.loads(stream.read(LARGEST))
    except (OSError, ValueError, RecursionError):
        return None


def write(file: Path, content: Any) -> None:
    """Keep it; on a full or read-only disk, not."""
    with suppress(OSError):
        write_whole(file, json.dumps(content))


def stored(file: Path) -> Guarantee | None:
    """The verdict in a file; None: there is none, or it is damaged."""
    try:
        return _verdict(read(file))
    except (ValueError, TypeError):
        return None


def store(file: Path, verdict: Guarantee) -> None:
    """Write a verdict; of a probe that was cut short, not."""
    if verdict.complete:
        write(file, asdict(verdict))


def _verdict(content: Mapping[str, Any]) -> Guarantee:
    verdict = Guarantee(**content)
    kinds = {"promise": str, "because": str, "rows": int, "context": int, "width": int, "alone": bool, "complete": bool}
    if any(type(getattr(verdict, item.name)) is not kinds[item.name] for item in fields(verdict)):
        raise TypeError("a field of another type")
    if verdict.promise not in PROMISES or verdict.width < 1 or not verdict.complete:
        raise ValueError("no verdict of this version")
    return verdict
