"""A name for a model as it is loaded, under which to keep what was computed or measured with it."""

from __future__ import annotations

import hashlib
import json
import os
from importlib.metadata import version
from typing import TYPE_CHECKING

import mlx.core as mx

import mlxmtp
from mlxmtp.checkpoints.tensors import weight_files

if TYPE_CHECKING:
    from mlxmtp.chat.engine import Engine

FORMAT = 1


def model_key(engine: Engine, **more: str) -> str:
    """What is kept of a model depends on it: the files of model and head, how they are read, what computes them.

    `more`: further facts.

    Files are known by name, size and time of change: to read gigabytes of weights would cost more than it saves.
    """
    source, head = engine.head_source, engine.mtp
    files = {engine.path / name for name in weight_files(os.listdir(engine.path))}
    files.update(source.files.files if source and source.files else ())
    stats = [(file.name, found.st_size, found.st_mtime_ns) for file in sorted(files) if (found := file.stat())]
    facts = {
        "format": FORMAT,
        "config": engine.target.config,
        "files": stats,
        "head": head and (head.family, repr(head.reading)),
        **more,
        "versions": (version("mlx"), version("mlx-lm"), mlxmtp.__version__),
        "device": str(mx.default_device()),
        "dtype": str(engine.target.embed(mx.array([[0]])).dtype),
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def drafting_key(engine: Engine) -> str:
    """The same for what depends on its drafts: also on the tokens that the head is narrowed to."""
    return model_key(engine, draft_tokens=str(engine.draft_tokens))
