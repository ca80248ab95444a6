"""Find a checkpoint's head by its tensors, and load it into its family's module."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Any

import mlx.core as mx

from mlxmtp.checkpoints import Checkpoint, HeadFiles, Norms, TensorInfo, dequantise_fp8, find_head, open_checkpoint
from mlxmtp.checkpoints.head_files import MLX_VLM, check_copies, looks_like_head, trunk_type
from mlxmtp.checkpoints.hub import cached
from mlxmtp.errors import CheckpointError, HeadError, is_out_of_memory
from mlxmtp.heads.families import family_of
from mlxmtp.heads.family import Family
from mlxmtp.heads.head import Head
from mlxmtp.heads.weights import load_weights
from mlxmtp.targets import Target, materialise

DECLARED = ("mtp_num_hidden_layers", "num_nextn_predict_layers", "num_mtp_modules")
"""Keys by which configs declare a head."""
UNRELEASED = ("minimax_m2", "minimax_m3_vl")
"""Model types whose makers have not released the heads that the configs declare."""
_MISFITS = (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RuntimeError)


class NoHeadError(HeadError):
    """There is no head to use; the message says why decoding is plain."""


@dataclass(frozen=True)
class HeadSource:
    """Where a head is.

    Args:
        files: its tensors; None: the repo is not downloaded yet.
        trunk_is_raw: `trunk_is_raw` of the tensors next to it.
        repo: the repo or folder of a head apart from its trunk; None: it is in the trunk's folder.
        revision: the commit of that repo.
        by_name: the repo was derived from the trunk's name.
    """

    files: HeadFiles | None
    trunk_is_raw: bool | None = None
    repo: str | None = None
    revision: str | None = None
    by_name: bool = False


def load_head(checkpoint: Checkpoint, target: Target, source: HeadSource | None = None, *, lazy: bool = False) -> Head:
    """Load the MTP head of a checkpoint; it shares the target's matrices.

    Args:
        source: the result of `resolve_head`; None: call it now.
        lazy: read each weight when it is first used; otherwise read all of them now.

    Raises:
        NoHeadError: there are no head tensors, or no family for this model type.
        HeadError: the head tensors are not a head that can be run.
    """
    source = source or resolve_head(checkpoint)
    if not target.reversible:
        raise NoHeadError(f"rejected drafts of this model cannot be taken back ({target.irreversible})")
    source = download_head(source)
    assert source.files is not None
    head: Head = build_head(source.files, target, trunk_is_raw=source.trunk_is_raw, lazy=lazy)
    target.hidden_at = head.hidden_at
    return head


def resolve_head(checkpoint: Checkpoint, head: str | Path | None = None) -> HeadSource:
    """Locate the head of a checkpoint by names and headers, without reading weights.

    Args:
        head: a folder or a Hub repo with the head; None: the checkpoint itself, or a repo derived from its name.

    Raises:
        NoHeadError, HeadError: as `load_head`.
        CheckpointError: `head` cannot be opened.
    """
    family = family_of(checkpoint.model_type)
    if family is None:
        raise NoHeadError(_unsupported(checkpoint))
    if head is not None:
        source = _separate_head(str(head), family)
    else:
        files = find_head(checkpoint.config, checkpoint.tensors)
        source = HeadSource(files, trunk_is_raw(checkpoint.tensors)) if files else _head_by_name(family, checkpoint)
    if source.files and family.layers is not None and source.files.layers > family.layers:
        raise HeadError(f"the head has {source.files.layers} MTP layers; one is supported")
    if source.files and (source.repo or checkpoint.folder.is_dir()):  # else the files are on the Hub
        check_copies(source.files)
    return source


def _separate_head(head: str, family: Family | None = None) -> HeadSource:
    """Return a head in a folder or repo of its own, or in another trunk's; check its family, if one is given."""
    if not head:
        raise HeadError("the head's name is empty; expected a folder or a Hub repo (owner/name)")
    drafter = open_checkpoint(head)
    files = find_head(drafter.config, drafter.tensors)
    if files is None:
        expected = "an assistant" if family and family.repo else "a model with a head, or a drafter"
        raise HeadError(f"{head} has no MTP head (no mtp.* tensors); expected {expected}")
    theirs = family_of(trunk_type(drafter.model_type) or drafter.model_type)
    named = not drafter.model_type.endswith(MLX_VLM)  # mlx-vlm gives every drafter the type qwen3_5_mtp
    if family and theirs and theirs is not family and named:
        raise HeadError(f"{head} has a head of the family {theirs.name}; this model takes one of {family.name}")
    return HeadSource(files, trunk_is_raw(drafter.tensors), head, drafter.revision)


