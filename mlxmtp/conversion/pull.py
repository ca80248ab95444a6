"""Download a repo to the Hub cache, after a check of disk and memory."""

from dataclasses import dataclass
from pathlib import Path

from mlxmtp import machine
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.hub import (
    cached_sizes,
    download,
    download_again,
    hub_cache,
    wanted_files,
)
from mlxmtp.checkpoints.remote import RemoteRepo
from mlxmtp.checkpoints.tensors import EXPECTED, contents
from mlxmtp.conversion.sources import OnBytes
from mlxmtp.errors import CheckpointError
from mlxmtp.files import check_space
from mlxmtp.heads import resolve_head
from mlxmtp.names import REPO
from mlxmtp.units import size


@dataclass(frozen=True)
class DownloadPlan:
    """What a download consists of.

    Args:
        repo: owner/name.
        revision: the branch, tag or commit that was requested; None: the repo's default.
        commit: the commit that it is now.
        nbytes: bytes of all files.
        weight_bytes: bytes of the weights.
        missing_bytes: bytes that the cache does not have.
        damaged: bytes of each file that the cache has in another size.
    """

    repo: str
    revision: str | None
    commit: str
    nbytes: int
    weight_bytes: int
    missing_bytes: int
    damaged: dict[str, int]

    @property
    def memory_warning(self) -> str | None:
        """The warning if the weights do not fit this machine's memory, or None."""
        if self.weight_bytes <= machine.usable_memory():
            return None
        memory = size(machine.memory_bytes())
        return f"{size(self.weight_bytes)} of weights will not run in this machine's {memory} of memory"


def plan_pull(repo: str, revision: str | None = None) -> DownloadPlan:
    """Request the sizes of a repo's files, and check the disk.

    Raises:
        CheckpointError: there is no such repo, no model in it, or not enough room on the disk.
    """
    if not REPO.fullmatch(repo):
        raise CheckpointError(f"{repo}: expected a Hub repo (owner/name); a folder needs no download")
    remote = RemoteRepo.open(repo, revision)
    files = {name: remote.sizes[name] for name in wanted_files(remote.sizes)}
    weights = sum(nbytes for name, nbytes in files.items() if name.endswith(".safetensors"))
    if "config.json" not in files or not weights:
        raise CheckpointError(f"{repo}: no model in the repo; {contents(remote.sizes)}; {EXPECTED}")
    here = cached_sizes(repo, remote.commit, files)
    missing = sum(nbytes for name, nbytes in files.items() if here.get(name) != nbytes)
    if missing:
        check_space(hub_cache(), missing)
    damaged = {name: files[name] for name, nbytes in here.items() if nbytes != files[name]}
    return DownloadPlan(repo, revision, remote.commit, sum(files.values()), weights, missing, damaged)


def pull(plan: DownloadPlan, on_bytes: OnBytes | None = None) -> Path:
    """Download what is missing to the Hub cache; return the snapshot's folder.

    Args:
        on_bytes: called with (bytes done, bytes in total); None: the client shows progress bars.

    Raises:
        CheckpointError: the download failed; complete files are kept for the next run.
    """
    done = repaired = 0

    def count(received: int) -> None:
        nonlocal done
        done = max(done, min(repaired + received, plan.missing_bytes))
        if on_bytes:
            on_bytes(done, plan.missing_bytes)

    on_received = count if on_bytes else None
    for file, nbytes in plan.damaged.items():
        download_again(plan.repo, plan.commit, file, on_received)
        repaired += nbytes
    # by the requested revision: the cache then records which commit it is, for offline use
    return download(plan.repo, plan.revision, on_received)


def has_head(snapshot: Path) -> bool:
    """Return whether a model's head is on this machine: in its files, attached, or in its own repo."""
    try:
        return resolve_head(open_checkpoint(snapshot)).files is not None
    except CheckpointError:
        return False


def head_to_pull(snapshot: Path) -> str | None:
    """Return the repo of a model's head, if the head is its own model; or None."""
    try:
        return resolve_head(open_checkpoint(snapshot)).repo
    except CheckpointError:
        return None
