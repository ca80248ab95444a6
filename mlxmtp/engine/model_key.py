"""A name for a model as it is loaded, under which to keep what was computed or measured with it."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlxmtp.checkpoints.tensors import weight_files
from mlxmtp.machine import versions

if TYPE_CHECKING:
    from mlxmtp.engine.engine import Engine

FORMAT = 2


def target_key(engine: Engine, **more: Any) -> str:
    """What is kept of a model without its head depends on it: its files, and what computes them.

    `more`: further facts.

    Files are known by name, size and time of change: to read gigabytes of weights would cost more than it saves.
    """
    facts = {
        "format": FORMAT,
        "config": engine.target.config,
        "files": _known_by(engine.path / name for name in weight_files(os.listdir(engine.path))),
        **more,
        "versions": versions(),
        "device": str(mx.default_device()),
        "dtype": str(engine.target.embed(mx.array([[0]])).dtype),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def model_key(engine: Engine, **more: str) -> str:
    """The same for what depends on the head too: its files, and how they are read."""
    source, head = engine.head_source, engine.mtp
    files = _known_by(source.files.files if source and source.files else ())
    return target_key(engine, head=head and (head.family, repr(head.convention)), head_files=files, **more)


def drafting_key(engine: Engine) -> str:
    """The same for what depends on its drafts: also on the tokens that the head is narrowed to."""
    return model_key(engine, draft_tokens=str(engine.draft_tokens))


def _known_by(files: Iterable[Path]) -> list[tuple[str, int, int]]:
    return [(file.name, found.st_size, found.st_mtime_ns) for file in sorted(files) if (found := file.stat())]
