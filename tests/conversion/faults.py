"""What the fault tests share: names, what a folder holds, and what a failed command must have said."""

import json
import re
import resource
from collections import namedtuple
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from mlxmtp.checkpoints import HEAD_FACTS, SIDECAR
from mlxmtp.checkpoints.attached import attached_folder
from mlxmtp.checkpoints.tensors import read_header
from tests.hub import Fault, Hub

ORIGINAL, STRIPPED = "maker/original", "community/stripped"
SHARDS = [f"model-{i:05}-of-00004.safetensors" for i in range(1, 5)]
_, SAMPLE_SHARD, HEAD_SHARD, _ = SHARDS
HEAD = rf"GET /cdn/.*/{ORIGINAL}/{HEAD_SHARD}"
"""Of the requests for this file, the first two are the header's."""

Attached = tuple[bytes, dict[str, Any]]
Run = Callable[..., tuple[int, str]]


def attached(folder: Path) -> Attached:
    """The side-car of a folder and its facts, but for where it comes from."""
    facts = json.loads((folder / "config.json").read_text())[HEAD_FACTS]
    return (folder / SIDECAR).read_bytes(), {k: v for k, v in facts.items() if k not in ("source", "revision")}


def kept(hub: Hub) -> Path:
    """Where the head for the stripped model of the cache belongs."""
    return attached_folder(STRIPPED, hub.repos[STRIPPED].main)


def leftovers(*folders: Path) -> list[Path]:
    """Staged files and folders."""
    return [path for folder in folders for path in folder.rglob(".*.partial")]


def head_bytes(original: Path) -> int:
    return sum(info.nbytes for info in read_header(original / HEAD_SHARD).values())


def in_the_head(fault: Fault) -> list[Fault]:
    """A fault of the first request for the head's own bytes: those for the header before it get one without effect."""
    idle = 0 if fault.kind == "slow" else 1 << 40
    return [Fault(HEAD, fault.kind, times=2, value=idle), fault]


def assert_told(ran: tuple[int, str], says: str, code: int = 2) -> None:
    """The command failed with one line of its own, which says a regex."""
    told = [line for line in ran[1].splitlines() if line.startswith("mlxmtp: ")]
    assert ran[0] == code, ran
    assert len(told) == 1, ran
    assert re.search(says, told[0]), told[0]
    assert "Traceback" not in ran[1]


@contextmanager
def small_files(nbytes: int) -> Iterator[None]:
    """The kernel refuses to write more to any file, in the middle of a write if need be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def small_disk(free: int) -> Iterator[None]:
    """So many bytes seem to be free."""
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - free, free)
    with mock.patch("shutil.disk_usage", return_value=usage):
        yield
