"""Downloading a repo, after looking whether it fits."""

from dataclasses import dataclass
from pathlib import Path

from mlxmtp import machine
from mlxmtp.checkpoints import open_checkpoint
from mlxmtp.checkpoints.hub import (
    REPO,
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
from mlxmtp.units import size


@dataclass(frozen=True)
class Plan:
    """A download: bytes of the whole, of the weights, and of what is not in the cache yet.

    `revision` is what was asked for, `commit` what it is now; `damaged` are files that the cache
    holds in another size, and their bytes.
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
        """What is wrong if the weights do not fit this machine's memory."""
        if self.weight_bytes <= machine.usable_memory():
            return None
        memory = size(machine.memory_bytes())
        return f"{size(self.weight_bytes)} of weights will not run in this machine's {memory} of memory"


def plan_pull(repo: str, revision: str | None = None) -> Plan:
    """Ask the Hub for sizes, and check the disk.

    Raises:
        CheckpointError: no such repo, no model in it, or not enough room for what is missing.
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
    return Plan(repo, revision, remote.commit, sum(files.values()), weights, missing, damaged)


def pull(plan: Plan, on_bytes: OnBytes | None = None) -> Path:
    """Download what is missing to the Hub cache; the snapshot's folder.

    Args:
        on_bytes: told how many bytes of how many have come; None: the client shows progress bars of its own.

    Raises:
        CheckpointError: the download failed; run again, it keeps the files that are whole.
    """
    most = behind = 0

    def count(done: int) -> None:
        nonlocal most
        most = max(most, min(behind + done, plan.missing_bytes))
        if on_bytes:
            on_bytes(most, plan.missing_bytes)

    told = count if on_bytes else None
    for file, nbytes in plan.damaged.items():
        download_again(plan.repo, plan.commit, file, told)
        behind += nbytes
    # by the name asked for: the cache keeps what `main` is, for offline use
    return download(plan.repo, plan.revision, told)


def has_head(snapshot: Path) -> bool:
    """Whether a model's head is on this machine: among its files, attached, or a model of its own."""
    try:
        return resolve_head(open_checkpoint(snapshot)).files is not None
    except CheckpointError:
        return False


def head_to_pull(snapshot: Path) -> str | None:
    """The repo of a model's head, where that is a model of its own, found by name."""
    try:
        return resolve_head(open_checkpoint(snapshot)).repo
    except CheckpointError:
        return None
