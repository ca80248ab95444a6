"""`scripts/spoil_head.py`: useless heads, with which the text is still that of plain decoding."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import pytest

from mlxmtp import GenerationOptions, load

SCRIPT = Path(__file__).parents[2] / "scripts" / "spoil_head.py"


@pytest.mark.parametrize("kind", ["random", "biased", "wrong"])
def test_only_the_head_is_another(
    raw_checkpoint: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    model, out = raw_checkpoint("qwen3_5"), tmp_path / "out"
    monkeypatch.setattr(sys, "argv", ["spoil_head.py", kind, str(out), "--model", str(model)])
    runpy.run_path(str(SCRIPT))["main"]()
    sound, spoilt = (
        {name: w for path in sorted(folder.glob("*.safetensors")) for name, w in mx.load(str(path)).items()}
        for folder in (model, out)
    )
    assert sound.keys() == spoilt.keys()
    other = {name for name in sound if not mx.array_equal(sound[name], spoilt[name])}
    assert other
    assert all(name.startswith("mtp.") for name in other)
    spoilt_tokens, plain = (
        load(folder).generate(list(range(20)), GenerationOptions(depth=depth, max_tokens=16)).tokens
        for folder, depth in ((out, 2), (model, 0))
    )
    assert spoilt_tokens == plain
