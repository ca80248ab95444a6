"""Where a checkpoint keeps its MTP head, and what its files say of it."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmtp.checkpoints.checkpoint import HEAD_FACTS, text_config
from mlxmtp.checkpoints.tensors import SIDE_CARS, TensorInfo
from mlxmtp.errors import HeadError

Place = Literal["shards", "side-car", "drafter"]
Norms = Literal["raw", "shifted"]

MLX_VLM = "_mtp"
DRAFTERS = (MLX_VLM, "_assistant")
"""End the model type of a drafter, a head in a folder of its own: as mlx-vlm's `split_mtp` writes it, or Gemma's."""
_NAME = re.compile(r"((?:model\.|language_model\.)*mtp\.)(.+)")
_LAYER = re.compile(r"((?:model\.|language_model\.)*)layers\.(\d+)\.(.+)")
_NUMBER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
_DSPARK = ("main_proj", "main_norm", "markov_head", "confidence_head")


@dataclass(frozen=True)
class HeadFiles:
    """The tensors of a head, by the names they have in their files.

    Args:
        names: their names inside the head ("fc.weight").
        place: among the model's shards, in a side-car, or in a folder of their own.
        facts: what the configuration states: `norms`, `quantization`, `family`, `source`, `revision`; `config` is that
            of a drafter.
    """

    tensors: Mapping[str, TensorInfo]
    names: Mapping[str, str]
    place: Place
    facts: Mapping[str, Any]

    @property
    def files(self) -> list[Path]:
        return sorted({info.file for info in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def layers(self) -> int:
        """How many layers it has."""
        return len({match[1] for name in self.names.values() if (match := _NUMBER.match(name))})

    @property
    def norms(self) -> Norms | None:
        """Whether norm weights still lack their offset, where the files say so."""
        stated = self.facts.get("norms")
        return stated if stated in ("raw", "shifted") else None

    def quantization(self, path: str) -> dict[str, Any]:
        """How a linear layer of the head ("fc") is packed, where the files say so for that layer."""
        stated = self.facts.get("quantization") or {}
        stored = next((name for name, short in self.names.items() if short == f"{path}.weight"), "")
        how = stated.get(stored.removesuffix(".weight"))
        return dict(how) if isinstance(how, dict) else {}


def find_head(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> HeadFiles | None:
    """The head among a checkpoint's tensors, found by their names; the config only describes it.

    A side-car, where there is one, is the whole head: never mixed with tensors in the shards.

    Raises:
        HeadError: there is more than one, or the tensors are of another kind of draft model.
    """
    place, names = _names(config, tensors)
    if not names:
        return None
    if spark := sorted(name for name in names.values() if any(mark in name for mark in _DSPARK)):
        raise HeadError(f"the mtp.* tensors are DSpark stages ({spark[0]}), not an MTP head")
    return HeadFiles({name: tensors[name] for name in names}, names, place, _facts(config, place))


def trunk_type(model_type: str) -> str | None:
    """The model type of the trunk that a drafter's belongs to; None: it is no drafter's."""
    stems = [model_type.removesuffix(end) for end in DRAFTERS if model_type.endswith(end)]
    return stems[0] if stems else None


def is_head_name(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a tensor of a model's shards belongs to a head: `mtp.*`, or in a layer that the trunk does not have."""
    return _NAME.fullmatch(name) is not None or _past_the_trunk(name, config) is not None


def looks_like_head(name: str, config: Mapping[str, Any]) -> bool:
    """The same, or a name of families that are not supported (`mtp_layers.`, `mtp_block.`; families.md 6, 14)."""
    return is_head_name(name, config) or any(part.startswith("mtp_") or part == "mtp" for part in name.split("."))


def _past_the_trunk(name: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Prefix and short name of a tensor in layer N, N + 1, ... of a trunk of N layers (`nextn`, families.md 3)."""
    layers = text_config(config).get("num_hidden_layers")
    match = _LAYER.fullmatch(name)
    if match is None or not isinstance(layers, int) or int(match[2]) < layers:
        return None
    return match[1], f"layers.{int(match[2]) - layers}.{match[3]}"


def _names(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[Place, dict[str, str]]:
    if trunk_type(config["model_type"]):
        return "drafter", _without_prefix(tensors)
    for side_car in SIDE_CARS:
        if own := [name for name, info in tensors.items() if info.file.match(side_car)]:
            return "side-car", _without_prefix(own)
    found = {name: (match[1], match[2]) for name in tensors if (match := _NAME.fullmatch(name))}
    found |= {name: past for name in tensors if (past := _past_the_trunk(name, config))}
    if len({prefix for prefix, _ in found.values()}) > 1:
        raise HeadError(f"the files hold more than one head ({min(found)}, {max(found)})")
    return "shards", {name: short for name, (_, short) in found.items()}


def _without_prefix(names: Iterable[str]) -> dict[str, str]:
    return {name: match[2] if (match := _NAME.fullmatch(name)) else name for name in names}


def _facts(config: Mapping[str, Any], place: Place) -> dict[str, Any]:
    quantization = config.get("quantization")
    if place == "drafter":
        return {"norms": "shifted", "quantization": quantization, "config": dict(config)}
    if place == "side-car" and isinstance(stated := config.get(HEAD_FACTS), dict):
        return dict(stated)
    return {"quantization": quantization} if quantization else {}
