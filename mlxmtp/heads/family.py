"""What a family of heads brings: its name, the trunks that it stands on, and how it is built from its tensors."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxmtp.heads.head import CONVENTIONS

Build = Callable[..., tuple[Any, dict[str, mx.array]]]
"""build(weights, target, *, trunk_is_raw, stated, config) -> the module, still empty, and its weights by its own names.

`trunk_is_raw` and `stated` tell of norms (heads/loading.py), `config` is that of a head in a folder of its own.
"""


@dataclass(frozen=True)
class Family:
    """One kind of head.

    Args:
        name: as reports show it. trunks: the model types that it belongs to.
        silent: trunks whose configs do not tell of the head that all their originals have.
        norms_are_raw: tells from values whether norms lack their offset; None: the family's norms have none.
        layers: how many a head may have; None: any number.
        readings: how its heads can be read, where references disagree; the first is what is done.
        repo: of heads that are models of their own, the one that belongs to a trunk of such names.
    """

    name: str
    trunks: tuple[str, ...]
    build: Build
    silent: tuple[str, ...] = ()
    norms_are_raw: Callable[..., bool] | None = None
    layers: int | None = 1
    conventions: tuple[Any, ...] = CONVENTIONS
    repo: Callable[[Iterable[str]], str | None] | None = None
