"""What a model writes as a call is one only where it was asked for; else it is text."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS, Heard, Protocol, protocol_id
from tests.server.scripted import Served, serving, turn

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


async def heard(served: Served, protocol: Protocol, stream: bool, **more: Any) -> Heard:
    body = protocol.ask("How is it?", [WEATHER, TIME], **more)
    if stream:
        return protocol.streamed(await served.stream(protocol.path, body))
    return protocol.whole((await served.post(protocol.path, body)).json())


@each
@both
@asynchronous
async def test_marks_of_calls_are_text_where_none_is_wanted(protocol: Protocol, stream: bool) -> None:
    """The tools stay in the prompt: what the cache has of it can go on being used."""
    async with serving(turn(f"Write {NOW} there.")) as served:
        await heard(served, protocol, stream)
        prompt = served.prompt
        said = await heard(served, protocol, stream, tool_choice=NONE.get(protocol.path, "none"))
        assert (said.text, said.calls, said.end) == (f"Write {NOW} there.", [], "stop")
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
async def test_a_call_of_what_is_not_offered_is_text(protocol: Protocol, stream: bool, strange: str) -> None:
    written = f"<tool_call>\n{strange}\n</tool_call>"
    async with serving(turn(f"So:\n{written}")) as served:
        said = await heard(served, protocol, stream)
    assert (said.text, said.calls, said.end) == (f"So:\n{written}", [], "stop")


@each
@both
@asynchronous
async def test_where_a_tool_is_named_no_other_is_called(protocol: Protocol, stream: bool) -> None:
    named = NAMED.get(protocol.path, {"type": "function", "function": {"name": "get_time"}})
    async with serving(turn(f" {{}}}}\n</tool_call>\n{ROME}")) as served:
        said = await heard(served, protocol, stream, tool_choice=named)
    assert (said.text, said.calls) == (ROME, [("get_time", {})])
