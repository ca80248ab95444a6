"""Rank 0: starts the other ranks, decides for them, and ends with the first of them that ends."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

from mlxmtp.errors import MlxmtpError
from mlxmtp.machine import versions
from mlxmtp.ranks.hosts import LOOPBACK, Hosts
from mlxmtp.ranks.join import connect
from mlxmtp.ranks.mpi import join_mpi, shared_versions
from mlxmtp.ranks.ranks import Ranks

PROGRAM = (sys.executable, "-P", "-m", "mlxmtp.engine.follow")
"""A further rank. On other machines Python and this package have the same place, as `mlx.launch` expects it."""
SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ServerAliveInterval=5", "-o", "ServerAliveCountMax=3", "--")
"""Asks for no password, and ends within 15 s of the last sign of life."""
LAST_WORDS_S = 0.5
"""Seconds for the last lines of a rank that has ended."""
GRACE_S = 5.0
"""Seconds that the other ranks have to end once rank 0 has no more to say."""


class Leader(Ranks):
    """Rank 0. The other ranks are its children; one that ends takes this process with it, which says why."""

    def __init__(self, hosts: Hosts, others: list[OtherRank], group: Any) -> None:
        super().__init__(0, hosts.size, hosts.description, group)
        self._others = others

    def agree(self, value: Any = None) -> Any:
        for other in self._others:
            other.send([self._checksum, value])
        return value

    def end(self, error: Exception) -> NoReturn:
        for other in self._others:
            other.wait_for_end(2 * LAST_WORDS_S)  # one that is gone explains the error better
        super().end(error)

    def _first_error(self, own: str | None) -> str | None:
        found = [own, *(other.receive() for other in self._others)]
        named = (text if rank == 0 else f"rank {rank}: {text}" for rank, text in enumerate(found) if text)
        first: str | None = self.agree(next(named, None))
        return first


@contextmanager
def lead(hosts: Hosts) -> Iterator[Ranks]:
    """Start the other ranks and connect them; end them with the block. Of MPI, join what mpirun has started.

    Raises:
        MlxmtpError: a rank has other versions, or they cannot be connected.
    """
    if hosts.backend == "mpi":
        ranks = join_mpi(hosts)
        try:
            yield ranks
        finally:
            if ranks.leads:
                ranks.agree(["end"])
        return
    variables, files = hosts.environment()
    others = [OtherRank(hosts, rank) for rank in range(1, hosts.size)]
    try:
        for other in others:
            setup = {"rank": other.rank, "size": hosts.size, "backend": hosts.backend}
            other.send(setup | {"variables": variables, "files": files, "description": hosts.description})
        own = shared_versions(versions())
        for other in others:
            if (found := shared_versions(other.receive())) != own:
                raise MlxmtpError(f"{other.name} has {found}; expected {own}, as rank 0 has: install the same versions")
        yield Leader(hosts, others, connect(0, hosts.backend, variables, files))
    finally:
        for other in others:
            other.close()


class OtherRank:
    """The process of another rank, on this machine or through ssh. It ends when its standard input ends."""

    def __init__(self, hosts: Hosts, rank: int) -> None:
        host = hosts.addresses[rank].ssh
        self.rank = rank
        self.name = f"rank {rank}" if host == LOOPBACK else f"rank {rank} on {host}"
        pipe = subprocess.PIPE
        command = PROGRAM if host == LOOPBACK else (*SSH, host, _remote_command())
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
        self._closing = False
        self._last = ""
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()

    def send(self, value: Any) -> None:
        """Write a value. This process ends if the rank is gone."""
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(value).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            self._end_with_it()

    def receive(self) -> Any:
        """Wait for a value. This process ends if the rank is gone."""
        assert self._process.stdout
        line = self._process.stdout.readline()
        return json.loads(line) if line else self._end_with_it()

    def close(self) -> None:
        """End the rank."""
        self._closing = True
        assert self._process.stdin
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()

    def _watch(self) -> None:
        """When the rank ends too early, end this process with the last line of its standard error."""
        reader = threading.Thread(target=self._read_stderr, daemon=True)
        reader.start()
        code = self._process.wait()
        reader.join(LAST_WORDS_S)  # a child of the rank can hold the pipe open
        if not self._closing:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            why = f": {self._last}" if self._last else ""
            print(f"mlxmtp: {self.name} ended ({how}{why})", file=sys.stderr, flush=True)  # noqa: T201
            os._exit(1)  # the main thread may wait in MLX for the rank that is gone

    def _read_stderr(self) -> None:
        """Pass on what the rank says."""
        assert self._process.stderr
        for line in self._process.stderr:
            if text := line.decode(errors="replace").strip():
                self._last = text
                print(f"{self.name}: {text}", file=sys.stderr, flush=True)  # noqa: T201 - as the rank itself would

    def wait_for_end(self, seconds: float) -> None:
        """Wait for the end of the rank, which ends this process."""
        self._watcher.join(seconds)

    def _end_with_it(self) -> NoReturn:
        self._watcher.join()
        raise SystemExit(1)


def _remote_command() -> str:
    """Return the shell's text for a further rank, in the folder of this process, if the machine has it."""
    folder = shlex.quote(os.getcwd())
    return f"if [ -d {folder} ]; then cd {folder}; fi; exec {shlex.join(PROGRAM)}"