def _head_by_name(family: Family, checkpoint: Checkpoint) -> HeadSource:
    """Return the head in the repo that belongs to the trunk's name, in the Hub cache or to be downloaded.

    Raises:
        NoHeadError: no repo belongs to the name, or the model is a folder and the repo is not in the cache.
    """
    if family.repo is None:
        raise NoHeadError(_absent(checkpoint, family))
    names = (checkpoint.repo, checkpoint.base, checkpoint.folder.name)
    repo = family.repo(name for name in names if name)
    if repo is None:
        keep = f"`mlxmtp attach {quote(checkpoint.name)} --from PATH|REPO` keeps it"
        raise NoHeadError(f"its head, a {family.name}, is a model of its own; --head PATH|REPO lends it, {keep}")
    if snapshot := cached(repo):
        with suppress(CheckpointError):  # incomplete
            return replace(_separate_head(str(snapshot)), repo=repo, by_name=True)
    if checkpoint.repo is None:
        raise NoHeadError(f"its head is a model of its own; --head {repo} fetches and uses it")
    return HeadSource(None, repo=repo, by_name=True)


def download_head(source: HeadSource) -> HeadSource:
    """Download a head's repo if need be; return the source with its files.

    Raises:
        NoHeadError: the repo cannot be downloaded.
    """
    if source.files or not source.repo:
        return source
    try:
        return replace(_separate_head(source.repo), by_name=source.by_name)
    except CheckpointError as error:
        raise NoHeadError(f"its head is a model of its own, and {error}") from error


def build_head(files: HeadFiles, target: Target, *, trunk_is_raw: bool | None, lazy: bool = False) -> Any:
    """Build a head from its files for a target, which may come from another checkpoint.

    Args:
        trunk_is_raw: `trunk_is_raw` of the tensors next to the head.
        lazy: read each weight when it is first used.

    Raises:
        NoHeadError: no family for this model type. HeadError: the tensors do not fit.
    """
    family = family_of(target.model_type)
    if family is None:
        raise NoHeadError(_no_family(target.model_type))
    try:
        weights = dequantise_fp8(_read(files))
        facts = {"stated": files.norms, "config": files.facts.get("config")}
        head, weights = family.build(weights, target, trunk_is_raw=trunk_is_raw, **facts)
        head.convention = family.conventions[0]
        load_weights(head, weights, target, files)
    except _MISFITS as error:
        if is_out_of_memory(error):
            raise
        raise HeadError(f"the head's tensors do not fit this model ({error})") from error
    if not lazy:
        materialise(head)
    head.prepare()
    return head


def norms_of(files: HeadFiles, checkpoint: Checkpoint) -> Norms | None:
    """Return the convention of a local head's norm weights, by their values; None: the family's have no offset."""
    family = family_of(checkpoint.model_type)
    if family is None or family.norms_are_raw is None:
        return None
    try:
        raw = family.norms_are_raw(_read(files), trunk_is_raw=trunk_is_raw(checkpoint.tensors), stated=files.norms)
    except _MISFITS as error:
        raise HeadError(f"the head's norms cannot be read ({error})") from error
    return "raw" if raw else "shifted"


def _no_family(model_type: str) -> str:
    return f"no MTP head family for model type {model_type!r} yet"


def _unsupported(checkpoint: Checkpoint) -> str:
    """Return the message for a model type without a family: whether the files hold, or the config declares, a head."""
    known = _no_family(checkpoint.model_type)
    try:
        find_head(checkpoint.config, checkpoint.tensors)
    except HeadError as error:
        return f"{known}; {error}"
    if tensors := sorted(name for name in checkpoint.tensors if looks_like_head(name, checkpoint.config)):
        return f"{known}; the files hold {len(tensors)} tensors of a head ({tensors[0]}, ...)"
    if declared := _declared(checkpoint):
        absent = f"{known}; the config declares a head ({declared}), but the files do not hold it"
        return f"{absent}: its makers have not released it" if checkpoint.model_type in UNRELEASED else absent
    return known


def _absent(checkpoint: Checkpoint, family: Family) -> str:
    if _declared(checkpoint):
        known = "the config declares one"
    elif checkpoint.model_type in family.silent:
        known = "the original has one"
    else:
        return "the files hold no MTP head (no mtp.* tensors)"
    fetch = f"mlxmtp attach {quote(checkpoint.name)} --from {checkpoint.base or 'ORIGINAL'}"
    return f"the files hold no MTP head (no mtp.* tensors), but {known}; `{fetch}` fetches it"


def _declared(checkpoint: Checkpoint) -> str | None:
    return next((key for key in DECLARED if checkpoint.text_config.get(key)), None)


def _read(files: HeadFiles) -> dict[str, mx.array]:
    """Return the head's tensors by their names inside the head, lazily, so that no other tensor is read."""
    out: dict[str, mx.array] = {}
    for file in files.files:
        arrays: dict[str, mx.array] = mx.load(str(file), format="safetensors")  # type: ignore[assignment]
        out |= {short: arrays[name] for name, short in files.names.items() if files.tensors[name].file == file}
    return out


def trunk_is_raw(tensors: Mapping[str, TensorInfo]) -> bool | None:
    """Return whether a trunk is in Hugging Face's layout, by its convolutions, as mlx-lm does; None: it has none."""
    convolutions = (info.shape for name, info in tensors.items() if name.endswith("conv1d.weight"))
    widths = {shape[-1] for shape in convolutions if shape}
    return any(width != 1 for width in widths) if widths else None
