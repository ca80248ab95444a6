"""Find the MTP head among a checkpoint's tensors, by their names."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from mlxmtp.checkpoints.checkpoint import HEAD_FACTS, text_config
from mlxmtp.checkpoints.names import unwrapped
from mlxmtp.checkpoints.tensors import TensorInfo, Tensors, same_bytes, sidecar_tensors
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
_NUMBER = re.compile(r"(?:model\.)?(?:layers|block)\.(\d+)\.")
_BEGINNING = re.compile(_NUMBER.pattern + r"(?:enorm|hnorm|eh_proj)\.")
"""Of a layer that projects a pair; Nemotron's second block has none, and goes on with the first's output."""
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
        unused: files with another head, which a side-car replaces.
        copies: pairs of a tensor of this head and another one of its name.
    """

    tensors: Mapping[str, TensorInfo]
    names: Mapping[str, str]
    place: Place
    facts: Mapping[str, Any]
    unused: tuple[Path, ...] = ()
    copies: tuple[tuple[TensorInfo, TensorInfo], ...] = ()

    @property
    def files(self) -> list[Path]:
        return sorted({info.file for info in self.tensors.values()})

    @property
    def nbytes(self) -> int:
        return sum(info.nbytes for info in self.tensors.values())

    @property
    def layers(self) -> int:
        """The number of the head's layers, each with a projection; a head whose layer has no number has one."""
        names = self.names.values()
        counts = (len({match[1] for match in map(kind.match, names) if match}) for kind in (_BEGINNING, _NUMBER))
        return next((count for count in counts if count), 1)

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

    A side-car is the whole head: it is never mixed with tensors in the shards. Of tensors that are there twice, under
    two prefixes or in two files, one is taken if they are the same.

    Raises:
        HeadError: there are two heads, or the tensors are another kind of draft model's.
    """
    place, found = _find(config, tensors)
    names, copies = _one_of_each(found, tensors, place)
    if not names:
        return None
    if spark := sorted(name for name in names.values() if any(mark in name for mark in _DSPARK)):
        raise HeadError(f"the mtp.* tensors are DSpark stages ({spark[0]}), not an MTP head")
    unused = _unused(config, tensors, names) if place == "side-car" else ()
    return HeadFiles({name: tensors[name] for name in names}, names, place, _facts(config, place), unused, copies)


def check_copies(files: HeadFiles) -> None:
    """Check that tensors of a local head that are there twice are the same.

    Raises:
        HeadError: names two that differ.
    """
    for one, other in files.copies:
        if not same_bytes(one, other):
            where = f"{one.file} and {other.file}" if one.file != other.file else f"{one.file}, under two prefixes"
            name = next(name for name, info in files.tensors.items() if info is one)
            raise HeadError(f"there are two heads, and their {files.names[name]} differs ({where}); remove one of them")


def trunk_type(model_type: str) -> str | None:
    """Return the model type of a drafter's trunk; None if `model_type` is not a drafter's."""
    stems = [model_type.removesuffix(end) for end in DRAFTERS if model_type.endswith(end)]
    return stems[0] if stems else None


def is_head_name(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether a tensor in a model's shards is a head's: `mtp.*`, `mtp_*`, or past the trunk's layers."""
    return _head_name(name, config) is not None


def looks_like_head(name: str, config: Mapping[str, Any]) -> bool:
    """Return whether `is_head_name`, or another name with a part `mtp` or `mtp_*`."""
    return is_head_name(name, config) or any(part.startswith("mtp_") or part == "mtp" for part in name.split("."))


def _head_name(name: str, config: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return prefix and short name of a head's tensor, or None.

    The head is `mtp.*`, `mtp_*`, or layers N, N + 1, ... of a trunk of N layers (`nextn`).
    """
    name = unwrapped(name)
    if match := _NAME.fullmatch(name):
        return match[1], match[2]
    layers = text_config(config).get("num_hidden_layers")
    match = _LAYER.fullmatch(name)
    if match is None or not isinstance(layers, int) or int(match[2]) < layers:
        return None
    return match[1], f"layers.{int(match[2]) - layers}.{match[3]}"


def _find(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo]) -> tuple[Place, dict[str, tuple[str, str]]]:
    """Return the place of the head, and prefix and short name of each of its tensors."""
    if trunk_type(config["model_type"]):
        names = ((name, unwrapped(name)) for name in tensors)
        return "drafter", {name: (m[1], m[2]) if (m := _NAME.fullmatch(own)) else ("", own) for name, own in names}
    if sidecars := sidecar_tensors(tensors):
        first = min(sidecars.values())
        own = (name for name, rank in sidecars.items() if rank == first)
        return "side-car", {name: _head_name(name, config) or ("", unwrapped(name)) for name in own}
    return "shards", {name: found for name in tensors if (found := _head_name(name, config))}


def _one_of_each(
    found: Mapping[str, tuple[str, str]], tensors: Mapping[str, TensorInfo], place: Place
) -> tuple[dict[str, str], tuple[tuple[TensorInfo, TensorInfo], ...]]:
    """Return the short name of each tensor of a head, one tensor for each, and the pairs of a tensor and its copy.

    Raises:
        HeadError: the tensors belong to heads of two kinds.
    """
    counts = Counter(prefix for prefix, _ in found.values())
    hidden = tensors.hidden if isinstance(tensors, Tensors) and place != "side-car" else {}
    taken: dict[str, str] = {}
    copies = []
    for name in sorted(found, key=lambda name: (-counts[found[name][0]], found[name][0])):
        first = taken.setdefault(found[name][1], name)
        others = [*hidden.get(name, ()), *([tensors[name]] if first != name else [])]
        copies += [(tensors[first], other) for other in others]
    kinds = {found[name][0].rpartition("mtp")[2]: name for name in taken.values()}
    if place == "shards" and len(kinds) > 1:
        raise HeadError(f"the files hold more than one head ({min(kinds.values())}, {max(kinds.values())})")
    return {name: short for short, name in taken.items()}, tuple(copies)


def _unused(config: Mapping[str, Any], tensors: Mapping[str, TensorInfo], used: Iterable[str]) -> tuple[Path, ...]:
    """Return the files of heads that a side-car replaces."""
    hidden = tensors.hidden if isinstance(tensors, Tensors) else {}
    heads = sidecar_tensors(tensors).keys() | {name for name in tensors if is_head_name(name, config)}
    files = {tensors[name].file for name in heads}
    files |= {info.file for name, infos in hidden.items() if is_head_name(name, config) for info in infos}
    return tuple(sorted(files - {tensors[name].file for name in used}))


def _facts(config: Mapping[str, Any], place: Place) -> dict[str, Any]:
    quantization = config.get("quantization")
    if place == "drafter":
        return {"norms": "shifted", "quantization": quantization, "config": dict(config)}
    if place == "side-car" and isinstance(stated := config.get(HEAD_FACTS), dict):
        return dict(stated)
    return {"quantization": quantization} if quantization else {}
