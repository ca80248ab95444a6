"""How many rows a pass may have before a GPU takes other kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import mlx.core as mx
import pytest

from mlxmtp import load
from mlxmtp.targets import Target
from mlxmtp.targets.target import heads_per_key


@pytest.mark.parametrize("metal", [True, False])
@pytest.mark.parametrize(
    ("heads", "key_heads", "rows"),
    [(16, 16, 8), (16, 4, 8), (24, 4, 5), (32, 4, 4), (64, 2, 2), (None, None, 8)],
)
def test_on_a_gpu(
    monkeypatch: pytest.MonkeyPatch, heads: int | None, key_heads: int | None, rows: int, metal: bool
) -> None:
    """m at most 8, and on Metal m rows of gqa queries a key's head at most 32; two always."""
    monkeypatch.setattr(mx, "default_device", lambda: mx.Device(mx.gpu))
    monkeypatch.setattr(mx.metal, "is_available", lambda: metal)
    config = {"num_attention_heads": heads, "num_key_value_heads": key_heads}
    target = SimpleNamespace(_heads_per_key=heads_per_key(config, ()))
    assert Target.max_fast_tokens.fget(target) == (rows if metal else 8)  # type: ignore[attr-defined]


@pytest.mark.exact
def test_auto_keeps_within_them(raw_checkpoint: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked-up drafts too; on a CPU, where there is no such bound, they may be 16."""
    model = raw_checkpoint("qwen3_5")
    on_cpu = load(model).policies.of(None)
    assert (on_cpu.max_depth, on_cpu.max_lookup) == (8, 16)  # type: ignore[attr-defined]
    monkeypatch.setattr(Target, "max_fast_tokens", 5)
    bounded = load(model).policies.of(None)
    assert (bounded.max_depth, bounded.max_lookup) == (4, 4)  # type: ignore[attr-defined]
