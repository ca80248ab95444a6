"""Requests of real clients: what is parsed from them, and what is answered."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject
from mlxmtp.server.request import Request
from tests.scripted_engine import asynchronous
from tests.server.bodies import Body, all_bodies
from tests.server.protocols import PROTOCOLS
from tests.server.scripted import COMPLETIONS, LocalServer, adapter, parse_events, serving, turn

BY_PATH = {one.path: one for one in PROTOCOLS}
TURNS = all_bodies("chat", "responses", "messages")
DOG = '{"name": "Rex", "age": 3, "bio": "A good dog."}'
each = pytest.mark.parametrize("one", TURNS, ids=str)


def path_of(one: Body) -> str:
    return one.path.split("?")[0]


def parsed_request(one: Body, without: tuple[str, ...] = ()) -> Request:
    body = {name: value for name, value in copy.deepcopy(one.body or {}).items() if name not in without}
    return adapter(path_of(one)).parse(JsonObject(body), GenerationOptions(max_tokens=None))


async def ask(served: LocalServer, one: Body) -> Any:
    headers = {name: value for name, value in one.headers.items() if name != "content-length"}
    return await served.http.request(one.method, one.path, json=one.body, headers=headers)


@each
def test_the_request_is_parsed(one: Body) -> None:
    request, expects = parsed_request(one), one.expects
    messages: Any = request.messages
    assert [message["role"] for message in messages] == expects["roles"]
    assert [tool["function"]["name"] for tool in request.tools] == expects.get("tools", [])
    calls = [call["function"]["name"] for message in messages for call in message.get("tool_calls", ())]
    assert calls == expects.get("calls", [])
    assert [message["content"] for message in messages if message["role"] == "tool"] == expects.get("tool_results", [])
    thoughts = [message["reasoning_content"] for message in messages if message.get("reasoning_content")]
    assert thoughts == expects.get("reasoning", [])
    assert {name: space for name, (space, _) in request.tool_set.namespaces.items()} == expects.get("namespaces", {})
    assert request.options.max_tokens == expects.get("max_tokens")
    assert bool(request.options.json_schema) == expects.get("json_schema", False)
    assert (request.stream, request.stream and request.include_usage) == (
        expects["stream"],
        expects.get("usage", False),
    )


@pytest.mark.parametrize("one", [one for one in TURNS if "ignored" in one.expects], ids=str)
def test_ignored_fields_change_nothing(one: Body) -> None:
    whole, plain = parsed_request(one), parsed_request(one, without=tuple(one.expects["ignored"]))
    assert plain == replace(whole, dropped=plain.dropped, echo=plain.echo)
    assert set(whole.dropped) - set(plain.dropped) <= set(one.expects["ignored"])


@each
@asynchronous
async def test_the_answer(one: Body) -> None:
    said = DOG if one.expects.get("json_schema") else "Certainly."
    async with serving(turn(said), context=200_000) as served:
        response = await ask(served, one)
        assert response.status_code == 200, response.text
        protocol = BY_PATH[path_of(one)]
        answer = protocol.parse(response.text, one.expects["stream"])
        assert (answer.text, answer.end) == (said, "stop")
        if one.expects["stream"] and one.expects["api"] == "chat":
            assert bool(answer.usage) == one.expects.get("usage", False)
        for text in one.expects.get("present", ()):
            assert text in served.prompt
        for text in one.expects.get("absent", ()):
            assert text not in served.prompt
        for name in one.expects.get("tools", ()):
            assert name in served.prompt


@pytest.mark.parametrize("one", [one for one in TURNS if one.expects.get("tools")], ids=str)
@asynchronous
async def test_a_call(one: Body) -> None:
    """A call of the client's first tool."""
    name = one.expects["tools"][0]
    said = f'<tool_call>\n{{"name": "{name}", "arguments": {{}}}}\n</tool_call>'
    async with serving(turn(said), context=200_000) as served:
        response = await ask(served, one)
        assert response.status_code == 200, response.text
        protocol = BY_PATH[path_of(one)]
        answer = protocol.parse(response.text, one.expects["stream"])
        assert (answer.calls, answer.end) == ([(name, {})], "tool_calls")


@pytest.mark.parametrize("one", all_bodies("completions"), ids=str)
@asynchronous
async def test_completions(one: Body) -> None:
    async with serving(turn(" four")) as served:
        response = await ask(served, one)
        assert response.status_code == 200, response.text
        streamed = one.expects["stream"]
        events = [event.data for event in parse_events(response.text)[:-1]] if streamed else [response.json()]
        assert "".join(choice["text"] for event in events for choice in event["choices"]) == " four"
        assert bool([event for event in events if event.get("usage")]) == (
            one.expects.get("usage", False) or not one.expects["stream"]
        )
        assert served.command.settings.max_tokens == one.expects["max_tokens"]
        assert served.command.raw
        for text in one.expects["present"]:
            assert text in served.prompt
    plain = {name: value for name, value in (one.body or {}).items() if name not in one.expects.get("ignored", ())}
    defaults = GenerationOptions(max_tokens=None)
    assert adapter(COMPLETIONS).parse(JsonObject(plain), defaults) == parsed_request(one)


@pytest.mark.parametrize("one", all_bodies("models", "probe", "count_tokens"), ids=str)
@asynchronous
async def test_requests_without_a_turn(one: Body) -> None:
    async with serving(turn("fine"), context=200_000) as served:
        response = await ask(served, one)
        assert response.status_code == 200, response.text
        if one.expects["api"] == "models":
            assert response.json()["data"]
        if one.expects["api"] == "count_tokens":
            turned = replace(one, path="/v1/messages", body={"max_tokens": 8} | (one.body or {}))
            assert (await ask(served, turned)).status_code == 200
            assert response.json() == {"input_tokens": len(served.command.messages)}
