"""Programs from the npm registry: installed once, and run without access to anything but loopback."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

ASK_S = 20
INSTALL_S = 240
RUN_S = 120
NODE = (20, 6)
"""The oldest version of Node.js that all of them support."""
NOWHERE = "http://127.0.0.1:9"
"""A proxy that does not exist, for every address but loopback."""
QUIET = ("--no-audit", "--no-fund", "--no-update-notifier", "--loglevel=error")
ONCE = ("--fetch-retries=0", "--fetch-timeout=10000", "--prefer-offline")


@cache
def missing(package: str) -> str | None:
    """Why a package cannot be installed here; checked once."""
    if not shutil.which("node") or not shutil.which("npm"):
        return "there is no Node.js with npm on the PATH"
    version = subprocess.run(["node", "--version"], capture_output=True, text=True, timeout=ASK_S).stdout.strip()
    if tuple(map(int, re.findall(r"\d+", version)[:2])) < NODE:
        return f"Node.js is {version}; expected {'.'.join(map(str, NODE))} or newer"
    try:
        _npm("view", package, "version", *ONCE, seconds=ASK_S)
    except (OSError, subprocess.SubprocessError) as error:
        return f"the npm registry does not give {package}: {_said(error)}"
    return None


def program(package: str, pattern: str, folder: Path) -> str:
    """The program of `package` (with a version), installed in `folder` unless it is there.

    Skips the test where Node.js or the registry is missing.

    Args:
        pattern: where the program is in `node_modules`, with wildcards.
    """
    place = folder / re.sub(r"\W+", "-", package)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:  # tests run in several processes
        fcntl.flock(lock, fcntl.LOCK_EX)
        if found := _installed(place, pattern):
            return found
        if why := missing(package):
            pytest.skip(why)
        unfinished = folder / "unfinished"
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            options = ("--prefix", str(unfinished), "--ignore-scripts", "--no-package-lock", *QUIET, *ONCE)
            _npm("install", *options, package, seconds=INSTALL_S)
        except (OSError, subprocess.SubprocessError) as error:
            pytest.skip(f"npm cannot install {package}: {_said(error)}")
        unfinished.rename(place)
    if not (found := _installed(place, pattern)):
        pytest.skip(f"{package} has no program {pattern} for this machine")
    return found


def run(*command: str, home: Path, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a program to its end in `folder`, with a home of its own and no standard input."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "TMPDIR", "LANG", "LC_ALL")}
    proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), NOWHERE)
    around = dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1,localhost")
    return subprocess.run(
        command,
        cwd=folder,
        env=kept | proxies | around | {"HOME": str(home), "DO_NOT_TRACK": "1", "NO_COLOR": "1"} | variables,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_S,
    )


def _installed(place: Path, pattern: str) -> str | None:
    return next(map(str, (place / "node_modules").glob(pattern)), None)


def _npm(*arguments: str, seconds: float) -> None:
    subprocess.run(["npm", *arguments], check=True, capture_output=True, text=True, timeout=seconds)


def _said(error: Exception) -> str:
    said = getattr(error, "stderr", None) or str(error)
    lines = (said if isinstance(said, str) else said.decode(errors="replace")).strip().splitlines()
    return next((line for line in lines if "code" in line), lines[-1] if lines else repr(error))
