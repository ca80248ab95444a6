"""What MLX conversions of raw checkpoints look like."""

import shutil
from pathlib import Path
from typing import Any, Literal

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model, quantize_model, save_config

from tests.tiny.files import load_weights, save_weights

GROUP = 64


def mlx_conversion(
    source: Path,
    dest: Path,
    *,
    bits: int | None = None,
    head: Literal["shards", "sidecar", "none"] = "shards",
    head_bits: int | None = None,
    head_norms: Literal["shifted", "raw"] = "shifted",
    shards: int = 1,
) -> Path:
    """Write what an MLX conversion of a raw checkpoint looks like; returns `dest`.

    The trunk goes through mlx-lm's own loader and quantiser.

    Args:
        source: a `raw_checkpoint` whose trunk mlx-lm can read.
        dest: the new folder.
        bits: affine quantisation of the trunk in groups of 64, or none.
        head: `mtp.*` among the shards (named as mlx-lm PR 990 leaves them), in `mtp.safetensors`, or nowhere.
        head_bits: affine quantisation of the head (8 for router and shared-expert gates, as in the trunk).
        head_norms: `shifted` holds 1 + w and stacked experts; `raw` is the source's tensors as they are
            (experts are stacked all the same where they are quantised).
        shards: of the main weights.
    """
    model, settings = load_model(source, lazy=True, get_model_classes=_text_types_too)
    if bits is not None:
        model, settings = quantize_model(model, settings, GROUP, bits)
    weights = dict(tree_flatten(model.parameters()))
    mtp = {k: v for k, v in load_weights(source).items() if k.startswith("mtp.") and head != "none"}
    mtp = _converted_head(mtp, shifted=head_norms == "shifted", bits=head_bits)
    if head == "sidecar":
        dest.mkdir(parents=True, exist_ok=True)
        mx.save_safetensors(str(dest / "mtp.safetensors"), mtp, {"format": "mlx"})
    else:
        prefix = "" if settings["model_type"] == "qwen3_next" else "language_model."
        weights |= {prefix + name: value for name, value in mtp.items()}
        settings = _record_bits(settings, weights, prefix + "mtp.")
    save_weights(dest, weights, shards=shards, made_by="mlx")
    save_config(settings, dest / "config.json")
    for file in ("generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if (source / file).exists():
            shutil.copy(source / file, dest / file)
    return dest


def _text_types_too(config: dict[str, Any]) -> Any:
    """mlx-lm 0.32.2 has no module for the text-only types, whose flat config its modules can read."""
    return _get_classes(config=config | {"model_type": config["model_type"].removesuffix("_text")})


def _converted_head(raw: dict[str, mx.array], *, shifted: bool, bits: int | None) -> dict[str, mx.array]:
    head = stack_experts(raw) if shifted or bits else dict(raw)
    if shifted:
        head = {name: value + 1.0 if value.ndim == 1 else value for name, value in head.items()}
    return head if bits is None else _quantized(head, bits)


def stack_experts(raw: dict[str, mx.array]) -> dict[str, mx.array]:
    """A head's experts, fused or one by one, as mlx-lm's `switch_mlp.{gate,up,down}_proj.weight`."""
    base = "mtp.layers.0.mlp."
    head = {name: value for name, value in raw.items() if not name.startswith(base + "experts.")}
    if base + "experts.gate_up_proj" in raw:
        gate, up = mx.split(raw[base + "experts.gate_up_proj"], 2, axis=1)
        down = raw[base + "experts.down_proj"]
        stacks = {"gate": gate, "up": up, "down": down}
    elif base + "experts.0.up_proj.weight" in raw:
        count = sum(name.endswith(".up_proj.weight") and ".experts." in name for name in raw)
        stacks = {
            p: mx.stack([raw[f"{base}experts.{e}.{p}_proj.weight"] for e in range(count)])
            for p in ("gate", "up", "down")
        }
    else:
        stacks = {}
    return head | {f"{base}switch_mlp.{p}_proj.weight": mx.contiguous(w) for p, w in stacks.items()}


def _quantized(head: dict[str, mx.array], bits: int) -> dict[str, mx.array]:
    out: dict[str, mx.array] = {}
    for name, value in head.items():
        if value.ndim == 1:
            out[name] = value
            continue
        path = name.removesuffix(".weight")
        width = 8 if path.endswith(("mlp.gate", "shared_expert_gate")) else bits
        packed, scales, biases = mx.quantize(value, group_size=GROUP, bits=width)
        out |= {name: packed, f"{path}.scales": scales, f"{path}.biases": biases}
    return out


def _record_bits(settings: dict[str, Any], weights: dict[str, mx.array], prefix: str) -> dict[str, Any]:
    """The config with one `quantization` entry for each quantised module under `prefix`."""
    paths = [n.removesuffix(".scales") for n in weights if n.startswith(prefix) and n.endswith(".scales")]
    if not paths:
        return settings
    found = {}
    for path in paths:
        inputs = weights[f"{path}.scales"].shape[-1] * GROUP
        found[path] = {"group_size": GROUP, "bits": weights[f"{path}.weight"].shape[-1] * 32 // inputs}
    default = {"group_size": GROUP, "bits": min(entry["bits"] for entry in found.values())}
    base = settings.get("quantization", default)
    return settings | {"quantization": base | found}
