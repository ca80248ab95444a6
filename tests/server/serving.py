"""A server in a process of its own, as people start it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.conftest import REPO

PATIENCE_S = 90
DEMO = ("-m", "mlxmtp", "serve", "--model", "demo", "--port", "0")


class ServerProcess:
    """A server on a free port of loopback; use it in a `with`.

    Args:
        arguments: of Python. home: where it keeps its files.
    """

    def __init__(self, home: Path, arguments: Sequence[str] = DEMO) -> None:
        self.url = ""
        others = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
        code = os.pathsep.join([str(REPO), *map(os.path.abspath, others)])
        homes = {name: str(home) for name in ("HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "HF_HOME")}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self._process = subprocess.Popen(
            [sys.executable, *arguments],
            cwd=home,
            env=os.environ | homes | {"PYTHONPATH": code, "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.DEVNULL,
            stderr=self._log,
        )

    def __enter__(self) -> Self:
        deadline = time.monotonic() + PATIENCE_S
        while not (found := re.search(r" at (http://\S+)/v1 ", self.log)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.__exit__()
                raise AssertionError(f"the server has not come up; its log:\n{self.log}")
            time.sleep(0.05)
        self.url = found[1]
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        finally:
            self._process.kill()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def log(self) -> str:
        """What it has said so far."""
        return os.pread(self._log.fileno(), 1 << 24, 0).decode(errors="replace")

    def metrics(self) -> dict[str, float]:
        """The figures of /metrics, by name and labels."""
        lines = self.get("/metrics").splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name.removeprefix("mlxmtp_"): float(value) for name, value in pairs}

    def get(self, path: str) -> str:
        with urllib.request.urlopen(self.url + path, timeout=30) as answer:
            return str(answer.read().decode())
