"""Pack a head as mlxmtp stores it: `mtp.safetensors`, and its description under `mtp_head` in config.json."""

import re
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from mlxmtp.errors import OptionError
from mlxmtp.targets import Target

GROUP_SIZE = 64
"""Weights per scale of a quantised head."""
HEAD_BITS = (4, 8, 16)
"""Bits per weight that a head can be stored in; 16: not quantised."""
_BLOCK = re.compile(r"layers\.\d+\.block\.")
"""Begins the names of a head's block."""
PREFIX = "mtp."
"""Begins the name of every tensor in the file."""


@dataclass(frozen=True)
class Sidecar:
    """A head ready to be written.

    Args:
        weights: lazy, by their names in `mtp.safetensors`.
        family: the name of its family.
        quantization: by layer, in mlx-lm's form; None: not quantised.
        source: the repo or folder that it comes from.
        revision: the commit of that repo.
        config: the whole configuration of a head that is its own model.
    """

    weights: dict[str, mx.array]
    family: str
    quantization: dict[str, Any] | None
    source: str
    revision: str | None
    config: dict[str, Any] | None = None

    @property
    def nbytes(self) -> int:
        return sum(weight.nbytes for weight in self.weights.values())

    @property
    def facts(self) -> dict[str, Any]:
        """The description for the config: everything but the weights; norms are stored with their offset."""
        facts = {key: value for key, value in vars(self).items() if key != "weights" and (value or key != "config")}
        return facts | {"norms": "shifted"}


def make_sidecar(
    head: Any,
    target: Target,
    bits: int | None,
    source: str,
    revision: str | None,
    config: dict[str, Any] | None = None,
) -> Sidecar:
    """Pack a loaded (or lazy) head.

    Args:
        head: the module.
        target: its trunk, whose model decides which layers are quantised.
        bits: 4 or 8: quantise linear layers (affine, groups of 64); 16: dequantise them; None: leave them as they are.
        source: the repo or folder that the head comes from.
        revision: the commit of that repo.
        config: the whole configuration of a head that is its own model.

    Raises:
        OptionError: other bits.
    """
    if bits is not None:
        if bits not in HEAD_BITS:
            raise OptionError(f"head bits are {bits}; expected 4, 8 or 16")
        head = dequantize_model(head)
        if bits < 16:
            _quantise(head, target, bits)
    weights: list[tuple[str, mx.array]] = tree_flatten(head.parameters())  # type: ignore[assignment]
    named = {PREFIX + name: weight for name, weight in weights}
    return Sidecar(named, head.family, _quantization(head), source, revision, config)


def _quantise(head: nn.Module, target: Target, bits: int) -> None:
    """Quantise by mlx-lm's predicate, which keeps routers at 8 bits; widths not divisible by 64 stay whole.

    It is asked as for the trunk's last layer, for it may look that up.
    """
    predicate = getattr(target.model, "quant_predicate", None)
    last = f"model.layers.{len(target.text_model.layers) - 1}."

    def predicate_of(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % GROUP_SIZE:
            return False
        how: bool | dict[str, Any] = predicate(_BLOCK.sub(last, path), module) if predicate else True
        return how

    nn.quantize(head, GROUP_SIZE, bits, class_predicate=predicate_of)


def _quantization(head: nn.Module) -> dict[str, Any] | None:
    """Return the quantization of each layer in mlx-lm's form, or None."""
    found = {
        PREFIX + path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for path, module in head.named_modules()
        if hasattr(module, "bits")
    }
    return found or None
