"""Passes over several sequences: the bits of each sequence alone, one model for each kind of cache."""

from __future__ import annotations

from pathlib import Path

import pytest

from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.targets import load_target
from tests.targets.sweep import check_shared, write_checkpoint

KINDS = ["llama", "gemma3n", "gemma4_text", "deepseek_v32", "longcat_flash", "qwen3_next"]
"""Keys and values; windows, whose keys layers share by the cache or by the model; latents with index keys; two caches a
layer; recurrent states."""
OUTCOMES = {
    "plamo": "attention modules apart",
    "mamba": "takes turns: ArraysCache cannot be rolled back",
}


@pytest.mark.parametrize("kind", [*KINDS, *OUTCOMES])
def test_each_kind_of_cache_has_the_bits_of_each_sequence_alone(kind: str, tmp_path: Path) -> None:
    write_checkpoint(kind, tmp_path)
    target = load_target(open_checkpoint(tmp_path))
    assert check_shared(kind, target) == OUTCOMES.get(kind, "yes")
