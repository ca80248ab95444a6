"""Exact multi-token-prediction (MTP) speculative decoding on MLX.

from mlxmtp import GenerationOptions, load

engine = load("path/or/hub-repo")  # None: the small demo model that ships with the package
for chunk in engine.stream("Why is the sky blue?", GenerationOptions(temperature=0.7, seed=1)):
    print(chunk.text, end="", flush=True)
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.errors import (
    BackendError,
    CheckpointError,
    HeadError,
    MlxmtpError,
    NumericsError,
    OptionError,
    PromptError,
)
from mlxmtp.machine import FileLimit, import_backend
from mlxmtp.version import __version__

if TYPE_CHECKING:
    from mlxmtp.decoding.stats import Stats, TokenLogprob
    from mlxmtp.engine.engine import Engine
    from mlxmtp.engine.generate import Chunk, Result
    from mlxmtp.engine.loading import load

__all__ = [
    "BackendError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "GenerationOptions",
    "HeadError",
    "MlxmtpError",
    "NumericsError",
    "OptionError",
    "PromptError",
    "Result",
    "Stats",
    "TokenLogprob",
    "__version__",
    "load",
]

sys.meta_path.insert(0, FileLimit())

# Imported at first use: MLX and transformers take seconds, `mlxmtp --help` must not.
_LAZY = {
    "Chunk": "mlxmtp.engine.generate",
    "Engine": "mlxmtp.engine.engine",
    "Result": "mlxmtp.engine.generate",
    "load": "mlxmtp.engine.loading",
    "Stats": "mlxmtp.decoding.stats",
    "TokenLogprob": "mlxmtp.decoding.stats",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_backend()
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
