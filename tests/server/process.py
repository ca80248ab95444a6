"""`mlxmtp serve` as a process of its own, with the demo model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Self

from tests.conftest import REPO
from tests.worker.driving import is_gone, wait_until

PATIENCE_S = 60
"""Longer than anything here takes on a machine that is busy with other things."""


class ServeProcess:
    """A server that runs, or is about to.

    Args:
        folder: its home. arguments: of `mlxmtp serve`, behind the port.
    """

    def __init__(self, folder: Path, *arguments: str, port: int = 0) -> None:
        homes = dict.fromkeys(("HOME", "HF_HOME"), str(folder))
        others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        path = os.pathsep.join([str(REPO), *map(os.path.abspath, others)])
        command = [sys.executable, "-m", "mlxmtp", "serve", "--port", str(port), *arguments]
        surroundings = os.environ | homes | {"PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}
        self.process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True, env=surroundings)
        self.lines: list[str] = []
        self._reading = threading.Thread(target=self._read, daemon=True)
        self._reading.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self._reading.join()

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    @property
    def stderr(self) -> str:
        """All that it wrote on standard error."""
        return "\n".join(self.lines)

    def wait_for_line(self, pattern: str) -> re.Match[str]:
        """Wait for a line."""

        def found() -> Any:
            return re.search(pattern, self.stderr)

        assert wait_until(lambda: found() or self.process.poll() is not None, PATIENCE_S), self.stderr
        self._wait_for_last_words()
        match = found()
        assert match, self.stderr
        return match  # type: ignore[no-any-return]

    def _wait_for_last_words(self) -> None:
        if self.process.poll() is not None:
            self._reading.join()

    @property
    def address(self) -> str:
        """Where it serves, once it does."""
        return self.wait_for_line(r" at (http://\S+)/v1 ")[1]

    @property
    def worker(self) -> int:
        """The engine's process."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=True).stdout
        pairs = [tuple(map(int, line.split())) for line in listed.splitlines()]
        [pid] = [pid for pid, parent in pairs if parent == self.process.pid]
        return pid

    def end_with(self, number: signal.Signals) -> int:
        """Its exit code after a signal; the engine's process is gone too then."""
        worker = self.worker
        self.process.send_signal(number)
        code = self.process.wait(PATIENCE_S)
        self._reading.join()
        assert wait_until(lambda: is_gone(worker), PATIENCE_S)
        return code
