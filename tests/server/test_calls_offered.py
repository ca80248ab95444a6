"""A tool call is a call only where the request allows it; otherwise it is text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS, ParsedAnswer, Protocol, protocol_id
from tests.server.scripted import LocalServer, serving, turn

PROPERTIES = {"city": {"type": "string"}, "days": {"type": "integer"}, "detailed": {"type": "boolean"}}
WEATHER = ("get_weather", "the weather of a city", {"type": "object", "properties": PROPERTIES})
TIME = ("get_time", "the time", {"type": "object", "properties": {}})
ROME = '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tool_call>'
NOW = '<tool_call>\n{"name": "get_time", "arguments": {}}\n</tool_call>'
NONE = {"/v1/messages": {"type": "none"}}
NAMED = {
    "/v1/messages": {"type": "tool", "name": "get_time"},
    "/v1/responses": {"type": "function", "name": "get_time"},
}

each = pytest.mark.parametrize("protocol", PROTOCOLS, ids=protocol_id)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def ask(served: LocalServer, protocol: Protocol, stream: bool, **more: Any) -> ParsedAnswer:
    body = protocol.ask("How is it?", [WEATHER, TIME], **more)
    if stream:
        return protocol.streamed(await served.stream(protocol.path, body))
    return protocol.whole((await served.post(protocol.path, body)).json())


@each
@both
@asynchronous
async def test_call_tags_are_text_with_tool_choice_none(protocol: Protocol, stream: bool) -> None:
    """The tools stay in the prompt, so that it still matches the prefix cache."""
    async with serving(turn(f"Write {NOW} there.")) as served:
        await ask(served, protocol, stream)
        prompt = served.prompt
        answer = await ask(served, protocol, stream, tool_choice=NONE.get(protocol.path, "none"))
        assert (answer.text, answer.calls, answer.end) == (f"Write {NOW} there.", [], "stop")
        assert served.prompt == prompt


@each
@both
@asynchronous
async def test_a_call_of_a_tool_that_is_not_there_is_text(protocol: Protocol, stream: bool) -> None:
    written = '<tool_call>\n{"name": "get_money", "arguments": {}}\n</tool_call>'
    async with serving(turn(f"So:\n{written}")) as served:
        answer = await ask(served, protocol, stream)
    assert (answer.text, answer.calls, answer.end) == (f"So:\n{written}", [], "stop")


@each
@both
@asynchronous
async def test_a_call_with_arguments_of_other_types_is_a_call(protocol: Protocol, stream: bool) -> None:
    """The tool says what is wrong with them, and the model tries again."""
    calls: list[tuple[str, Any]] = [
        ("get_weather", {"city": 7}),
        ("get_weather", {"city": ["Rome"], "days": 2.5}),
        ("get_weather", {"city": None, "detailed": 1, "more": {}}),
    ]
    written = [
        f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(given)}}}</tool_call>' for name, given in calls
    ]
    async with serving(turn("\n".join(written))) as served:
        answer = await ask(served, protocol, stream)
    assert (answer.text, answer.calls, answer.end) == ("", calls, "tool_calls")


@each
@both
@asynchronous
async def test_a_named_tool_excludes_the_others(protocol: Protocol, stream: bool) -> None:
    named = NAMED.get(protocol.path, {"type": "function", "function": {"name": "get_time"}})
    async with serving(turn(f" {{}}}}\n</tool_call>\n{ROME}")) as served:
        answer = await ask(served, protocol, stream, tool_choice=named)
    assert (answer.text, answer.calls) == (ROME, [("get_time", {})])
