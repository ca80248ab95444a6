"""Ranks that mpirun starts, all at once, from the same command: they have no pipes to each other."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from mlxmtp.errors import MlxmtpError
from mlxmtp.machine import versions
from mlxmtp.ranks.hosts import Hosts
from mlxmtp.ranks.join import connect
from mlxmtp.ranks.ranks import OutOfStepError, Ranks

_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMIX_RANK", "PMI_RANK")
"""One of them is set in a process that mpirun has started: Open MPI's, PMIx's, MPICH's."""
_ERROR_BYTES = 512
"""Bytes of a rank's error that the others get."""


def started_by_mpi() -> bool:
    """Return whether mpirun has started this process."""
    return any(name in os.environ for name in _RANK_VARIABLES)


def mpi_launcher(hosts: Hosts) -> list[str]:
    """Return the beginning of a command that runs the rest of it once for each rank, by MLX's own launcher."""
    return [str(Path(sys.executable).with_name("mlx.launch")), "--backend", "mpi", "--hostfile", hosts.file, "--"]


class CollectiveRanks(Ranks):
    """Ranks whose decisions travel through MLX's own group, behind the passes that are being computed."""

    def agree(self, value: Any = None) -> Any:
        text = json.dumps([self._checksum, value]).encode() if self.leads else b""
        checksum, value = json.loads(self._sum(text, self._size(text)))
        if checksum != self._checksum:
            raise OutOfStepError("its tokens differ from those of rank 0, so this turn has no right end")
        return value

    def _first_error(self, own: str | None) -> str | None:
        errors = []
        for rank in range(self.size):
            text = (own or "").encode()[:_ERROR_BYTES] if rank == self.rank else b""
            errors.append(self._sum(text, self._size(text)).decode(errors="replace"))
        return next((f"rank {rank}: {text}" if rank else text for rank, text in enumerate(errors) if text), None)

    def _size(self, text: bytes) -> int:
        import mlx.core as mx

        found: Any = mx.distributed.all_sum(mx.array(len(text)), group=self.group, stream=mx.cpu).item()
        return int(found)

    def _sum(self, text: bytes, size: int) -> bytes:
        """Return the bytes of the one rank that has some."""
        import mlx.core as mx

        if not size:
            return b""
        own = mx.array(list(text), mx.uint8) if text else mx.zeros((size,), mx.uint8)
        return bytes(mx.distributed.all_sum(own, group=self.group, stream=mx.cpu).tolist())  # type: ignore[arg-type]


def join_mpi(hosts: Hosts) -> CollectiveRanks:
    """Join the ranks that mpirun has started.

    Raises:
        MlxmtpError: they cannot be connected, or have other versions than rank 0.
    """
    variables, files = hosts.environment()
    group = connect(None, hosts.backend, variables, files)
    ranks = CollectiveRanks(group.rank(), group.size(), f"{group.size()} ranks (mpi)", group)

    def check() -> None:
        if (own := shared_versions(versions())) != expected:
            raise MlxmtpError(f"it has {own}; expected {expected}, as rank 0 has: install the same versions")

    expected = ranks.agree(shared_versions(versions()))
    ranks.together(check)
    return ranks


def shared_versions(found: dict[str, str]) -> dict[str, str]:
    """Return the versions on which the computation depends."""
    return {name: version for name, version in found.items() if name != "python"}
