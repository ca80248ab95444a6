"""A tool call is a call only where the request allows it; otherwise it is text."""

from __future__ import annotations

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
@pytest.mark.parametrize(
    "strange",
    [
        '{"name": "get_money", "arguments": {}}',
        '{"name": "get_weather", "arguments": {"city": 7}}',
        '{"name": "get_weather", "arguments": {"city": ["Rome"]}}',
        '{"name": "get_weather", "arguments": {"city": "Rome", "days": 2.5}}',
        '{"name": "get_weather", "arguments": {"city": "Rome", "detailed": 1}}',
    ],
)
@asynchronous
async def test_a_call_that_no_tool_takes_is_text(protocol: Protocol, stream: bool, strange: str) -> None:
    written = f"<tool_call>\n{strange}\n</tool_call>"
    async with serving(turn(f"So:\n{written}")) as served:
        answer = await ask(served, protocol, stream)
    assert (answer.text, answer.calls, answer.end) == (f"So:\n{written}", [], "stop")


@each
@both
@asynchronous
async def test_a_named_tool_excludes_the_others(protocol: Protocol, stream: bool) -> None:
    named = NAMED.get(protocol.path, {"type": "function", "function": {"name": "get_time"}})
    async with serving(turn(f" {{}}}}\n</tool_call>\n{ROME}")) as served:
        answer = await ask(served, protocol, stream, tool_choice=named)
    assert (answer.text, answer.calls) == (ROME, [("get_time", {})])
