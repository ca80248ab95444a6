"""Load a target through mlx-lm, and convert the layouts that mlx-lm does not read."""

from functools import partial
from shlex import quote
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model

from mlxmtp.checkpoints import SIDECARS, Checkpoint, dequantise_fp8
from mlxmtp.checkpoints.head_files import is_head_name, trunk_type
from mlxmtp.errors import CheckpointError, is_out_of_memory
from mlxmtp.targets.target import Target

TEXT_ONLY = {"qwen3_5_text": "qwen3_5", "qwen3_5_moe_text": "qwen3_5_moe"}
"""Model types of text-only checkpoints, and the vision-language types whose modules in mlx-lm load them."""


def load_target(checkpoint: Checkpoint, *, lazy: bool = False) -> Target:
    """Load the trunk of a checkpoint.

    Args:
        lazy: read each weight when it is first used; otherwise read all of them now.

    Raises:
        CheckpointError: mlx-lm does not know the architecture, or tensors are missing or have another shape.
    """
    check_architecture(checkpoint)
    try:
        classes = partial(_model_classes, in_sidecar=_sidecar_names(checkpoint))
        model, config = load_model(checkpoint.folder, lazy=True, get_model_classes=classes)
        if not lazy:
            materialise(model)
        return Target(model, config)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError, FileNotFoundError) as error:
        if is_out_of_memory(error):
            raise
        raise CheckpointError(f"{checkpoint.folder}: {_reason(error)}") from error


def check_architecture(checkpoint: Checkpoint) -> None:
    """Check that mlx-lm supports the model type.

    Raises:
        CheckpointError: it does not, or the checkpoint is a head without a trunk.
    """
    name, kind = checkpoint.name, checkpoint.model_type
    if trunk_type(kind):
        fetch = f"mlxmtp attach MODEL --from {quote(name)}"
        raise CheckpointError(f"{name}: a head without its model; `{fetch}` gives it to one, --head lends it")
    try:
        _model_classes(checkpoint.config, frozenset())
    except ValueError as error:
        raise CheckpointError(f"{name}: mlx-lm has no model type {kind!r}; another version of it may") from error


def materialise(module: nn.Module) -> None:
    """Evaluate a module's weights one at a time, so that the sources of one are freed before the next is read."""
    weights: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    for _, weight in weights:
        mx.eval(weight)


def _sidecar_names(checkpoint: Checkpoint) -> frozenset[str]:
    """Return the names of tensors in side-cars, which mlx-lm would take for the trunk's."""
    return frozenset(n for n, info in checkpoint.tensors.items() if any(info.file.match(s) for s in SIDECARS))


def _model_classes(config: dict[str, Any], in_sidecar: frozenset[str]) -> tuple[type[nn.Module], type]:
    kind = config["model_type"]
    model, args = _get_classes({**config, "model_type": TEXT_ONLY.get(kind, kind)})

    class Model(model):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
            # mlx-lm keeps the heads of some models, and stacks experts of one layout per family
            trunk = {
                name: w for name, w in weights.items() if not is_head_name(name, config) and name not in in_sidecar
            }
            return stack_experts(super().sanitize(dequantise_fp8(trunk)))

    return Model, args


def stack_experts(weights: dict[str, mx.array]) -> dict[str, mx.array]:
    """Convert experts stored one by one, or fused (`gate_up_proj`), to mlx-lm's stacked `switch_mlp`.

    mlx-lm reads some families in one of the layouts only; checkpoints of both exist. Other names are unchanged.
    """
    out: dict[str, mx.array] = {}
    single: dict[str, dict[int, mx.array]] = {}
    for name, value in weights.items():
        stem, found, rest = name.partition(".mlp.experts.")
        stacked = f"{stem}.mlp.switch_mlp."
        part, _, tensor = rest.partition(".")
        if not found:
            out[name] = value
        elif part == "gate_up_proj":
            for half, values in zip(("gate_proj", "up_proj"), mx.split(value, 2, axis=-2), strict=True):
                out[f"{stacked}{half}.{tensor or 'weight'}"] = mx.contiguous(values)
        elif part == "down_proj":
            out[f"{stacked}{part}.{tensor or 'weight'}"] = value
        else:
            single.setdefault(stacked + tensor, {})[int(part)] = value
    for name, experts in single.items():
        out[name] = mx.stack([experts[e] for e in range(len(experts))])
    return out


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()[:3]]
    return " ".join(lines) or type(error).__name__
