"""Find the MTP head among a checkpoint's tensors, by their names."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmtp.checkpoints.checkpoint import HEAD_FACTS, text_config
from mlxmtp.checkpoints.tensors import SIDECARS, TensorInfo
from mlxmtp.errors import HeadError

Place = Literal["shards", "side-car", "drafter"]
"""Where the head's tensors are: among the model's shards, in a side-car, or in a folder of their own."""
Norms = Literal["raw", "shifted"]
"""Norm weights without, or with, their offset of 1."""

MLX_VLM = "_mtp"
"""The last part of the model type that mlx-vlm's `split_mtp` gives a head in a folder of its own."""
DRAFTERS = (MLX_VLM, "_assistant")
"""The last parts of model types of heads in a folder of their own; "_assistant" is Gemma's."""
_NAME = re.compile(r"((?:model\.|language_model\.)*mtp[._])(.+)")
"""Prefix and short name: "mtp.fc.weight", MiMo's "model.mtp_layers.0.x", Ernie's "model.mtp_block.0.x"."""
_LAYER = re.compile(r"((?:model\.|language_model\.)*)layers\.(\d{1,9})\.(.+)")
_NUMBER = re.compile(r"(?:model\.)?layers\.(\d+)\.")
_DSPARK = ("main_proj", "main_norm", "markov_head", "confidence_head")


@dataclass(frozen=True)
class HeadFiles:
    """The files, tensors and description of a head.

    Args:
        tensors: by their names in the files.
        names: name in the files to name inside the head ("fc.weight").
        place: where the tensors are.
        facts: what the configuration states: `norms`, `quantization`, `family`, `source`, `revision`; and `config`, the
            whole configuration of a drafter.
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
        """The number of the head's decoder layers; a head whose layer has no number has one."""
        return len({match[1] for name in self.names.values() if (match := _NUMBER.match(name))}) or 1

    @property
    def norms(self) -> Norms | None:
        """The convention of norm weights that the files state, or None."""
        stated = self.facts.get("norms")
        return stated if stated in ("raw", "shifted") else None

    def quantization(self, path: str) -> dict[str, Any]:
        """Return the quantization that the files state for a linear layer of the head ("fc"), or {}."""
        stated = self.facts.get("quantization")
        stored = next((name for name, short in self.names.items() if short == f"{path}.weight"), "")
        how = stated.get(stored.removesuffix(".weight")) if isinstance(stated, dict) else None
        return dict(how) if isinstance(how, dict) else {}


def find_head(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> HeadFiles | None:
    """Return the head among a checkpoint's tensors, found by their names; None if there is no head.

    A side-car is the whole head: it is never mixed with tensors in the shards.

    Raises:
        HeadError: there are two heads, or the tensors are another kind of draft model's.
    """
    place, names = _names(config, tensors)
    if not names:
        return None
    if spark := sorted(name for name in names.values() if any(mark in name for mark in _DSPARK)):
        raise HeadError(f"the mtp.* tensors are DSpark stages ({spark[0]}), not an MTP head")
    return HeadFiles({name: tensors[name] for name in names}, names, place, _facts(config, place))


def trunk_type(model_type: str) -> str | None:
    """Return the model type of a drafter's trunk; None if `model_type` is not a drafter's."""
    stems = [model_type.removesuffix(end) for end in DRAFTERS if model_type.endswith(end)]
    return stems[0] if stems else None


def is_head_name(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a tensor in a model's shards is a head's: `mtp.*`, `mtp_*`, or past the trunk's layers."""
    return _NAME.fullmatch(name) is not None or _past_the_trunk(name, config) is not None


def looks_like_head(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether `is_head_name`, or another name with a part `mtp` or `mtp_*`."""
    return is_head_name(name, config) or any(part.startswith("mtp_") or part == "mtp" for part in name.split("."))


def _past_the_trunk(name: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return prefix and short name of a tensor in layer N, N + 1, ... of a trunk of N layers (`nextn`), or None."""
    layers = text_config(config).get("num_hidden_layers")
    match = _LAYER.fullmatch(name)
    if match is None or not isinstance(layers, int) or int(match[2]) < layers:
        return None
    return match[1], f"layers.{int(match[2]) - layers}.{match[3]}"


def _names(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[Place, dict[str, str]]:
    if trunk_type(config["model_type"]):
        return "drafter", _without_prefix(tensors)
    for sidecar in SIDECARS:
        if own := [name for name, info in tensors.items() if info.file.match(sidecar)]:
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
