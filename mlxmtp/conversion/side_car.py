"""A head as mlxmtp stores it: `mtp.safetensors`, and under `mtp_head` in the config what it is."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.utils import dequantize_model

from mlxmtp.errors import OptionError
from mlxmtp.targets import Target

GROUP = 64
BITS = (4, 8, 16)
PREFIX = "mtp."


@dataclass(frozen=True)
class SideCar:
    """A head ready to be written.

    Args:
        weights: by the names of `mtp.safetensors`, lazy.
        family: its kind. quantization: as mlx-lm writes it, by layer, or None.
        source: the repo or folder it comes from. revision: the commit there.
        config: its own, of a head that is a model of its own.
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
        """What goes into the config: norms have their offset, where there is one; experts are stacked."""
        facts = {key: value for key, value in vars(self).items() if key != "weights" and (value or key != "config")}
        return facts | {"norms": "shifted"}


def side_car(
    head: Any,
    target: Target,
    bits: int | None,
    source: str,
    revision: str | None,
    config: dict[str, Any] | None = None,
) -> SideCar:
    """Pack a loaded (or lazy) head.

    Args:
        bits: 4 or 8 to quantise its linear layers (affine, groups of 64), 16 to leave or make them whole, None to
            store them as they are.

    Raises:
        OptionError: other bits.
    """
    if bits is not None:
        if bits not in BITS:
            raise OptionError(f"head bits are {bits}; expected 4, 8 or 16")
        head = dequantize_model(head)
        if bits < 16:
            _quantise(head, target, bits)
    weights: list[tuple[str, mx.array]] = tree_flatten(head.parameters())  # type: ignore[assignment]
    return SideCar({PREFIX + name: w for name, w in weights}, head.family, _packing(head), source, revision, config)


def _quantise(head: nn.Module, target: Target, bits: int) -> None:
    """As mlx-lm does the trunk: its predicate keeps routers at 8 bits, odd widths stay whole."""
    predicate = getattr(target.model, "quant_predicate", None)

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % GROUP:
            return False
        how: bool | dict[str, Any] = predicate(path, module) if predicate else True
        return how

    nn.quantize(head, GROUP, bits, class_predicate=chosen)


def _packing(head: nn.Module) -> dict[str, Any] | None:
    found = {
        PREFIX + path: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
        for path, module in head.named_modules()
        if hasattr(module, "bits")
    }
    return found or None
