"""API key, cross-origin requests, size of bodies, unknown paths; the endpoints without a turn; forced tool calls."""

from __future__ import annotations

import asyncio
import gzip
import json

import pytest

from mlxmtp.worker.messages import Generate
from tests.scripted_engine import asynchronous, until
from tests.server.scripted import ALL, CHAT, COUNT, MESSAGES, MINIMAL, LocalServer, parse_error, serving, turn

each = pytest.mark.parametrize("path", [*ALL, COUNT])
KEYS = [
    {"authorization": "Bearer secret"},
    {"authorization": "bearer  secret"},
    {"x-api-key": "secret"},
    {"x-api-key": "of another service", "authorization": "Bearer secret"},
    {"x-api-key": "secret", "authorization": "Bearer other"},
]
NO_KEYS = [
    {},
    {"authorization": "Bearer wrong"},
    {"authorization": "secret"},
    {"authorization": "Basic secret"},
    {"authorization": "Bearer "},
    {"x-api-key": ""},
    {"x-api-key": "secret "[:-2]},
    {"x-api-key": "gehe\u00efm".encode("latin-1")},
]


@each
@asynchronous
async def test_the_api_key_is_required(path: str) -> None:
    async with serving(turn("fine"), api_key="secret") as served:
        good = MINIMAL[MESSAGES if path == COUNT else path]
        for headers in KEYS:
            assert (await served.post(path, good, headers=headers)).status_code == 200
        asked = len(served.engine.commands)
        for headers in NO_KEYS:
            response = await served.post(path, MINIMAL[CHAT], headers=headers)
            assert response.status_code == 401
            assert parse_error(path, response.json())["type"] == "authentication_error"
            assert "secret" not in response.text
        assert len(served.engine.commands) == asked


@asynchronous
async def test_only_health_needs_no_key() -> None:
    async with serving(api_key="secret") as served:
        assert (await served.http.get("/health")).status_code == 200
        for path in ("/v1/models", "/metrics", "/", "/nowhere", "/v1/messages"):
            assert (await served.http.get(path)).status_code == 401


@asynchronous
async def test_web_pages_of_allowed_origins() -> None:
    async with serving(turn("fine"), api_key="secret", origins=("https://app.example",)) as served:
        wish = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
        allowed = {"origin": "https://app.example"}
        preflight = await served.http.options(CHAT, headers=allowed | wish)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == "https://app.example"
        assert "POST" in preflight.headers["access-control-allow-methods"]
        assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
        for key, status in (("secret", 200), ("wrong", 401)):  # the page must be able to read the error
            response = await served.post(CHAT, headers=allowed | {"authorization": f"Bearer {key}"})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == "https://app.example"
        stranger = {"origin": "https://evil.example"}
        assert "access-control-allow-origin" not in (await served.http.options(CHAT, headers=stranger | wish)).headers
        assert "access-control-allow-origin" not in (await served.post(CHAT, headers=stranger)).headers


@asynchronous
async def test_without_origins_no_web_page_is_allowed() -> None:
    async with serving(turn("fine")) as served:
        page = {"origin": "https://app.example", "access-control-request-method": "POST"}
        response = await served.http.options(CHAT, headers=page)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers
        assert "access-control-allow-origin" not in (await served.post(CHAT, headers=page)).headers


@each
@asynchronous
async def test_a_body_over_the_limit_is_refused(path: str) -> None:
    async with serving(turn("fine"), max_body=1000) as served:
        good = MINIMAL[MESSAGES if path == COUNT else path]
        assert (await served.post(path, good | {"user": "x" * 800})).status_code == 200
        response = await served.post(path, good | {"user": "x" * 1000})
        assert response.status_code == 413
        about = parse_error(path, response.json())
        assert about["type"] == "request_too_large"
        assert "1,000" in about["message"]
        assert "--max-body" in about["message"]


@each
@asynchronous
async def test_a_compressed_body_is_refused(path: str) -> None:
    async with serving(turn("fine")) as served:
        good = json.dumps(MINIMAL[MESSAGES if path == COUNT else path]).encode()
        response = await served.http.post(path, content=gzip.compress(good), headers={"content-encoding": "gzip"})
        assert response.status_code == 415
        assert "content-encoding is gzip" in parse_error(path, response.json())["message"]
        response = await served.http.post(path, content=good, headers={"content-encoding": "identity"})
        assert response.status_code == 200


@asynchronous
async def test_a_body_without_a_length_is_read_up_to_the_limit() -> None:
    """A client that goes on sending is answered too."""
    async with serving(turn("fine"), max_body=1000) as served, served.over_socket() as online:
        address = online.http.base_url
        reader, writer = await asyncio.open_connection(address.host, address.port)
        writer.write(b"POST /v1/messages HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\n")
        writer.write(b"transfer-encoding: chunked\r\n\r\n")
        for _ in range(20):
            writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)
        assert b" 413 " in head
        writer.close()
        await online.assert_works()


