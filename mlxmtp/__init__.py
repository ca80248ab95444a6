"""Exact multi-token-prediction (MTP) speculative decoding on MLX.

from mlxmtp import Sampling, load

engine = load("path/or/hub-repo")  # None: the small demo model that ships with the package
for chunk in engine.stream("Why is the sky blue?", Sampling(temperature=0.7, seed=1)):
    print(chunk.text, end="", flush=True)
"""

import sys
from importlib import import_module
from typing import TYPE_CHECKING

from mlxmtp.errors import (
    BackendError,
    CheckpointError,
    HeadError,
    MlxmtpError,
    NumericsError,
    OptionError,
    PromptError,
)

if TYPE_CHECKING:
    from mlxmtp.decoding.sampling import Sampling
    from mlxmtp.decoding.stats import Stats, TokenLogprob
    from mlxmtp.engine.engine import Engine, Result
    from mlxmtp.engine.loading import load
    from mlxmtp.engine.turn import Chunk

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "CheckpointError",
    "Chunk",
    "Engine",
    "HeadError",
    "MlxmtpError",
    "NumericsError",
    "OptionError",
    "PromptError",
    "Result",
    "Sampling",
    "Stats",
    "TokenLogprob",
    "__version__",
    "load",
]

# Imported at first use: MLX and transformers take seconds, `mlxmtp --help` must not.
_LAZY = {
    "Chunk": "mlxmtp.engine.turn",
    "Engine": "mlxmtp.engine.engine",
    "Result": "mlxmtp.engine.engine",
    "load": "mlxmtp.engine.loading",
    "Sampling": "mlxmtp.decoding.sampling",
    "Stats": "mlxmtp.decoding.stats",
    "TokenLogprob": "mlxmtp.decoding.stats",
}


def __getattr__(name: str) -> object:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    _import_backend()
    value: object = getattr(import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


def _import_backend() -> None:
    """Import MLX, or say what to install.

    On Linux the `mlx` wheel holds no backend; its import ends in "libmlx.so: cannot open shared object file".
    """
    try:
        import_module("mlx.core")
    except ImportError as error:
        if error.name not in ("mlx", "mlx.core") and "libmlx" not in str(error):
            raise
        raise BackendError(f"MLX cannot be imported ({error}); {_HOW_TO_GET_MLX}") from error


_HOW_TO_GET_MLX = (
    "install it with pip install mlx, in an arm64 Python on Apple silicon"
    if sys.platform == "darwin"
    else "on Linux its backend comes with an extra: pip install 'mlxmtp[cpu]', "
    "or with an NVIDIA GPU 'mlxmtp[cuda12]' or 'mlxmtp[cuda13]'"
)
