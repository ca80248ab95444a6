"""`mlxmtp connect` asks the server for its model and its context, and says where it cannot."""

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.cli import connect, served
from mlxmtp.cli.connect import clients
from tests.cli.conftest import Ran

MODEL = {"id": "mlx-community/Big-4bit", "max_model_len": 262_144}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    return tmp_path


@contextmanager
def serving(body: Any, status: int = 200) -> Iterator[tuple[str, list[tuple[str, str]]]]:
    """A server that answers every request with `body`: its address, and (path, key) of the requests."""
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append((self.path, self.headers["authorization"]))
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_the_servers_model_and_context_are_written(main_: Callable[..., Ran], home: Path) -> None:
    with serving({"data": [MODEL]}) as (url, asked):
        ran = main_("connect", "claude", "--url", url, "--api-key", "sk-1", "--write")
        assert (ran.code, ran.err, asked) == (0, "", [("/v1/models", "Bearer sk-1")])
        env = json.loads((home / ".claude/mlxmtp.json").read_text())["env"]
        assert (env["ANTHROPIC_MODEL"], env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"]) == (MODEL["id"], "262144")
        assert env["CLAUDE_CODE_MAX_OUTPUT_TOKENS"] == "65536"
        assert "model_context_window = 9000\n" in main_("connect", "codex", "--url", url, "--context", "9000").out
        assert 'model = "mine"' in main_("connect", "codex", "--url", url, "--model", "mine").out
        asked.clear()
        main_("connect", "codex", "--url", url, "--model", "mine", "--context", "9000")
        assert asked == [], "nothing is left to ask for"


def test_the_key_is_found_as_serve_finds_it(
    main_: Callable[..., Ran], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "key").write_text("of-the-file\n")
    for variable, options, key in (
        (None, (), "mlxmtp"),
        ("", (), "mlxmtp"),
        ("of-the-environment", (), "of-the-environment"),
        ("of-the-environment", ("--api-key-file", str(home / "key")), "of-the-file"),
        ("of-the-environment", ("--api-key", "given"), "given"),
    ):
        monkeypatch.delenv("MLXMTP_API_KEY", raising=False)
        if variable is not None:
            monkeypatch.setenv("MLXMTP_API_KEY", variable)
        with serving({"data": [MODEL]}) as (url, asked):
            ran = main_("connect", "codex", "--url", url, *options)
        assert (ran.code, ran.err, asked) == (0, "", [("/v1/models", f"Bearer {key}")]), (variable, options)
        assert key in ran.out, (variable, options)
    assert main_("connect", "codex", "--api-key-file", str(home / "nowhere")).code == 2


def test_a_server_that_does_not_say_is_told_and_guessed(main_: Callable[..., Ran]) -> None:
    strange = (
        ({"data": []}, 200, "does not say its context"),
        ([MODEL], 200, "does not say its context"),
        (b"<html>", 200, "does not say its context"),
        (b"[" * 100_000, 200, "does not say its context"),
        ({"data": [MODEL | {"max_model_len": 2**31 - 1}]}, 200, "names no context"),
        ({"data": [MODEL | {"max_model_len": -1}]}, 200, "names no context"),
        ({"data": [MODEL | {"id": "a\x1b[2J"}]}, 200, "names no context"),
        ({"error": {}}, 401, "refuses this key (status 401); give --api-key"),
        ({"error": {"message": "use --allow-host NAME"}}, 403, "refuses to answer: use --allow-host NAME"),
        ({"error": {"message": "a\x1b[2J"}}, 403, "refuses to answer: status 403"),
        (b"<html>", 403, "refuses to answer: status 403"),
    )
    for body, status, said in strange:
        with serving(body, status) as (url, _):
            ran = main_("connect", "codex", "--url", url)
            assert (ran.code, ran.err.count("\n")) == (0, 1), body
            assert ran.err.startswith(f"mlxmtp: warning: {'what' if 'say' in said else 'the server'} "), body
            assert said in ran.err, body
            assert status != 403 or "key" not in ran.err, body
            assert "32,768 tokens are taken for its context" in ran.err, body
            assert 'model = "mlxmtp"' in ran.out, body
            assert "model_context_window = 32768" in ran.out, body
    ran = main_("connect", "codex", "--url", url)
    assert f"no server answers at {url}" in ran.err, "the last one has ended"
    assert main_("connect", "codex", "--url", url, "--context", "9000").err == "", "nothing is guessed that matters"


def test_a_server_that_is_silent_is_not_waited_for(main_: Callable[..., Ran], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(served, "PATIENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        ran = main_("connect", "codex", "--url", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert (ran.code, "no server answers" in ran.err) == (0, True)


def test_it_says_which_version_was_tried(main_: Callable[..., Ran]) -> None:
    for name, client in clients().items():
        lines = main_("connect", name, "--context", "1", "--model", "m").out.splitlines()
        said = [line for line in lines if "Tried:" in line]
        assert said == [f"Tried:  {client.tried or 'no; this is what its documentation says'}"], name
    assert {name for name, client in clients().items() if not client.tried} == {"zed", "open-webui", "crush"}
    assert connect.CONTEXT == 32_768
