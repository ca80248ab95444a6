"""Load a head's weights into its module: names and shapes are checked, dtypes are the trunk's."""

from collections.abc import Mapping
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import infer_quant_config

from mlxmtp.checkpoints import HeadFiles
from mlxmtp.errors import HeadError
from mlxmtp.targets import Target, matrix_rows


def load_weights(head: nn.Module, weights: dict[str, mx.array], target: Target, files: HeadFiles) -> None:
    """Load the weights: quantised layers as they are stored, the rest in the dtype of the trunk's computation.

    Another dtype would spread: after a float32 norm, every draft would convert the shared output matrix.
    """
    _check_names(head, weights)

    def stored(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if f"{path}.scales" not in weights or not hasattr(module, "to_quantized"):
            return False
        how: dict[str, Any] = infer_quant_config(path, module, weights)
        return how | files.quantization(path)

    nn.quantize(head, class_predicate=stored)
    for name, shape in _shapes(head).items():
        if name in weights:
            weights[name] = _with_rows(weights[name], shape, name, target)
        if name not in weights:
            raise HeadError(f"the head's {name} is missing; download the model again")
        if weights[name].shape != shape:
            raise HeadError(f"the head's {name} is {weights[name].shape}, expected {shape}")
    dtype = target.embed(mx.array([[0]])).dtype
    casts = getattr(target.model, "cast_predicate", lambda _: True)
    for name, weight in weights.items():
        if mx.issubdtype(weight.dtype, mx.floating) and casts(name):
            weights[name] = weight.astype(dtype)
    head.load_weights(list(weights.items()))
    head.eval()


def _with_rows(weight: mx.array, shape: tuple[int, ...], name: str, target: Target) -> mx.array:
    """Return a matrix over the vocabulary with as many rows as the trunk's, another tensor as it is.

    A fine-tune adds tokens, and programs pad the vocabulary. Rows that the head lacks are the trunk's.
    """
    trunk = {"embed_tokens": target.embedding, "lm_head": target.output}.get(".".join(name.split(".")[-2:-1]))
    if trunk is None or shape[0] != target.vocab_size or weight.shape[1:] != shape[1:]:
        return weight
    missing = mx.arange(weight.shape[0], shape[0])
    if missing.size:
        return mx.concatenate([weight, matrix_rows(trunk, missing).astype(weight.dtype)])
    return weight[: shape[0]]


def _check_names(head: nn.Module, weights: Mapping[str, mx.array]) -> None:
    """Check that every tensor is known and none is missing, before anything is derived from shapes."""
    stored = {name for name in weights if not name.endswith((".scales", ".biases"))}
    expected = set(_shapes(head))
    if unknown := sorted(stored - expected):
        raise HeadError(f"the head has an unknown tensor {unknown[0]} {weights[unknown[0]].shape}")
    if missing := sorted(expected - stored):
        raise HeadError(f"the head's {missing[0]} is missing; download the model again")


def _shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    flat: list[tuple[str, mx.array]] = tree_flatten(module.parameters())  # type: ignore[assignment]
    return {name: value.shape for name, value in flat}
