"""`mlxmtp serve` as a process: start, signals, death of the engine, ports."""

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
from tests.server.scripted import ALL, CHAT, COMPLETIONS, MINIMAL, Engines, parse_events
from tests.server.test_faults import stream_error
from tests.worker.driving import is_gone, wait_until

pytestmark = pytest.mark.process

ENDLESS: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 3000, "stream": True}
"""The demo model generates up to the limit here."""


@pytest.fixture
def served(server: ServeProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.address, timeout=PATIENCE_S) as http:
        yield http


def assert_works(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=MINIMAL[CHAT] | {"max_tokens": 2})
    assert response.status_code == 200, response.text


def refused(process: ServeProcess, *words: str) -> None:
    """The process ends with exit code 2 and a line that says why."""
    assert process.process.wait(PATIENCE_S) == 2
    process._reading.join()
    last = process.lines[-1]
    assert last.startswith("mlxmtp: ")
    for word in words:
        assert word in last
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize("path", sorted({*ALL} - {COMPLETIONS}))
def test_an_engine_that_is_killed_while_it_works(path: str, server: ServeProcess, served: httpx2.Client) -> None:
    assert_works(served)
    worker = server.worker
    os.kill(worker, signal.SIGSTOP)  # it must not finish before it is killed
    with served.stream("POST", path, json=MINIMAL[path] | {"stream": True}) as response:
        pieces = response.iter_text()
        text = next(pieces)
        os.kill(worker, signal.SIGKILL)
        text += "".join(pieces)
    assert "the engine died (killed" in stream_error(path, parse_events(text))["message"]
    assert_works(served)
    assert server.worker != worker


def test_an_engine_that_is_killed_in_its_text(server: ServeProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        pieces = response.iter_text()
        text = next(pieces)
        os.kill(server.worker, signal.SIGKILL)
        text += "".join(pieces)
    events = parse_events(text)
    assert "the engine died (killed" in stream_error(COMPLETIONS, events)["message"]
    assert events[0].data["choices"][0]["text"]
    assert_works(served)


def test_a_client_that_disconnects_stops_the_engine(server: ServeProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        assert next(response.iter_text())
    assert_works(served)
    assert wait_until(lambda: f"POST {COMPLETIONS} 499" in server.stderr, PATIENCE_S)


def test_signals_end_it_and_its_engine(tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with ServeProcess(tmp_path) as process:
            assert_works(httpx2.Client(base_url=process.address, timeout=PATIENCE_S))
            assert process.end_with(number) == 0
            assert "Traceback" not in process.stderr
            assert "ERROR" not in process.stderr


def test_a_signal_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    with (
        ServeProcess(tmp_path) as process,
        httpx2.Client(base_url=process.address, timeout=PATIENCE_S) as http,
        http.stream("POST", COMPLETIONS, json=ENDLESS) as response,
    ):
        pieces = response.iter_text()
        text = next(pieces)
        assert process.end_with(signal.SIGTERM) == 0
        assert "Traceback" not in process.stderr
        about = stream_error(COMPLETIONS, parse_events(text + "".join(pieces)))
    assert about["message"] == "the server is shutting down"


def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    with ServeProcess(tmp_path) as process:
        process.wait_for_line("loading the demo model")
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE_S) == 0
        process._reading.join()
        assert "Traceback" not in process.stderr


def test_a_killed_server_leaves_no_engine_behind(tmp_path: Path) -> None:
    with ServeProcess(tmp_path) as process:
        process.wait_for_line(" at http://")
        process.wait_for_line("at temperature 0 or with a seed: token-identical to plain decoding")
        worker = process.worker
        process.process.kill()
        assert wait_until(lambda: is_gone(worker), PATIENCE_S)


def test_a_port_that_is_taken(server: ServeProcess, tmp_path: Path) -> None:
    port = int(server.address.rsplit(":", 1)[1])
    with ServeProcess(tmp_path, port=port) as process:
        refused(process, f"cannot listen on 127.0.0.1:{port}", "--port")


def test_the_port_is_taken_before_the_model_is_loaded(tmp_path: Path) -> None:
    """Clients that connect while the model loads wait."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with ServeProcess(tmp_path, port=port) as first:
        first.wait_for_line("loading")
        with ServeProcess(tmp_path, port=port) as second, httpx2.Client(timeout=PATIENCE_S) as http:
            assert http.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
            refused(second, f"cannot listen on 127.0.0.1:{port}")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_of_another_machine(host: str, tmp_path: Path) -> None:
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


def test_a_public_address_without_a_key_is_warned_of(tmp_path: Path) -> None:
    with ServeProcess(tmp_path, "--host", "0.0.0.0") as process:
        process.wait_for_line("warning: 0.0.0.0 can be reached from other machines")
        assert "--api-key" in process.stderr
        assert process.end_with(signal.SIGTERM) == 0
    with ServeProcess(tmp_path, "--host", "0.0.0.0", "--api-key", "secret", "--no-mtp") as process:
        with httpx2.Client(base_url=process.address, timeout=PATIENCE_S) as http:
            assert http.get("/v1/models").status_code == 401
            assert http.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 200
        assert "warning" not in process.stderr
        assert "plain: MTP was switched off" in process.stderr
