"""`mlxmtp serve` as a process: start, signals, death of the engine, ports. Refusals without one."""

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
from mlxmtp.server.host import LoadError
from mlxmtp.server.main import ServeOptions, serve
from mlxmtp.worker.messages import Failed, Load
from tests.scripted_engine import headless
from tests.server.process import PATIENCE_S, ServerProcess
from tests.server.scripted import ALL, CHAT, COMPLETIONS, MINIMAL, Engines, parse_events
from tests.server.test_faults import stream_error
from tests.worker.driving import SMALL_MODEL, is_gone, wait_until

pytestmark = pytest.mark.process

SMALL = ("--model", str(SMALL_MODEL))
ENDLESS: dict[str, Any] = {"prompt": "Once upon a time", "max_tokens": 3000, "logit_bias": {"2": -100}, "stream": True}
"""The model goes on until it is stopped."""


@pytest.fixture
def served(server: ServerProcess) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=PATIENCE_S) as http:
        yield http


def assert_works(http: httpx2.Client) -> None:
    response = http.post(CHAT, json=MINIMAL[CHAT] | {"max_tokens": 2})
    assert response.status_code == 200, response.text


def refused(process: ServerProcess, *words: str) -> None:
    """The process ends with exit code 2 and a line that says why."""
    assert process.process.wait(PATIENCE_S) == 2
    last = process.log.splitlines()[-1]
    assert last.startswith("mlxmtp: ")
    for word in words:
        assert word in last
    assert "Traceback" not in process.log


@pytest.mark.exhaustive
@pytest.mark.parametrize("path", sorted({*ALL} - {COMPLETIONS}))
def test_an_engine_that_is_killed_while_it_works(path: str, server: ServerProcess, served: httpx2.Client) -> None:
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


def test_an_engine_that_is_killed_in_its_text(server: ServerProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        pieces = response.iter_text()
        text = next(pieces)
        os.kill(server.worker, signal.SIGKILL)
        text += "".join(pieces)
    events = parse_events(text)
    assert "the engine died (killed" in stream_error(COMPLETIONS, events)["message"]
    assert events[0].data["choices"][0]["text"]
    assert_works(served)


def test_a_client_that_disconnects_stops_the_engine(server: ServerProcess, served: httpx2.Client) -> None:
    with served.stream("POST", COMPLETIONS, json=ENDLESS) as response:
        assert next(response.iter_text())
    assert_works(served)
    assert wait_until(lambda: f"POST {COMPLETIONS} 499" in server.log, PATIENCE_S)


@pytest.mark.exhaustive
def test_a_signal_while_the_model_loads(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *SMALL) as process:
        process.wait_for_line("loading")
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(PATIENCE_S) == 0
        assert "Traceback" not in process.log


@pytest.mark.exhaustive
def test_a_killed_server_leaves_no_engine_behind(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *SMALL) as process:
        process.wait_for_line(" at http://")
        process.wait_for_line("at temperature 0 or with a seed: token-identical to plain decoding")
        worker = process.worker
        process.process.kill()
        assert wait_until(lambda: is_gone(worker), PATIENCE_S)


@pytest.mark.exhaustive
def test_the_port_is_taken_before_the_model_is_loaded(tmp_path: Path) -> None:
    """Clients that connect while the model loads wait."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    options = (*SMALL, "--port", str(port))
    with ServerProcess(tmp_path, *options) as first:
        first.wait_for_line("loading")
        with ServerProcess(tmp_path, *options) as second, httpx2.Client(timeout=PATIENCE_S) as http:
            assert http.get(f"http://127.0.0.1:{port}/health").json() == {"status": "ok"}
            refused(second, f"cannot listen on 127.0.0.1:{port}", "--port")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "203.0.113.7"])
def test_an_address_of_another_machine(host: str) -> None:
    with pytest.raises(OptionError, match=f"cannot listen on {host}:0: .*--host"):
        serve(ServeOptions(host=host, port=0), Engines())


def test_a_model_that_cannot_be_loaded() -> None:
    with pytest.raises(LoadError, match=r"config\.json"):
        serve(ServeOptions(port=0), Engines({Load: [Failed(0, "refused", "config.json is damaged")]}))


def test_a_depth_without_a_head() -> None:
    with pytest.raises(OptionError, match="--depth 2 needs a head: the checkpoint has no head"):
        serve(ServeOptions(depth=2, port=0), Engines({Load: [headless()]}))


@pytest.mark.exhaustive  # a signal ends an answer, below, and a server that loads, above
def test_an_interrupt_ends_the_server_and_its_engine(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, *SMALL) as process:
        assert_works(httpx2.Client(base_url=process.url, timeout=PATIENCE_S))
        assert process.end_with(signal.SIGINT) == 0
        assert "Traceback" not in process.log
        assert "ERROR" not in process.log


def test_a_key_is_required_and_a_signal_ends_an_answer(tmp_path: Path) -> None:
    with (
        ServerProcess(tmp_path, *SMALL, "--host", "0.0.0.0", "--api-key", "secret", "--no-mtp") as process,
        httpx2.Client(base_url=process.url, timeout=PATIENCE_S) as http,
    ):
        assert "warning" not in process.log
        assert "plain: MTP was switched off" in process.log
        assert http.get("/v1/models").status_code == 401
        http.headers["authorization"] = "Bearer secret"
        assert http.get("/v1/models").status_code == 200
        with http.stream("POST", COMPLETIONS, json=ENDLESS) as response:
            pieces = response.iter_text()
            text = next(pieces)
            assert process.end_with(signal.SIGTERM) == 0
            about = stream_error(COMPLETIONS, parse_events(text + "".join(pieces)))
        assert about["message"] == "the server is shutting down"
        assert "Traceback" not in process.log
