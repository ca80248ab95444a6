"""How a rank joins the others: MLX's group, and for ranks after the first the pipe to rank 0."""

from __future__ import annotations

import json
import os
import queue
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from tempfile import NamedTemporaryFile
from typing import Any, BinaryIO

from mlxmtp.errors import MlxmtpError
from mlxmtp.machine import versions
from mlxmtp.ranks.ranks import OutOfStepError, Ranks


class Follower(Ranks):
    """A rank after the first; its process ends when rank 0 is gone, whatever it is doing.

    Args:
        lines: what rank 0 says, a line of JSON each. answers: what it hears.
    """

    def __init__(
        self, setup: Mapping[str, Any], group: Any, lines: queue.SimpleQueue[bytes], answers: BinaryIO
    ) -> None:
        super().__init__(setup["rank"], setup["size"], setup["description"], group)
        self._lines = lines
        self._answers = answers

    def agree(self, value: Any = None) -> Any:
        checksum, value = json.loads(self._lines.get())
        if checksum != self._checksum:
            raise OutOfStepError("its tokens differ from those of rank 0, so this turn has no right end")
        return value

    def _first_error(self, own: str | None) -> str | None:
        _answer(self._answers, own)
        first: str | None = self.agree()
        return first


def join() -> Follower:
    """Join as the rank that rank 0 has started this process for. Standard output is for answers alone from now on."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(lines,), daemon=True).start()
    setup = json.loads(lines.get())
    _answer(answers, versions())
    group = connect(setup["rank"], setup["backend"], setup["variables"], setup["files"])
    return Follower(setup, group, lines, answers)


def connect(rank: int | None, backend: str, variables: Mapping[str, str], files: Mapping[str, str]) -> Any:
    """Return MLX's group of all ranks. It waits until they are there.

    Args:
        rank: None: the backend knows it.

    Raises:
        MlxmtpError: they cannot be connected.
    """
    own = {} if rank is None else {"MLX_RANK": str(rank)}
    with _environment({**variables, **own}, files):
        import mlx.core as mx  # after the variables: some count from the import on

        try:
            return mx.distributed.init(strict=True, backend=backend.partition("-")[0])
        except RuntimeError as error:
            named = "a rank" if rank is None else f"rank {rank}"
            raise MlxmtpError(f"{named} cannot be connected with the others: {error}") from error


@contextmanager
def _environment(variables: Mapping[str, str], files: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, and within the block those that name a file and those of the rank too."""
    os.environ.update(variables)
    with NamedTemporaryFile("w", suffix=".json") as file:
        for name, content in files.items():
            file.write(content)
            file.flush()
            os.environ[name] = file.name
        try:
            yield
        finally:  # what is measured is kept by MLX's variables, so that names of temporary files have to go
            for name in (*files, "MLX_RANK"):
                os.environ.pop(name, None)


def _read(lines: queue.SimpleQueue[bytes]) -> None:
    for line in sys.stdin.buffer:
        lines.put(line)
    os._exit(0)


def _answer(answers: BinaryIO, value: Any) -> None:
    answers.write(json.dumps(value).encode() + b"\n")
    answers.flush()
