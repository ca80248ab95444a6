"""Checks that are the same for every client."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

from tests.conftest import REPO
from tests.server.clients.scripted import END, Answer, Scripted
from tests.server.process import ServerProcess

PATIENCE_S = 60
Ask = Callable[[], CompletedProcess[str]]


def connect(client: str, server: ServerProcess, home: Path) -> None:
    """Let `mlxmtp connect` write the client's settings."""
    command = [sys.executable, "-m", "mlxmtp", "connect", client, "--write", "--url", server.url]
    path = os.pathsep.join(filter(None, [str(REPO), os.environ.get("PYTHONPATH")]))
    subprocess.run(command, check=True, cwd=home, env=os.environ | {"HOME": str(home), "PYTHONPATH": path})


def assert_done(done: CompletedProcess[str], text: str) -> None:
    """The client has succeeded, and its output is `text`."""
    assert (done.returncode, done.stdout.strip()) == (0, text), done.stderr


def assert_each_prompt_extends_the_last(scripted: Scripted) -> None:
    """Each prompt begins with the last one and its answer, reasoning and calls included: the prefix cache matches."""
    for earlier, later in pairwise(scripted.asked):
        assert later.prompt.startswith(earlier.prompt + earlier.said + END)


def assert_tries_again_when_the_queue_is_full(ask: Ask, server: ServerProcess, scripted: Scripted, path: str) -> None:
    scripted.write(Answer(text="Now it is my turn."))
    sent_away = f"POST {path} 503"
    before = server.log.count(sent_away)
    body = json.dumps({"messages": [{"role": "user", "content": "Somebody else's."}]}).encode()
    headers = {"content-type": "application/json"}
    request = urllib.request.Request(f"{server.url}/v1/chat/completions", body, headers)
    other = threading.Thread(target=lambda: urllib.request.urlopen(request, timeout=PATIENCE_S).read())
    with ThreadPoolExecutor(1) as pool:
        with scripted.held():
            other.start()
            wait_until(lambda: server.metrics()["queue_running"] == 1, "the engine is not at work")
            asking = pool.submit(ask)
            wait_until(lambda: server.log.count(sent_away) > before, "the client has not been sent away")
        other.join()
        assert_done(asking.result(), "Now it is my turn.")


def answered(server: ServerProcess, path: str) -> int:
    """The number of turns of a protocol with status 200 in the server's log."""
    return server.log.count(f"POST {path} 200")


def wait_until(holds: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.05)
