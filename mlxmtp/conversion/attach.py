"""Attach a head to a model that was converted without it, from the original of the conversion."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints import HEAD_FACTS, SIDECAR, Checkpoint, find_head, open_checkpoint, text_config
from mlxmtp.checkpoints.attached import attached_folder
from mlxmtp.checkpoints.head_files import trunk_type
from mlxmtp.checkpoints.names import unwrapped
from mlxmtp.checkpoints.writer import silent, write_safetensors
from mlxmtp.conversion.convert import DEFAULT_HEAD_BITS
from mlxmtp.conversion.copies import check_own
from mlxmtp.conversion.originals import open_source
from mlxmtp.conversion.sidecar import Sidecar, make_sidecar
from mlxmtp.conversion.sources import SAMPLE, OnBytes, Source, load_tensor
from mlxmtp.errors import CheckpointError, HeadError
from mlxmtp.files import (
    check_absent,
    check_outside,
    check_space,
    explain_full_disk,
    locked,
    staged_file,
    staged_folder,
)
from mlxmtp.heads import build_head, family_of, trunk_is_raw
from mlxmtp.heads.qwen import NORM_OFFSET
from mlxmtp.targets import check_architecture, load_target

SAME_SIZES = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
              "head_dim", "num_experts", "n_routed_experts")  # fmt: skip
"""Keys of the config in which trunk and original must agree. A fine-tune may have a larger vocabulary."""


@dataclass(frozen=True)
class Attached:
    """The result of `attach`.

    Args:
        model: the model's folder.
        file: where the head was written.
        nbytes: the head's size.
        quantization: by layer, in mlx-lm's form; None: not quantised.
    """

    model: Path
    file: Path
    nbytes: int
    quantization: dict[str, Any] | None


def attach(
    trunk: str | Path,
    original: str,
    *,
    head_bits: int | None = None,
    out: Path | None = None,
    revision: str | None = None,
    on_bytes: OnBytes = silent,
) -> Attached:
    """Write the head of `original` next to `trunk`; of a repo on the Hub, only the head's tensors are downloaded.

    The head of a model in the Hub cache is written to mlxmtp's data folder, under its repo and commit.

    Args:
        trunk: a folder or a Hub repo.
        original: a folder, a GGUF file or a Hub repo with the head, or a repo and a GGUF file in it.
        head_bits: 4, 8 or 16; None: 8 for a quantised trunk, else as it is stored.
        out: a new folder for the trunk with the head; files are linked if the disk allows. The trunk is unchanged.
        revision: of `original`.
        on_bytes: called with (bytes downloaded, bytes in total).

    Raises:
        CheckpointError: either cannot be opened, the destination exists, or the disk is full.
        HeadError: `original` has no head, or it does not belong to this trunk.
    """
    if out is not None:
        check_absent(out)
    checkpoint = open_checkpoint(trunk)
    check_architecture(checkpoint)
    if out is not None:
        check_outside(out, checkpoint.folder)
    if present := find_head(checkpoint.config, checkpoint.tensors):
        own = "among its own weights; it needs no other"
        stored = f"in {present.files[0]}; remove that file to attach another"
        raise CheckpointError(f"{trunk} has a head already, {own if present.place == 'shards' else stored}")
    source = open_source(original, revision, checkpoint.model_type)
    check_sizes(checkpoint, source)
    check_sample(checkpoint, source)
    target = load_target(checkpoint, lazy=True)
    with source.local_head(on_bytes) as files:
        head = build_head(files, target, trunk_is_raw=trunk_is_raw(source.tensors), lazy=True)
        whole = "quantization" in target.config and not _is_quantised(files)
        bits = head_bits or (DEFAULT_HEAD_BITS if whole else None)
        sidecar = make_sidecar(head, target, bits, source.name, source.revision, files.facts.get("config"))
        nbytes = sidecar.nbytes
        file = _store(checkpoint, sidecar, out)
    return Attached(out or checkpoint.folder, file, nbytes, sidecar.quantization)


def check_sizes(checkpoint: Checkpoint, source: Source) -> None:
    """Refuse a head of a model of another type or size.

    Raises:
        HeadError: names the first difference.
    """
    theirs = text_config(source.config)
    kind: str | None = source.config["model_type"].removesuffix("_text")
    if trunk_type(source.config["model_type"]):
        kind = None  # mlx-vlm gives every drafter the type qwen3_5_mtp
    if backbone := source.config.get("backbone_hidden_size"):  # an assistant's own sizes differ from its trunk's
        theirs = {"hidden_size": backbone, "vocab_size": theirs.get("vocab_size")}
    differences: list[tuple[str, Any, Any]] = [("model_type", checkpoint.model_type.removesuffix("_text"), kind)]
    differences += [(name, checkpoint.text_config.get(name), theirs.get(name)) for name in SAME_SIZES]
    for name, ours, found in differences:
        if found is not None and ours is not None and ours != found:
            raise HeadError(
                f"{source.name} has {name} {found}, {checkpoint.name} {ours}: not the same model; "
                "name the one that the trunk was made from with --from"
            )


def check_sample(checkpoint: Checkpoint, source: Source) -> None:
    """Compare the trunk's first and last norms with those of the original (a drafter has none).

    Raises:
        HeadError: they differ by more than the rounding of a conversion.
    """
    ours, theirs = _sample(checkpoint.tensors), _sample(source.tensors.keys() - source.head.names.keys())
    family = family_of(checkpoint.model_type)
    offsets = (0.0, NORM_OFFSET, -NORM_OFFSET) if family and family.norms_are_raw else (0.0,)
    for end in ours.keys() & theirs.keys():
        one = load_tensor(ours[end], checkpoint.tensors).astype(mx.float32)
        other = source.read(theirs[end]).astype(mx.float32)
        if one.shape != other.shape or not any(_equal(one + offset, other) for offset in offsets):
            raise HeadError(
                f"{theirs[end]} of {source.name} is not {ours[end]} of {checkpoint.name}: "
                "the trunk was made from another model; name that one with --from"
            )


def _sample(tensors: Any) -> dict[str, str]:
    """Return the norms of `SAMPLE`: a name that both layouts share, and the name in this layout."""
    own = {name: unwrapped(name) for name in tensors if "mtp." not in name}
    norms = [name for name, n in own.items() if n.endswith(SAMPLE) and n.endswith("norm.weight")]
    layers = {name: own[name].partition(".layers.0.")[2] for name in norms}
    return {f"layers.0.{rest}" if rest else "norm": name for name, rest in layers.items()}


def _equal(one: mx.array, other: mx.array) -> bool:
    """Return whether norms are equal but for the rounding of a conversion."""
    return float(mx.max(mx.abs(one - other) - 0.02 * mx.abs(other))) <= 0.02


def _is_quantised(files: Any) -> bool:
    return any(name.endswith(".scales") for name in files.names)


def _store(checkpoint: Checkpoint, sidecar: Sidecar, out: Path | None) -> Path:
    """Write the side-car and its description to the right folder; return the side-car's file."""
    if out is not None:
        own = check_own(checkpoint, (file for file in checkpoint.folder.rglob("*") if file.is_file()))
        check_space(out, sidecar.nbytes)
        with staged_folder(out) as stage:
            for file in own:
                _link(file, stage / file.relative_to(checkpoint.folder))
            _write(stage, checkpoint.config, sidecar)
        return out / SIDECAR
    if checkpoint.repo and checkpoint.revision:
        folder = attached_folder(checkpoint.repo, checkpoint.revision)
        check_space(folder, sidecar.nbytes)
        if not (folder / SIDECAR).is_file():
            shutil.rmtree(folder, ignore_errors=True)  # the user removed its head
        with staged_folder(folder) as stage:
            _write(stage, {"model_type": checkpoint.model_type}, sidecar)
        return folder / SIDECAR
    file = checkpoint.folder / SIDECAR
    check_space(file, sidecar.nbytes)
    with locked(checkpoint.folder, file):
        check_absent(file)  # another process may have written it since
        _write(checkpoint.folder, checkpoint.config, sidecar)
    return file


def _write(folder: Path, config: dict[str, Any], sidecar: Sidecar) -> None:
    """Write both files; the description takes its name first, for without a side-car it has no effect."""
    file = folder / SIDECAR
    with explain_full_disk(file), staged_file(file) as head:
        write_safetensors(head, sidecar.weights, silent)
        with staged_file(folder / "config.json") as facts:
            facts.write_text(json.dumps(config | {HEAD_FACTS: sidecar.facts}, indent=4) + "\n")


def _link(file: Path, dest: Path) -> None:
    dest.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(file.resolve(), dest)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(file, dest)
