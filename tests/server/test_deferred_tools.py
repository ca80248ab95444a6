"""Tools that stay out of the prompt until the conversation shows them, and tools that the conversation itself adds."""

from __future__ import annotations

import json
from typing import Any

from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS
from tests.server.scripted import CHAT, MESSAGES, RESPONSES, parse, serving, turn

Body = dict[str, Any]

SCHEMA = {"type": "object", "properties": {"days": {"type": "integer"}}}
HI = {"role": "user", "content": "hi"}
BY_PATH = {one.path: one for one in PROTOCOLS}
FOUND = {"name": "forecast", "description": "the weather to come", "parameters": SCHEMA}
"""How the conversation shows the tool."""


def tool(path: str, name: str, description: str, **more: Any) -> Body:
    if path == MESSAGES:
        return {"name": name, "description": description, "input_schema": SCHEMA, **more}
    function = {"name": name, "description": description, "parameters": SCHEMA}
    return {"type": "function", **({"function": function} if path == CHAT else function), **more}


def tools(path: str) -> list[Body]:
    return [tool(path, "search", "finds tools"), tool(path, "forecast", FOUND["description"], defer_loading=True)]


@asynchronous
async def test_a_deferred_tool_is_not_in_the_prompt_and_can_be_called() -> None:
    """Its arguments get the types of its schema."""
    async with serving(turn('<tool_call>{"name": "forecast", "arguments": {"days": "3"}}</tool_call>')) as served:
        for path, protocol in BY_PATH.items():
            body = protocol.ask("hi") | {"tools": tools(path)}
            answer = protocol.whole((await served.post(path, body)).json())
            assert answer.calls == [("forecast", {"days": 3})], path
            assert '"name": "search"' in served.prompt
            assert "forecast" not in served.prompt, path
            request = parse(path, tools=tools(path))
            assert request.callable_tools == ("search", "forecast")
            assert [each["function"]["name"] for each in request.tools] == ["search"]


@asynchronous
async def test_a_deferred_tool_can_be_forced() -> None:
    async with serving(turn(' {"days": 3}}\n</tool_call>')) as served:
        body = BY_PATH[MESSAGES].ask("hi") | {"tools": tools(MESSAGES)[1:], "tool_choice": {"type": "any"}}
        answer = BY_PATH[MESSAGES].whole((await served.post(MESSAGES, body)).json())
        assert answer.calls == [("forecast", {"days": 3})]
        assert '"name": "forecast"' in served.command.opening


def test_a_tool_reference_is_the_definition_of_the_tool() -> None:
    reference = {"type": "tool_reference", "tool_name": "forecast"}
    unknown = {"type": "tool_reference", "tool_name": "other"}
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "search", "input": {}}]}
    result = {"type": "tool_result", "tool_use_id": "c", "content": [reference, unknown]}
    history = [HI, call, {"role": "user", "content": [result]}]
    messages: Any = parse(MESSAGES, messages=history, tools=tools(MESSAGES)).messages
    shown, missing = messages[-1]["content"].split("\n")
    assert json.loads(shown) == FOUND
    assert missing == "[other: a tool that is not here]"


def test_a_hosted_search_is_not_here_so_that_all_tools_are_in_the_prompt() -> None:
    for path, search in (
        (MESSAGES, {"type": "tool_search_tool_regex_20251119", "name": "tool_search_tool_regex"}),
        (RESPONSES, {"type": "tool_search"}),
    ):
        request = parse(path, tools=[search, *tools(path)])
        assert [each["function"]["name"] for each in request.tools] == ["search", "forecast"], path
        assert request.dropped == (f"tool {search.get('name', 'tool_search')}",)


def test_tools_that_the_conversation_adds_can_be_called() -> None:
    by_value = {"type": "tool_definition", "definition": tool(MESSAGES, "forecast", FOUND["description"])}
    by_name = {"type": "tool_reference", "name": "forecast"}
    added: list[tuple[str, list[Body]]] = [
        (MESSAGES, [HI, {"role": "system", "content": [{"type": "tool_addition", "tool": by_value}]}]),
        (RESPONSES, [HI, {"type": "additional_tools", "role": "developer", "tools": [tool(RESPONSES, **NAMED)]}]),
        (
            RESPONSES,
            [
                HI,
                {"type": "tool_search_call", "call_id": "c", "execution": "client", "arguments": {"query": "weather"}},
                {"type": "tool_search_output", "call_id": "c", "tools": [tool(RESPONSES, **NAMED)]},
            ],
        ),
    ]
    for path, history in added:
        request = parse(path, **{"input" if path == RESPONSES else "messages": history})
        messages: Any = request.messages
        assert json.loads(messages[-1]["content"]) == FOUND, history
        assert (request.callable_tools, request.tools) == (("forecast",), []), history
    history = [HI, {"role": "system", "content": [{"type": "tool_addition", "tool": by_name}]}]
    messages = parse(MESSAGES, messages=history, tools=tools(MESSAGES)).messages
    assert json.loads(messages[-1]["content"]) == FOUND


NAMED = {"name": "forecast", "description": FOUND["description"]}
