"""Finding a checkpoint's head by the tensors that are there, and reading it into its family's module."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import infer_quant_config

from mlxmtp.checkpoints import Checkpoint, TensorInfo
from mlxmtp.errors import HeadError
from mlxmtp.heads import qwen
from mlxmtp.heads.head import Head
from mlxmtp.targets import Target, materialise, stack_experts

_PREFIXES = (
    "mtp.",
    "model.mtp.",
    "language_model.mtp.",
    "model.language_model.mtp.",
    "language_model.model.mtp.",
)
_DSPARK = ("main_proj", "main_norm", "markov_head", "confidence_head")


class NoHeadError(HeadError):
    """There is nothing to speculate with; plain decoding works, and the message says why it is used."""


def load_head(checkpoint: Checkpoint, target: Target) -> Head:
    """The MTP head of a checkpoint, ready to use, sharing the target's matrices.

    Raises:
        NoHeadError: no head tensors, or no family for this kind of model.
        HeadError: there are head tensors, but they are not a head that can be run.
    """
    if checkpoint.model_type not in qwen.TRUNKS:
        raise NoHeadError(f"no MTP head family for model type {checkpoint.model_type!r} yet")
    tensors = checkpoint.tensors
    names = {name: short for name in tensors if (short := _short(name))}
    if not names:
        raise NoHeadError(_absent(target))
    _refuse_unknown(names.values())
    weights = _read({name: tensors[name] for name in names}, names)
    if _norms_are_raw(weights, _trunk_is_raw(tensors)):
        weights = {k: v + qwen.NORM_OFFSET if _is_norm(k, v) else v for k, v in weights.items()}
    weights = stack_experts(weights)
    head = qwen.QwenHead(target, moe=any(".mlp.switch_mlp." in name for name in weights))
    _load(head, weights)
    return head


def _short(name: str) -> str | None:
    """The tensor's name inside the head, or None where it belongs to something else."""
    return next((name[len(prefix) :] for prefix in _PREFIXES if name.startswith(prefix)), None)


def _absent(target: Target) -> str:
    declared = target.text_config.get("mtp_num_hidden_layers") or 0
    if declared:
        return f"the config declares {declared} MTP layer(s), but the files hold no mtp.* tensors"
    return "the files hold no MTP head (no mtp.* tensors)"


def _refuse_unknown(names: Any) -> None:
    names = sorted(names)
    if spark := [name for name in names if any(mark in name for mark in _DSPARK)]:
        raise HeadError(f"the mtp.* tensors are DSpark stages ({spark[0]}), not an MTP head; use --no-mtp")
    layers = {name.split(".")[1] for name in names if name.startswith("layers.")}
    if len(layers) > 1:
        raise HeadError(f"the head has {len(layers)} MTP layers; one is supported; use --no-mtp")


def _read(tensors: Mapping[str, TensorInfo], names: Mapping[str, str]) -> dict[str, mx.array]:
    """The head's tensors under their short names; lazy, so that nothing else of their files is read."""
    out: dict[str, mx.array] = {}
    for file in sorted({info.file for info in tensors.values()}):
        arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        out |= {names[n]: a for n, a in arrays.items() if n in tensors and tensors[n].file == file}
    return out


def _trunk_is_raw(tensors: Mapping[str, TensorInfo]) -> bool | None:
    """Whether the trunk beside the head is in Hugging Face's layout, as mlx-lm tells; None without a conv1d."""
    widths = {info.shape[-1] for name, info in tensors.items() if name.endswith("conv1d.weight")}
    return any(width != 1 for width in widths) if widths else None


def _norms_are_raw(weights: Mapping[str, mx.array], trunk_is_raw: bool | None) -> bool:
    """Whether norm weights still lack the offset of 1.

    Raw ones scatter around 0; shifted ones around 1, where a negative one would flip a channel's sign. A raw trunk's
    files are raw throughout, so there the values only confirm; a converted trunk may have kept its head either way.
    """
    norms = [w.astype(mx.float32) for name, w in weights.items() if _is_norm(name, w)]
    values = mx.sort(mx.concatenate(norms))
    median, lowest = float(values[values.size // 2]), float(values[values.size // 100])
    if trunk_is_raw and lowest > 0 and abs(median - qwen.NORM_OFFSET) < 0.25:
        raise HeadError(
            f"the trunk is stored raw, but the head's norm weights (median {median:.2f}) look shifted by 1 already; "
            "such a head drafts nonsense: take the files from the original repo again, or use --no-mtp"
        )
    return bool(trunk_is_raw) or lowest < 0 or median < qwen.NORM_OFFSET / 2


def _is_norm(name: str, value: mx.array) -> bool:
    return value.ndim == 1 and (name.endswith("norm.weight") or name.startswith("pre_fc_norm"))


def _load(head: nn.Module, weights: dict[str, mx.array]) -> None:
    """Put the weights in, quantised layers as they are stored, after checking every name and shape."""

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        how: dict[str, Any] = infer_quant_config(path, module, weights)
        return how

    nn.quantize(head, class_predicate=stored)
    expected: dict[str, Any] = {name: value.shape for name, value in tree_flatten(head.parameters())}  # type: ignore
    for name in sorted(expected.keys() | weights.keys()):
        found = weights[name].shape if name in weights else "nothing"
        if name not in expected:
            raise HeadError(f"the head has an unknown tensor mtp.{name} {found}; use --no-mtp")
        if found != expected[name]:
            raise HeadError(f"the head's mtp.{name} is {found}, expected {expected[name]}; use --no-mtp")
    head.load_weights(list(weights.items()))
    head.eval()
    materialise(head)
