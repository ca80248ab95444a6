"""Writing and reading a checkpoint's files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np


def save_weights(folder: Path, arrays: dict[str, mx.array], *, shards: int = 1, made_by: str) -> None:
    """model.safetensors, or numbered shards with their index."""
    folder.mkdir(parents=True, exist_ok=True)
    names = sorted(arrays)
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, {"format": made_by})
        return
    where: dict[str, str] = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {name: arrays[name] for name in names[i::shards]}
        mx.save_safetensors(str(folder / file), part, {"format": made_by})
        where |= dict.fromkeys(part, file)
    index = {"metadata": {"total_size": sum(a.nbytes for a in arrays.values())}, "weight_map": where}
    write_json(folder / "model.safetensors.index.json", index)


def save_checkpoint(
    folder: Path,
    arrays: Mapping[str, np.ndarray],
    config: dict[str, Any],
    dtype: str,
    *,
    kept: tuple[str, ...] = (),
    shards: int = 1,
) -> None:
    """Raw weights and config.json; `kept`: ends of the names of tensors that do not take the dtype."""
    kind = getattr(mx, dtype)
    cast = {n: mx.array(a) if n.endswith(kept) else mx.array(a).astype(kind) for n, a in arrays.items()}
    save_weights(folder, cast, shards=shards, made_by="pt")
    write_json(folder / "config.json", config)


def load_weights(folder: Path) -> dict[str, mx.array]:
    """Every tensor of a checkpoint's main files, as stored."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: value for file in files for name, value in mx.load(str(file)).items()}


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
