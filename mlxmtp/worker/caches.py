"""The prefix cache of a loaded model, in memory and on disk."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx

from mlxmtp.engine.engine import Engine
from mlxmtp.engine.prefix_cache import PrefixCache
from mlxmtp.engine.prefix_disk import PrefixStore
from mlxmtp.machine import usable_memory
from mlxmtp.worker.messages import Load

DEFAULT_DISK_BYTES = 10**10
"""Most bytes of the prefix cache on disk, where `Load` gives no size."""


def make_prefix_cache(command: Load, engine: Engine, warn: Callable[[str], None]) -> PrefixCache:
    """Return an empty prefix cache; where `Load` names a folder, with what that holds for the model."""
    store = None
    if command.cache_dir:
        key = engine.facts.model_key(identity=command.identity)  # caches of other arithmetic do not fit
        folder = Path(os.path.expanduser(command.cache_dir))
        store = PrefixStore(folder, command.cache_bytes or DEFAULT_DISK_BYTES, key, warn)
    return PrefixCache(_default_bytes() if command.cache_bytes is None else command.cache_bytes, store)


def _default_bytes() -> int:
    """Half of the memory that the loaded model leaves; at least an eighth of the usable memory."""
    usable = usable_memory()
    return max((usable - mx.get_active_memory()) // 2, usable // 8)
