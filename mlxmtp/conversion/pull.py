"""Downloading a repo, after looking whether it fits."""

import os
from dataclasses import dataclass
from pathlib import Path

from mlxmtp.checkpoints.hub import RemoteRepo, cached_bytes, download, hub_cache, wanted_files
from mlxmtp.conversion.staging import check_space
from mlxmtp.errors import CheckpointError
from mlxmtp.units import size

USABLE = 0.75
"""The share of a machine's memory that a model's weights can take: macOS lets the GPU wire about this much."""


@dataclass(frozen=True)
class Plan:
    """A download: bytes of the whole, of the weights, and of what is not in the cache yet."""

    repo: str
    commit: str
    nbytes: int
    weight_bytes: int
    missing_bytes: int

    @property
    def memory_warning(self) -> str | None:
        """What is wrong if the weights do not fit this machine's memory."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if self.weight_bytes <= USABLE * memory:
            return None
        return f"{size(self.weight_bytes)} of weights will not run in this machine's {size(memory)} of memory"


def plan_pull(repo: str, revision: str | None = None) -> Plan:
    """Ask the Hub for sizes, and check the disk.

    Raises:
        CheckpointError: no such repo, no model in it, or not enough room for what is missing.
    """
    remote = RemoteRepo.open(repo, revision)
    files = wanted_files(remote.sizes)
    weights = sum(remote.sizes[name] for name in files if name.endswith(".safetensors"))
    if "config.json" not in files or not weights:
        raise CheckpointError(f"{repo}: no config.json and .safetensors files; expected a model in MLX or HF layout")
    total = sum(remote.sizes[name] for name in files)
    plan = Plan(repo, remote.commit, total, weights, total - cached_bytes(repo, remote.commit, files))
    if plan.missing_bytes:
        check_space(hub_cache(), plan.missing_bytes)
    return plan


def pull(plan: Plan) -> Path:
    """Download what is missing to the Hub cache, with the client's own progress bars; the snapshot's folder.

    Raises:
        CheckpointError: the download failed; run again, it keeps the files that are whole.
    """
    return download(plan.repo, plan.commit)
