"""The record that describes a family of heads: its name, its trunks, and how a head is built."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx

from mlxmtp.heads.head import CONVENTIONS

Build = Callable[..., tuple[Any, dict[str, mx.array]]]
"""build(weights, target, *, trunk_is_raw, stated, config) -> (module without weights, weights by the module's names).

`weights` have the names inside the head ("fc.weight"). `trunk_is_raw`: whether the trunk next to the head is in Hugging
Face's layout; None: unknown. `stated`: "raw" or "shifted" norms, if the files say so. `config`: the whole configuration
of a head in a folder of its own.
"""


@dataclass(frozen=True)
class Family:
    """One kind of head.

    Args:
        name: as reports show it.
        trunks: model types of its trunks.
        build: makes a head's module from its weights.
        silent: trunks whose configs do not declare the head, though all originals have one.
        norms_are_raw: returns whether norm weights lack their offset; None: the family's norms have no offset.
        layers: the largest number of layers of a head; None: any number.
        conventions: on which references disagree; the first is used, `inspect --try-head` measures all.
        repo: returns the repo of the head for a trunk of one of the given names; for heads that are their own models.
    """

    name: str
    trunks: tuple[str, ...]
    build: Build
    silent: tuple[str, ...] = ()
    norms_are_raw: Callable[..., bool] | None = None
    layers: int | None = 1
    conventions: tuple[Any, ...] = CONVENTIONS
    repo: Callable[[Iterable[str]], str | None] | None = None
