"""A server in a process of its own, as people start it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.conftest import REPO
from tests.worker.driving import is_gone, wait_until

PATIENCE_S = 90
"""Seconds; longer than anything here takes on a busy machine."""
SERVE = ("-m", "mlxmtp", "serve", "--port", "0")
"""Arguments of Python: `mlxmtp serve` on a free port. A later `--port` overrides this one."""


def children(parent: int, part: str) -> list[int]:
    """The child processes of a process that have `part` in their command."""
    listed = subprocess.run(["ps", "-A", "-ww", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True)
    lines = [line.split(maxsplit=2) for line in listed.stdout.splitlines()]
    return [int(pid) for pid, of, *command in lines if int(of) == parent and part in "".join(command)]


class ServerProcess:
    """A server on loopback; use it in a `with`, which ends it.

    Args:
        home: where it keeps its files; measurements are kept in XDG_DATA_HOME where that is set.
        arguments: of the program; without `--model` it serves the demo model.
        program: arguments of Python.
    """

    def __init__(self, home: Path, *arguments: str, program: Sequence[str] = SERVE) -> None:
        others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        code = os.pathsep.join([str(REPO), *map(os.path.abspath, others)])
        homes = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "HF_HOME"), str(home))
        homes["XDG_DATA_HOME"] = os.environ.get("XDG_DATA_HOME", str(home))
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.process = subprocess.Popen(
            [sys.executable, *program, *arguments],
            cwd=home,
            env=os.environ | homes | {"PYTHONPATH": code, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stderr=self._stderr,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def log(self) -> str:
        """What it has written to standard error so far."""
        return os.pread(self._stderr.fileno(), 1 << 24, 0).decode(errors="replace")

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line of the log."""

        def found() -> re.Match[str] | None:
            return re.search(pattern, self.log)

        assert wait_until(lambda: found() or self.process.poll() is not None, PATIENCE_S), self.log
        match = found()
        assert match, self.log
        return match

    @property
    def url(self) -> str:
        """Where it serves; waits until the model is loaded."""
        return self.wait_for_line(r" at (http://\S+)/v1 ")[1]

    @property
    def worker(self) -> int:
        """The engine's process."""
        [pid] = children(self.pid, "mlxmtp.worker")
        return pid

    def end_with(self, number: signal.Signals) -> int:
        """Its exit code after a signal; the engine's process has ended too."""
        worker = self.worker
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        assert wait_until(lambda: is_gone(worker), PATIENCE_S)
        return code

    def metrics(self) -> dict[str, float]:
        """The figures of /metrics, by name and labels."""
        lines = self.get("/metrics").splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("mlxmtp_"): float(value) for name, value in pairs}

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())
