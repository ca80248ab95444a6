"""Open the original that a head is taken from: a folder, a GGUF file, or a repo on the Hub."""

import os

from mlxmtp.checkpoints import Checkpoint, find_head, open_checkpoint
from mlxmtp.checkpoints.checkpoint import local_path, parse_config
from mlxmtp.checkpoints.gguf_files import (
    GgufModel,
    choose_gguf,
    gguf_files,
    only_gguf,
    open_hub_gguf,
    open_local_gguf,
    split_name,
)
from mlxmtp.checkpoints.head_files import check_copies, is_head_name, trunk_type
from mlxmtp.checkpoints.hub import cached
from mlxmtp.checkpoints.names import unwrapped
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.conversion.gguf_source import gguf_source
from mlxmtp.conversion.sources import SAMPLE, Source
from mlxmtp.errors import CheckpointError, HeadError


def open_source(original: str, revision: str | None = None, model_type: str = "") -> Source:
    """Locate a head without a download.

    Args:
        original: a folder, a GGUF file, a repo, or a repo and a GGUF file in it.
        model_type: of the trunk that it is for.

    Raises:
        CheckpointError: there is no such folder, file or repo. HeadError: it has no head.
    """
    if model := named_gguf(original, revision):
        return gguf_source(model, model_type)
    remote: RemoteRepo | None = None
    if checkpoint := _local(original, revision):
        name, revision = checkpoint.repo or checkpoint.folder.name, checkpoint.revision
        beside = os.listdir(checkpoint.folder)
        config, tensors = checkpoint.config, checkpoint.tensors
    else:
        remote = RemoteRepo.open(original, revision)
        if only_gguf(remote.sizes):
            return gguf_source(choose_gguf(remote, remote.repo, remote.commit), model_type)
        name, revision, beside = remote.repo, remote.commit, list(remote.sizes)
        config = parse_config(remote.small("config.json"), f"{remote.repo}/config.json")
        drafter = trunk_type(config["model_type"]) is not None
        tensors = remote.tensors(
            lambda tensor: drafter or is_head_name(tensor, config) or unwrapped(tensor).endswith(SAMPLE)
        )
    head = find_head(config, tensors)
    if head is None:
        others = gguf_files(beside)
        file = f", or one of its GGUF files, such as {original}/{others[0]}" if others else ""
        raise HeadError(f"{original} has no MTP head (no mtp.* tensors); name the model that it was made from{file}")
    if remote is None:
        check_copies(head)
    elif head.copies:
        twice = f"{original} holds its head twice, in {head.copies[0][0].file} and {head.copies[0][1].file}"
        raise HeadError(f"{twice}; `mlxmtp pull` it, so that they can be compared")
    return Source(name, revision, config, tensors, head, remote)


def named_gguf(name: str, revision: str | None = None) -> GgufModel | None:
    """Open a GGUF file by its path or by "owner/name/FILE.gguf", or a folder of such files; None: it is another."""
    if path := local_path(name):
        return open_local_gguf(path)
    if named := split_name(name):
        return open_hub_gguf(*named, revision)
    return None


def _local(path_or_repo: str, revision: str | None) -> Checkpoint | None:
    """Open a folder, or a repo that is complete in the Hub cache; None: neither."""
    if local_path(path_or_repo):
        return open_checkpoint(path_or_repo)
    snapshot = cached(path_or_repo, revision)
    try:
        return open_checkpoint(snapshot) if snapshot else None
    except CheckpointError:  # incomplete
        return None
