"""Where the ranks run: MLX's own hosts file (`mlx.distributed_config` writes one), or this machine alone."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import socket
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mlxmtp.errors import OptionError

BACKENDS = ("ring", "jaccl", "jaccl-ring", "mpi")
"""MLX's backends on Macs. Those before MPI find each other by addresses alone."""
FIRST_PORT = 32_323
"""Rank 0's port, as of `mlx.launch`; each further address has the next one."""
LOOPBACK = "127.0.0.1"
MAX_HOSTS_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.@:%-]*")
"""What ssh may be given as a host: no option, and nothing that a shell reads otherwise."""
_EXPECTED = 'MLX\'s hosts file: {"backend": "ring", "hosts": [{"ssh": "mac1", "ips": ["10.0.0.1"]}, ...]}'


@dataclass(frozen=True)
class RankAddress:
    """Where one rank runs.

    Args:
        ssh: the host's name for ssh.
        ips: its addresses.
        rdma: for each rank the device, or devices, that lead to it; None for the rank itself.
    """

    ssh: str
    ips: tuple[str, ...] = ()
    rdma: tuple[str | list[str] | None, ...] = ()


@dataclass(frozen=True)
class Hosts:
    """The ranks in order. Rank 0 runs on this machine, in the process that starts the others.

    Args:
        backend: one of `BACKENDS`.
        addresses: of each rank.
        envs: environment variables, NAME=VALUE, that every rank sets.
        file: where they were read; "": nowhere.
    """

    backend: str
    addresses: tuple[RankAddress, ...]
    envs: tuple[str, ...] = ()
    file: str = ""

    @property
    def size(self) -> int:
        """The number of ranks."""
        return len(self.addresses)

    @property
    def description(self) -> str:
        """As "2 ranks (ring)"."""
        return f"{self.size} ranks ({self.backend})"

    @property
    def local(self) -> bool:
        """Whether all ranks run on this machine."""
        return all(address.ssh == LOOPBACK for address in self.addresses)

    def to_json(self) -> str:
        """Return a text for `from_json`."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Hosts:
        """Return the hosts of a text that `to_json` wrote."""
        content = json.loads(text)
        addresses = (RankAddress(one["ssh"], tuple(one["ips"]), tuple(one["rdma"])) for one in content["addresses"])
        return cls(content["backend"], tuple(addresses), tuple(content["envs"]), content["file"])

    def environment(self) -> tuple[dict[str, str], dict[str, str]]:
        """Return the variables that MLX's backend reads, and those that name a file, with the file's content.

        Source: `mlx.launch` of MLX 0.32.4. `MLX_RANK` comes on top.
        """
        if self.backend == "mpi":
            return {}, {}  # its launcher sets them
        named = dict(text.split("=", 1) for text in self.envs)
        if self.backend == "ring":
            return named, {"MLX_HOSTFILE": json.dumps(self._ring())}
        named["MLX_JACCL_COORDINATOR"] = f"{self.addresses[0].ips[0]}:{FIRST_PORT}"
        if self.backend == "jaccl-ring":
            named["MLX_JACCL_RING"] = "1"
        return named, {"MLX_IBV_DEVICES": json.dumps([address.rdma for address in self.addresses])}

    def _ring(self) -> list[list[str]]:
        """Return address and port of each rank's ends. On one machine any free ports serve, so that two groups fit."""
        count = sum(len(address.ips) for address in self.addresses)
        ports = iter(_free_ports(count) if self.local else range(FIRST_PORT, FIRST_PORT + count))
        return [[f"{ip}:{next(ports)}" for ip in address.ips] for address in self.addresses]


def local_hosts(size: int) -> Hosts:
    """Return `size` ranks on this machine."""
    return Hosts("ring", (RankAddress(LOOPBACK, (LOOPBACK,)),) * size)


def read_hosts(file: str) -> Hosts:
    """Return the ranks of a hosts file.

    Raises:
        OptionError: it cannot be read, or is not a hosts file of `BACKENDS`.
    """
    try:
        with Path(os.path.expanduser(file)).open("rb") as stream:
            content = json.loads(stream.read(MAX_HOSTS_BYTES))
    except OSError as error:
        raise OptionError(f"--hosts {file}: {error.strerror}; expected {_EXPECTED}") from error
    except ValueError as error:
        raise OptionError(f"--hosts {file}: not JSON ({error}); expected {_EXPECTED}") from error
    try:
        return replace(_hosts_of(content), file=os.path.abspath(os.path.expanduser(file)))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        found = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise OptionError(f"--hosts {file}: {found}; expected {_EXPECTED}") from error


def _hosts_of(content: Any) -> Hosts:
    if isinstance(content, list):
        content = {"hosts": content}
    backend, envs = content.get("backend") or "ring", content.get("envs") or []
    if backend not in BACKENDS:
        raise ValueError(f"backend {backend!r} is none of {', '.join(BACKENDS)}")
    for text in envs:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*=[^\0]*", text):
            raise ValueError(f"envs has {text!r}, which is not NAME=VALUE")
    addresses = tuple(_address_of(host) for host in content["hosts"])
    if len(addresses) < 2:
        raise ValueError(f"it names {len(addresses)} hosts, which is not several")
    _check_addresses(backend, addresses)
    return Hosts(backend, addresses, tuple(envs))


def _check_addresses(backend: str, addresses: tuple[RankAddress, ...]) -> None:
    needed = {"mpi": 0, "ring": len(addresses)}.get(backend, 1)  # of JACCL rank 0 alone is reached by its address
    if not all(address.ips for address in addresses[:needed]):
        raise ValueError("a host has no ips, by which the others reach it")
    if backend.startswith("jaccl") and not all(
        len(address.rdma) == len(addresses) and address.rdma[rank] is None for rank, address in enumerate(addresses)
    ):
        raise ValueError("rdma does not name a device for each other host, and null for the host itself")


def _address_of(host: Any) -> RankAddress:
    name = host["ssh"]
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(f"the host's name {name!r} is not one that ssh can be given")
    ips = tuple(str(ipaddress.ip_address(ip)) for ip in host.get("ips") or ())
    return RankAddress(name, ips, tuple(host.get("rdma") or ()))


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind((LOOPBACK, 0))
        return [one.getsockname()[1] for one in sockets]
