"""Web pages cannot use the server: unknown hosts, foreign origins, contents that need no preflight; where keys are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mlxmtp.cli.options import api_key
from mlxmtp.errors import OptionError
from mlxmtp.server.main import ServeOptions, check, listening
from mlxmtp.worker.messages import Generate
from tests.scripted_engine import asynchronous
from tests.server.scripted import ALL, CHAT, COUNT, MESSAGES, MINIMAL, LocalServer, parse_error, serving, turn

OWN = (
    "127.0.0.1:8080",
    "localhost",
    "LOCALHOST:80",
    "[::1]:8080",
    "127.1.2.3",
    "a.localhost:1",
    "host.docker.internal:8080",
)
FOREIGN = (
    "evil.example:8080",
    "192.168.1.5:8080",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "[::2]",
    "::1:x:y",
)
PREFLIGHT = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}


async def asked(served: LocalServer, headers: dict[str, str], path: str = CHAT, body: Any = None) -> Any:
    """The response, and whether the engine has heard of it."""
    before = len(served.engine.sent(Generate))
    content = json.dumps(MINIMAL[MESSAGES if path == COUNT else path] if body is None else body)
    response = await served.http.post(path, content=content, headers=headers)
    return response, len(served.engine.sent(Generate)) > before


@asynchronous
async def test_only_this_machines_names_are_answered_on_loopback() -> None:
    """A page whose own name leads to this machine sends that name as the host."""
    async with serving(turn("fine"), hosts=("my.box",)) as served:
        for host in (*OWN, "my.box", "my.box:8080", "my.box."):
            response, generated = await asked(served, {"host": host})
            assert (response.status_code, generated) == (200, True), host
        for host in FOREIGN:
            for path in (*ALL, COUNT):
                response, generated = await asked(served, {"host": host}, path)
                assert (response.status_code, generated) == (403, False), (host, path)
                assert "--allow-host" in parse_error(path, response.json())["message"]
            for path in ("/v1/models", "/metrics", "/", "/health"):
                assert (await served.http.get(path, headers={"host": host})).status_code == 403, (host, path)
    async with serving(turn("fine"), api_key="secret") as served:  # elsewhere the key decides
        key = {"authorization": "Bearer secret"}
        assert (await served.http.get("/v1/models", headers=key | {"host": "any.example"})).status_code == 200


@asynchronous
async def test_pages_ask_only_if_they_are_named() -> None:
    named = "https://app.example"
    async with serving(turn("fine"), hosts=(), origins=(named,)) as served:
        local = {"host": "localhost:8080"}
        cases = {
            "http://localhost:8080": 200,  # a page of this server itself
            named: 200,
            "https://app.example.evil.example": 403,
            "http://app.example": 403,
            "http://localhost:3000": 403,
            "null": 403,
            "": 403,
        }
        for origin, status in cases.items():
            response, generated = await asked(served, local | {"origin": origin})
            assert (response.status_code, generated) == (status, status == 200), origin
            response = await served.http.get("/v1/models", headers=local | {"origin": origin})
            assert response.status_code == status, origin
            if origin == "http://localhost:8080":
                continue  # asks without a preflight
            wish = local | PREFLIGHT | {"origin": origin, "access-control-request-private-network": "true"}
            preflight = await served.http.options(CHAT, headers=wish)
            allowed = preflight.headers.get("access-control-allow-private-network") == "true"
            assert allowed == (origin == named), origin
            assert preflight.headers.get("access-control-allow-origin") == (named if origin == named else None), origin
    for origins, status in (((), 403), (("*",), 200), (("null",), 200)):
        async with serving(turn("fine"), hosts=(), origins=origins) as served:
            response, generated = await asked(served, {"host": "localhost", "origin": "null"})
            assert (response.status_code, generated) == (status, status == 200), origins


@asynchronous
async def test_only_json_is_taken() -> None:
    """A page may send text, forms and untyped bytes to any server without asking it first."""
    async with serving(turn("fine")) as served:
        for path in (*ALL, COUNT):
            for kind in (
                "text/plain",
                "application/x-www-form-urlencoded",
                "multipart/form-data",
                "",
                "application/jsonp",
            ):
                response, generated = await asked(served, {"content-type": kind}, path)
                assert (response.status_code, generated) == (415, False), (path, kind)
                assert "expected application/json" in parse_error(path, response.json())["message"]
            for kind in ("application/json; charset=utf-8", "Application/JSON"):
                response, _ = await asked(served, {"content-type": kind}, path)
                assert response.status_code == 200, (path, kind)


def test_other_machines_need_a_key() -> None:
    for host in ("0.0.0.0", "::"):
        with pytest.raises(OptionError, match="--api-key-file"), listening(host, 0, needs_loopback=True):
            pass
    for host, needs_loopback in (("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False)):
        with listening(host, 0, needs_loopback=needs_loopback) as listener:
            assert listener.getsockname()[1], host


def test_names_of_hosts_that_would_never_match_are_refused() -> None:
    check(ServeOptions(hosts=("my.box",)))
    for name in ("", "My.Box", "my.box:8080", "http://my.box", "my box"):
        with pytest.raises(OptionError, match="--allow-host"):
            check(ServeOptions(hosts=(name,)))


def test_where_the_key_comes_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "key"
    file.write_text(" of-the-file \n")
    monkeypatch.delenv("MLXMTP_API_KEY", raising=False)
    assert api_key(None, None) is None
    monkeypatch.setenv("MLXMTP_API_KEY", "")
    assert api_key(None, None) is None
    monkeypatch.setenv("MLXMTP_API_KEY", "of-the-environment")
    assert api_key(None, None) == "of-the-environment"
    assert api_key("given", None) == "given"
    assert api_key(None, str(file)) == "of-the-file"
    for content, found in (
        (b"one\ntwo", "one line"),
        (b"x" * 5000, "one line"),
        (b"\n", "one line"),
        (b"\xff", "no text"),
    ):
        file.write_bytes(content)
        with pytest.raises(OptionError, match=found):
            api_key(None, str(file))
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(OptionError, match="--api-key-file"):
            api_key(None, str(place))
