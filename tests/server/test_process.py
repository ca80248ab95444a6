"""The life of `mlxmtp serve` as a process: its beginning, its signals, its engine's death, its ports."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mlxmtp.errors import OptionError
from mlxmtp.server.main import ServeOptions, serve
from mlxmtp.worker.messages import Load
from tests.scripted_engine import headless
from tests.server.process import PATIENCE_S, ServeProcess
from tests.server.scripted import ALL, CHAT, COMPLETIONS, HELLO, Engines, sent
from tests.server.test_faults import broken_off
from tests.worker.driving import is_gone, wait_until

pytestmark = pytest.mark.process

ENDLESS: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 3000, "stream": True}
"""The demo goes on and on with this one."""


@pytest.fixture
def served(server: ServeProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.address, timeout=PATIENCE_S) as http:
        yield http


def works(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=HELLO[CHAT] | {"max_tokens": 2})
    assert response.status_code == 200, response.text


def refused(process: ServeProcess, *words: str) -> None:
    """It ends at once, with one line that says why."""
    assert process.process.wait(PATIENCE_S) == 2
    process._reading.join()
    last = process.lines[-1]
    assert last.startswith("mlxmtp: ")
    for word in words:
        assert word in last
    assert "Traceback" not in process.said


@pytest.mark.parametrize("path", sorted({*ALL} - {COMPLETIONS}))
def test_an_engine_that_is_killed_while_it_works(path: str, server: ServeProcess, served: httpx2.Client) -> None:
    works(served)
    worker = server.worker
    os.kill(worker, signal.SIGSTOP)  # it must not be done before it dies
    with served.stream("POST", path, json=HELLO[path] | {"stream": True}) as response:
        pieces = response.iter_text()
        text = next(pieces)
        os.kill(worker, signal.SIGKILL)
        text += "".join(pieces)
    assert "the engine died (killed" in broken_off(path, sent(text))["message"]
    works(served)
    assert server.worker != worker


def test_an_engine_that_is_killed_in_the_middle_of_its_text(server: ServeProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        pieces = response.iter_text()
        text = next(pieces)
        os.kill(server.worker, signal.SIGKILL)
        text += "".join(pieces)
    events = sent(text)
    assert "the engine died (killed" in broken_off(COMPLETIONS, events)["message"]
    assert events[0].data["choices"][0]["text"]
    works(served)


def test_a_client_that_leaves_stops_the_engine(server: ServeProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        assert next(response.iter_text())
    works(served)
    assert wait_until(lambda: f"POST {COMPLETIONS} 499" in server.said, PATIENCE_S)


def test_signals_end_it_and_its_engine(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with ServeProcess(tmp_path) as process:
            works(httpx2.Client(base_url=process.address, timeout=PATIENCE_S))
            assert process.ends(number) == 0
            assert "Traceback" not in process.said
            assert "ERROR" not in process.said


def test_a_signal_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    with (
        ServeProcess(tmp_path) as process,
        httpx2.Client(base_url=process.address, timeout=PATIENCE_S) as http,
        http.stream("POST", COMPLETIONS, json=ENDLESS) as response,
    ):
        pieces = response.iter_text()
        text = next(pieces)
        assert process.ends(signal.SIGTERM) == 0
        assert "Traceback" not in process.said
        about = broken_off(COMPLETIONS, sent(text + "".join(pieces)))
    assert about["message"] == "the server is shutting down"


def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    with ServeProcess(tmp_path) as process:
        process.says("loading the demo model")
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE_S) == 0
        process._reading.join()
        assert "Traceback" not in process.said


def test_a_killed_server_leaves_no_engine_behind(tmp_path: Path) -> None:
    with ServeProcess(tmp_path) as process:
        process.says(" at http://")
        process.says("at temperature 0 or with a seed: token-identical to plain decoding")
        worker = process.worker
        process.process.kill()
        assert wait_until(lambda: is_gone(worker), PATIENCE_S)


def test_a_port_that_is_taken(server: ServeProcess, tmp_path: Path) -> None:
    port = int(server.address.rsplit(":", 1)[1])
    with ServeProcess(tmp_path, port=port) as process:
        refused(process, f"cannot listen on 127.0.0.1:{port}", "--port")


def test_a_port_is_taken_from_the_beginning(tmp_path: Path) -> None:
    """And not only when the model is there: until then, whoever connects waits."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with ServeProcess(tmp_path, port=port) as first:
        first.says("loading")
        with ServeProcess(tmp_path, port=port) as second, httpx2.Client(timeout=PATIENCE_S) as http:
            assert http.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
            refused(second, f"cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_that_is_not_ours(host: str, tmp_path: Path) -> None:
    with ServeProcess(tmp_path, "--host", host) as process:
        refused(process, "cannot listen on", host, "--host")


def test_a_model_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{")
    with ServeProcess(tmp_path, "--model", str(tmp_path / "model")) as process:
        refused(process, "config.json")


def test_a_depth_without_a_head() -> None:
    with pytest.raises(OptionError, match="--depth 2 needs a head: the checkpoint has no head"):
        serve(ServeOptions(depth=2, port=0), Engines({Load: [headless()]}))


def test_who_can_reach_it_is_said(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, "--host", "0.0.0.0") as process:
        process.says("warning: 0.0.0.0 can be reached from other machines")
        assert "--api-key" in process.said
        assert process.ends(signal.SIGTERM) == 0
    with ServeProcess(tmp_path, "--host", "0.0.0.0", "--api-key", "secret", "--no-mtp") as process:
        with httpx2.Client(base_url=process.address, timeout=PATIENCE_S) as http:
            assert http.get("/v1/models").status_code == 401
            assert http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert "warning" not in process.said
        assert "plain: MTP was switched off" in process.said
