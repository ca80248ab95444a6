"""Heads with packed matrices, and heads in folders of their own."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx

from tests.tiny.conversion import stack_experts
from tests.tiny.files import load_weights, save_weights, write_json
from tests.tiny.nextn import NextNKind

MODES: dict[str, dict[str, Any]] = {
    "affine-3": {"group_size": 32, "bits": 3, "mode": "affine"},
    "affine-4": {"group_size": 64, "bits": 4, "mode": "affine"},
    "affine-8": {"group_size": 64, "bits": 8, "mode": "affine"},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
    "nvfp4": {"group_size": 16, "bits": 4, "mode": "nvfp4"},
    "mxfp8": {"group_size": 32, "bits": 8, "mode": "mxfp8"},
}
"""Ways to pack a matrix, as `mx.quantize` takes them."""

Weights = dict[str, mx.array]


def pack(head: Weights, mode: str, *, kept: tuple[str, ...] = ()) -> tuple[Weights, Weights]:
    """A head with its matrices packed in one of `MODES`, and the head of the numbers that these stand for.

    Args:
        kept: ends of the paths of layers that stay as they are.
    """
    packed, whole = dict(head), dict(head)
    for name, value in head.items():
        path = name.removesuffix(".weight")
        if value.ndim > 1 and not path.endswith(kept):
            parts = mx.quantize(value, **MODES[mode])
            packed |= {f"{path}.{part}": a for part, a in zip(("weight", "scales", "biases"), parts, strict=False)}
            whole[name] = mx.dequantize(*parts, **MODES[mode]).astype(value.dtype)
    return packed, whole


def drafter(source: Path, dest: Path, *, mode: str | None = None, text_config: bool = True) -> Path:
    """What mlx-vlm's `split_mtp` makes of a raw checkpoint's head: a folder of its own; returns `dest`.

    Args:
        mode: one of `MODES`; routers stay whole.
        text_config: whether the config has the trunk's sizes.
    """
    raw = {name: value for name, value in load_weights(source).items() if name.startswith("mtp.")}
    stacked = {name.removeprefix("mtp."): value for name, value in stack_experts(raw).items()}
    head = {name: value + 1.0 if value.ndim == 1 else value for name, value in stacked.items()}
    original = json.loads((source / "config.json").read_text())
    config: dict[str, Any] = {"model_type": "qwen3_5_mtp", "block_size": 3, "tie_word_embeddings": False}
    if text_config:
        config["text_config"] = original.get("text_config", original)
    if mode:
        head, _ = pack(head, mode, kept=("mlp.gate",))
        config |= {"quantization": MODES[mode], "quantization_config": MODES[mode]}
    save_weights(dest, head, made_by="mlx")
    write_json(dest / "config.json", config)
    return dest


def nextn_drafter(source: Path, dest: Path, *, mode: str | None = None) -> Path:
    """What mlx-vlm's `split_mtp` makes of a `nextn` layer, for the kinds that it knows; returns `dest`.

    Args:
        mode: as for `drafter`.
    """
    original = json.loads((source / "config.json").read_text())
    kind: NextNKind = original["model_type"]
    layer = f"model.layers.{original['num_hidden_layers']}."
    raw = {name.removeprefix(layer): w for name, w in load_weights(source).items() if name.startswith(layer)}
    head = _stacked(raw, original["n_routed_experts"])
    expanded = head.pop("self_attn.kv_b_proj.weight")
    rows = original["qk_nope_head_dim"], original["v_head_dim"]
    split = expanded.reshape(original["num_attention_heads"], sum(rows), -1)
    head["self_attn.embed_q.weight"] = mx.contiguous(split[:, : rows[0]].swapaxes(-1, -2))
    head["self_attn.unembed_out.weight"] = mx.contiguous(split[:, rows[0] :])
    config: dict[str, Any] = {
        "model_type": f"{kind}_mtp", "block_size": 2, "tie_word_embeddings": False, "text_config": original,
    }  # fmt: skip
    if mode:
        head, _ = pack(head, mode, kept=("mlp.gate",))
        config |= {"quantization": MODES[mode], "quantization_config": MODES[mode]}
    save_weights(dest, {_mlx_vlm_name(name, kind): w for name, w in head.items()}, made_by="mlx")
    write_json(dest / "config.json", config)
    return dest


def _stacked(layer: Weights, experts: int) -> Weights:
    out = {name: w for name, w in layer.items() if not name.startswith("mlp.experts.")}
    for part in ("gate", "up", "down"):
        stack = [layer[f"mlp.experts.{e}.{part}_proj.weight"] for e in range(experts)]
        out[f"mlp.switch_mlp.{part}_proj.weight"] = mx.stack(stack)
    return out


def _mlx_vlm_name(name: str, kind: NextNKind) -> str:
    """GLM-5's drafter calls all but a norm as the layer does; GLM-4.7-Flash's looks like a model of one layer."""
    name = name.replace("shared_head.norm.", "shared_head_norm.")
    if kind == "glm_moe_dsa":
        return f"mtp.{name}"
    if name.startswith("shared_head.head."):
        return name.replace("shared_head.head.", "lm_head.")
    inside = name.startswith(("input_layernorm.", "post_attention_layernorm.", "self_attn.", "mlp."))
    return f"model.mtp_block.{name}" if inside else f"model.{name}"
