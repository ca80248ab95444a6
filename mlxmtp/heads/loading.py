"""Finding a checkpoint's head by the tensors that are there, and reading it into its family's module."""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import infer_quant_config

from mlxmtp.checkpoints import SIDE_CAR, Checkpoint, TensorInfo
from mlxmtp.errors import HeadError, is_out_of_memory
from mlxmtp.heads import qwen
from mlxmtp.heads.head import Head
from mlxmtp.targets import Target, materialise

_NAME = re.compile(r"((?:model\.|language_model\.)*mtp\.)(.+)")
_DSPARK = ("main_proj", "main_norm", "markov_head", "confidence_head")


class NoHeadError(HeadError):
    """There is nothing to speculate with; plain decoding works, and the message says why it is used."""


def load_head(checkpoint: Checkpoint, target: Target) -> Head:
    """The MTP head of a checkpoint, ready to use, sharing the target's matrices.

    Raises:
        NoHeadError: no head tensors, or no family for this kind of model.
        HeadError: there are head tensors, but they are not a head that can be run.
    """
    names = _head_names(checkpoint.tensors)
    _refuse_dspark(names.values())
    if checkpoint.model_type not in qwen.TRUNKS:
        raise NoHeadError(f"no MTP head family for model type {checkpoint.model_type!r} yet")
    if not names:
        raise NoHeadError(_absent(target))
    if not target.reversible:
        raise NoHeadError("this model keeps caches that cannot take rejected drafts back yet")
    layers = {name.split(".")[1] for name in names.values() if name.startswith("layers.")}
    if len(layers) > 1:
        raise HeadError(f"the head has {len(layers)} MTP layers; one is supported; use --no-mtp")
    try:
        weights = _read({name: checkpoint.tensors[name] for name in names}, names)
        head, weights = qwen.build(weights, target, trunk_is_raw=_trunk_is_raw(checkpoint.tensors))
        _load(head, weights, target)
    except (ValueError, KeyError, TypeError, IndexError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        raise HeadError(f"the head's tensors do not fit this model ({error}); use --no-mtp") from error
    loaded: Head = head
    return loaded


def _head_names(tensors: Mapping[str, TensorInfo]) -> dict[str, str]:
    """The head's tensors, and their names inside the head. A side-car, where there is one, is the whole head."""
    if own := [name for name, info in tensors.items() if info.file.name == SIDE_CAR]:
        return {name: match[2] if (match := _NAME.fullmatch(name)) else name for name in own}
    found = {name: match for name in tensors if (match := _NAME.fullmatch(name))}
    if len({match[1] for match in found.values()}) > 1:
        raise HeadError(f"the files hold more than one head ({min(found)}, {max(found)}); use --no-mtp")
    return {name: match[2] for name, match in found.items()}


def _absent(target: Target) -> str:
    declared = target.text_config.get("mtp_num_hidden_layers") or 0
    if declared:
        return f"the config declares {declared} MTP layer(s), but the files hold no mtp.* tensors"
    return "the files hold no MTP head (no mtp.* tensors)"


def _refuse_dspark(names: Iterable[str]) -> None:
    if spark := sorted(name for name in names if any(mark in name for mark in _DSPARK)):
        raise HeadError(f"the mtp.* tensors are DSpark stages ({spark[0]}), not an MTP head; use --no-mtp")


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


def _load(head: nn.Module, weights: dict[str, mx.array], target: Target) -> None:
    """Put the weights in: quantised layers as they are stored, the rest in the dtype that the trunk computes in.

    Another dtype would spread: a float32 norm in the head makes every draft convert the shared output matrix.
    """
    _check_names(head, weights)

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        how: dict[str, Any] = infer_quant_config(path, module, weights)
        return how

    nn.quantize(head, class_predicate=stored)
    for name, shape in _shapes(head).items():
        if weights[name].shape != shape:
            raise HeadError(f"the head's mtp.{name} is {weights[name].shape}, expected {shape}; use --no-mtp")
    dtype = target.embed(mx.array([[0]])).dtype
    cast = {n: w.astype(dtype) if mx.issubdtype(w.dtype, mx.floating) else w for n, w in weights.items()}
    head.load_weights(list(cast.items()))
    head.eval()
    materialise(head)


def _check_names(head: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Every tensor known and none missing, before anything is derived from shapes."""
    stored = {name for name in weights if not name.endswith((".scales", ".biases"))}
    expected = set(_shapes(head))
    if unknown := sorted(stored - expected):
        raise HeadError(f"the head has an unknown tensor mtp.{unknown[0]} {weights[unknown[0]].shape}; use --no-mtp")
    if missing := sorted(expected - stored):
        raise HeadError(f"the head's mtp.{missing[0]} is missing; download the model again, or use --no-mtp")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    flat: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    return {name: value.shape for name, value in flat}
