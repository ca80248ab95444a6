"""Keep measurements between runs, one small JSON file each; a damaged file counts as absent."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from mlxmtp import files
from mlxmtp.exactness.guarantee import PROMISES, Guarantee
from mlxmtp.files import data_folder, write_whole
from mlxmtp.machine import kernel_facts

FORMAT = 4
"""Part of every file's name; files of another format are never read."""
MAX_BYTES = 1 << 16
"""Bytes that are read of a file; a longer file counts as damaged."""


def cache_file(kind: str, **facts: Any) -> Path:
    """Return the file of a measurement of some kind that depends on `facts` and on the machine."""
    known = {"format": FORMAT, "machine": kernel_facts(), **facts}
    key = hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:32]
    return data_folder() / kind / f"{key}.json"


def read_json(file: Path) -> Any:
    """Return a file's content, or None if the file is absent or damaged."""
    try:
        return files.read_json(file, MAX_BYTES)
    except (OSError, ValueError):
        return None


def write_json(file: Path, content: Any) -> None:
    """Write a file; do nothing if the disk is full or read-only."""
    with suppress(OSError):
        write_whole(file, json.dumps(content))


def load_guarantee(file: Path) -> Guarantee | None:
    """Return the guarantee in a file, or None if the file is absent or damaged."""
    try:
        return _parse(read_json(file))
    except (ValueError, TypeError):
        return None


def save_guarantee(file: Path, guarantee: Guarantee) -> None:
    """Write a guarantee, unless its probe was not complete."""
    if guarantee.complete:
        write_json(file, asdict(guarantee))


def _parse(content: Mapping[str, Any]) -> Guarantee:
    guarantee = Guarantee(**content)
    types = {
        "promise": str,
        "num_tokens": int,
        "context": int,
        "min_tokens": int,
        "row_by_row": bool,
        "stock": bool,
        "attention": bool,
        "because": str,
        "complete": bool,
        "ways": dict,
        "num_sequences": int,
        "num_rows": int,
        "whole_attention": bool,
        "not_shared": str,
    }
    if any(type(getattr(guarantee, item.name)) is not types[item.name] for item in fields(guarantee)):
        raise TypeError("a field has another type")
    counts = guarantee.min_tokens, guarantee.num_tokens - 1, guarantee.num_sequences, guarantee.num_rows + 1
    if guarantee.promise not in PROMISES or min(counts) < 1:
        raise ValueError("not a guarantee of this version")
    if not guarantee.complete or not all(type(way) is str for way in guarantee.ways.values()):
        raise ValueError("not what a whole probe writes")
    return guarantee
