"""Models small enough to probe often, of every kind of matrix, cache and attention that targets have."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlxmtp import Engine, load

KINDS = ("dense", "half", "4-bit", "8-bit", "experts", "next", "latent", "sparse", "window")
FEW = {"vocab": 8, "clusters": 2, "looked_into": 1}
"""With so few tokens, a random head is right now and then."""
SHORT: dict[str, Any] = {"vocab": 16, "layers": 2, "interval": 2}
"""A recurrent layer and one that attends: a pass takes half the time of four layers."""


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """mlxmtp's own data folder: no test sees another's guarantees."""
    for name in ("HOME", "XDG_DATA_HOME"):
        monkeypatch.setenv(name, str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def engine(
    raw_checkpoint: Callable[..., Path],
    nextn_checkpoint: Callable[..., Path],
    nextn_conversion: Callable[..., Path],
    gemma_checkpoint: Callable[..., Path],
    assistant: Callable[..., Path],
    mlx_conversion: Callable[..., Path],
) -> Callable[[str], Engine]:
    """engine(kind): a random model of one of KINDS, loaded afresh, for a probe leaves its arithmetic behind."""

    def make(kind: str) -> Engine:
        match kind:
            case "dense" | "half":
                return load(raw_checkpoint("qwen3_5", dtype="float32" if kind == "dense" else "bfloat16", **SHORT))
            case "4-bit" | "8-bit":
                bits, raw = int(kind[0]), raw_checkpoint("qwen3_5", dtype="bfloat16", tied=True, **SHORT)
                return load(mlx_conversion(raw, bits=bits, head_bits=bits))
            case "experts":
                raw = raw_checkpoint("qwen3_5_moe", dtype="float32", **SHORT)
                return load(mlx_conversion(raw, bits=4, head_bits=4))
            case "next":
                return load(raw_checkpoint("qwen3_next", dtype="float32", **SHORT))
            case "latent":
                return load(nextn_checkpoint("deepseek_v3", vocab=16))
            case "sparse":
                return load(nextn_conversion("glm_moe_dsa", 4, vocab=16))
            case _:
                head = assistant(style="31B", **FEW)
                return load(gemma_checkpoint("gemma4_text", style="31B", **FEW), head=head)

    return make


def text(engine: Engine, length: int = 48) -> list[int]:
    vocabulary = engine.target.text_config["vocab_size"]
    return np.random.default_rng(length).integers(3, vocabulary, length).tolist()
