"""Writing and reading a checkpoint's files."""

import json
from pathlib import Path

import mlx.core as mx


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


def load_weights(folder: Path) -> dict[str, mx.array]:
    """Every tensor of a checkpoint's main files, as stored."""
    files = sorted(folder.glob("model*.safetensors"))
    return {name: value for file in files for name, value in mx.load(str(file)).items()}


def write_json(path: Path, value: object) -> None:
    """Write `value` as indented JSON."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
