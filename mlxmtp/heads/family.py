"""What a family of heads brings: its name, the trunks that it stands on, and how it is built from its tensors."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

Build = Callable[..., tuple[Any, dict[str, mx.array]]]
"""build(weights, target, *, trunk_is_raw, stated) -> the module, still empty, and its weights by its own names."""


@dataclass(frozen=True)
class Family:
    """One kind of head.

    Args:
        name: as reports show it. trunks: the model types that it belongs to.
        silent: trunks whose configs do not tell of the head that all their originals have.
        norms_are_raw: tells from values whether norms lack their offset; None: the family's norms have none.
    """

    name: str
    trunks: tuple[str, ...]
    build: Build
    silent: tuple[str, ...] = ()
    norms_are_raw: Callable[..., bool] | None = None