@asynchronous
async def test_a_client_that_disconnects_in_its_body() -> None:
    async with serving(turn("fine")) as served, served.over_socket() as online:
        address = online.http.base_url
        for path in (CHAT, COUNT):
            _, writer = await asyncio.open_connection(address.host, address.port)
            head = f"POST {path} HTTP/1.1\r\nhost: a\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n"
            writer.write(f"{head}{{".encode())
            await writer.drain()
            await asyncio.sleep(0.02)
            writer.close()
        await until(lambda: sum(" 499 " in line for line in served.log) == 2, "its line in the log")
        await online.assert_works()


@asynchronous
async def test_unknown_paths_and_methods() -> None:
    async with serving(turn("fine")) as served:
        for path in ("/v1/embeddings", "/v1/chat", "/v1/messages/batches", "/v1/responses/resp_1", "/\u00e9"):
            response = await served.http.post(path, json={})
            assert response.status_code == 404
            about = parse_error(path, response.json())
            assert about["type"] == "not_found_error"
            assert CHAT in about["message"]
        for path in (*ALL, COUNT):
            response = await served.http.get(path)
            assert response.status_code == 405
            assert response.headers["allow"] == "POST"
            assert parse_error(path, response.json())["message"] == f"{path} does not take GET; expected POST"
        await served.assert_works()


@asynchronous
async def test_hello_and_health() -> None:
    async with serving() as served:
        for path in ("/", "/api/hello"):
            assert (await served.http.head(path)).status_code == 200
            assert (await served.http.get(path)).json()["model"] == "demo"
        health = await served.http.get("/health")
        assert (health.status_code, health.json()) == (200, {"status": "ok"})


@asynchronous
async def test_health_while_there_is_no_engine() -> None:
    async with serving() as served:
        served.engines.script.clear()  # the next engine does not finish loading
        served.engine.die()
        await until(lambda: not served.host.ready, "its end")
        health = await served.http.get("/health")
        assert (health.status_code, health.json()) == (503, {"status": "loading"})


@asynchronous
async def test_the_model_is_listed_and_any_name_means_it() -> None:
    async with serving(turn("fine"), context=2048) as served:
        listed = (await served.http.get("/v1/models")).json()
        [model] = listed["data"]
        assert (listed["object"], listed["has_more"], listed["first_id"]) == ("list", False, "demo")
        assert (model["id"], model["object"], model["type"]) == ("demo", "model", "model")
        assert model["max_model_len"] == 2048
        for name in ("demo", "gpt-9", "claude-sonnet-4-5", "mlx-community/Some-Model"):
            assert (await served.http.get(f"/v1/models/{name}")).json() == model
            answer = await served.post(CHAT, MINIMAL[CHAT] | {"model": name})
            assert answer.json()["model"] == "demo"


@asynchronous
async def test_tokens_are_counted_as_a_turn_would_read_them() -> None:
    async with serving(turn("fine")) as served:
        tool = {"name": "f", "description": "does it", "input_schema": {"type": "object"}}
        for more in ({}, {"system": "Be brief."}, {"tools": [tool]}):
            body = MINIMAL[MESSAGES] | more
            counted = await served.post(COUNT, body)
            await served.post(MESSAGES, body)
            assert counted.json() == {"input_tokens": len(served.command.messages)}
        assert len(served.engine.sent(Generate)) == 3
        response = await served.post(COUNT, {"messages": []})
        assert response.status_code == 400
        assert "messages" in parse_error(COUNT, response.json())["message"]


async def forced(served: LocalServer, choice: object, *names: str) -> tuple[str, str]:
    """The opening and the prompt of a request with a tool choice."""
    tools = [{"type": "function", "function": {"name": name, "parameters": {"type": "object"}}} for name in names]
    response = await served.post(CHAT, MINIMAL[CHAT] | {"tools": tools, "tool_choice": choice})
    assert response.status_code == 200, response.text
    return served.command.opening, served.prompt


@pytest.mark.parametrize("name", ["get_weather", "name", "tool_call", "call", "a"])
@asynchronous
async def test_a_tool_choice_is_the_opening_of_the_answer(name: str) -> None:
    """The answer begins as the chat template writes a call, and the engine continues it."""
    async with serving(turn(' {"city": "Rome"}}\n</tool_call>')) as served:
        choice = {"type": "function", "function": {"name": name}}
        opening, prompt = await forced(served, choice, name)
        assert opening == f'<tool_call>\n{{"name": "{name}", "arguments":'
        assert prompt.endswith("assistant\n" + opening)
        body = MINIMAL[CHAT] | {"tools": [{"function": {"name": name}}], "tool_choice": choice}
        [call] = (await served.post(CHAT, body)).json()["choices"][0]["message"]["tool_calls"]
        assert call["function"] == {"name": name, "arguments": '{"city": "Rome"}'}
        assert (await forced(served, "required", name))[0] == opening  # the only tool
        opening, prompt = await forced(served, "required", name, "other")
        assert opening == "<tool_call>\n"
        assert prompt.endswith("assistant\n<tool_call>\n")
        for choice in ("auto", "none"):
            assert await forced(served, choice, name, "other") == ("", prompt.removesuffix("<tool_call>\n"))
