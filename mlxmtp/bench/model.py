"""Which model a measurement was made on, and with which head."""

from __future__ import annotations

from typing import Any

import mlx.core as mx
from mlx.utils import tree_flatten

from mlxmtp.engine.engine import Engine


def model_facts(engine: Engine) -> dict[str, Any]:
    """Return the model's name, size and quantization, and its head, as plain values."""
    source = engine.head_source
    quantization = engine.target.config.get("quantization") or {}
    return {
        "name": engine.name,
        "path": str(engine.path),
        "type": engine.target.model_type,
        "bytes": _nbytes(engine.target.model),
        "bits": quantization.get("bits"),
        "context": engine.context,
        "identity": engine.identity,
        "head": engine.head,
        "head_repo": source.repo if source else None,
        "draft_vocabulary": len(engine.draft_tokens) if engine.draft_tokens else None,
        "plain_because": engine.plain_because,
    }


def _nbytes(module: Any) -> int:
    weights: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    return sum(weight.nbytes for _, weight in weights)
