"""Freeform tools of OpenAI's protocols: offered as a function of one text, and answered as their protocol wants it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripted_engine import asynchronous
from tests.server.scripted import CHAT, RESPONSES, LocalServer, parse, serving, turn

PATCH = '*** Begin Patch\n+ "a"\n*** End Patch'
GRAMMAR = 'start: "*** Begin Patch" /.+/'
FORMAT = {"type": "grammar", "syntax": "lark", "definition": GRAMMAR}
TOOLS: dict[str, list[dict[str, Any]]] = {
    RESPONSES: [
        {"type": "custom", "name": "apply_patch", "description": "Edits files.", "format": FORMAT},
        {"type": "function", "name": "look", "parameters": {"type": "object"}},
        {"type": "namespace", "name": "notes", "tools": [{"type": "custom", "name": "write"}]},
    ],
    CHAT: [
        {
            "type": "custom",
            "custom": {
                "name": "apply_patch",
                "description": "Edits files.",
                "format": {"type": "grammar", "grammar": {"syntax": "lark", "definition": GRAMMAR}},
            },
        },
        {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}},
    ],
}
ASK: dict[str, dict[str, Any]] = {
    RESPONSES: {"input": [{"role": "user", "content": "go"}], "tools": TOOLS[RESPONSES]},
    CHAT: {"messages": [{"role": "user", "content": "go"}], "tools": TOOLS[CHAT]},
}
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def call(name: str, **arguments: Any) -> str:
    return f"<tool_call>{json.dumps({'name': name, 'arguments': arguments})}</tool_call>"


async def calls(served: LocalServer, path: str, stream: bool) -> list[dict[str, Any]]:
    """The calls of an answer, in the shape of the protocol."""
    if not stream:
        answer = (await served.post(path, ASK[path])).json()
        return answer["output"] if path == RESPONSES else answer["choices"][0]["message"]["tool_calls"]
    events = [event.data for event in await served.stream(path, ASK[path])]
    if path == CHAT:
        deltas = [event["choices"][0]["delta"] for event in events[:-1]]
        found = [one for delta in deltas for one in delta.get("tool_calls", ())]
        assert [one.pop("index") for one in found] == list(range(len(found)))
        return found
    items = events[-1]["response"]["output"]
    for i, item in enumerate(items):
        added, delta, done, ended = [event for event in events if event.get("output_index") == i]
        field = "input" if item["type"] == "custom_tool_call" else "arguments"
        kind = "custom_tool_call_input" if field == "input" else "function_call_arguments"
        assert added["item"] == item | {"status": "in_progress", field: ""}
        assert (delta["type"], delta["delta"]) == (f"response.{kind}.delta", item[field])
        assert (done["type"], done[field]) == (f"response.{kind}.done", item[field])
        assert ended["item"] == item
    return items


@both
@asynchronous
async def test_a_freeform_tool_is_offered_called_and_remembered(stream: bool) -> None:
    said = call("apply_patch", input=PATCH) + "\n" + call("look")
    async with serving(turn(said)) as served:
        for path in (CHAT, RESPONSES):
            freeform, function = await calls(served, path, stream)
            shown = served.prompt.split("</tools>")[0]
            assert '"name": "apply_patch"' in shown
            assert json.dumps(f"Edits files.\n\nThe input is text of this lark grammar:\n{GRAMMAR}") in shown
            if path == CHAT:
                assert (freeform["type"], freeform["custom"]) == ("custom", {"name": "apply_patch", "input": PATCH})
                assert (function["type"], function["function"]) == ("function", {"name": "look", "arguments": "{}"})
                history = [{"role": "assistant", "content": None, "tool_calls": [freeform, function]}]
                more = {"messages": [*ASK[path]["messages"], *history, {"role": "user", "content": "and?"}]}
            else:
                assert [freeform["type"], function["type"]] == ["custom_tool_call", "function_call"]
                assert (freeform["name"], freeform["input"], freeform["status"]) == ("apply_patch", PATCH, "completed")
                output = {"type": "custom_tool_call_output", "call_id": freeform["call_id"], "output": "Done."}
                more = {"input": [*ASK[path]["input"], freeform, function, output]}
                messages: Any = parse(path, **(ASK[path] | more)).messages
                assert messages[-1] == {"role": "tool", "content": "Done.", "tool_call_id": freeform["call_id"]}
            response = await served.post(path, ASK[path] | more)
            assert response.status_code == 200, response.text
            assert f'"arguments": {json.dumps({"input": PATCH})}' in served.prompt.split("</tools>")[1]


@both
@asynchronous
async def test_other_arguments_than_one_text_are_passed_on_whole(stream: bool) -> None:
    said = call("apply_patch", patch=PATCH) + "\n" + call("apply_patch", input=["a"])
    async with serving(turn(said)) as served:
        for path in (CHAT, RESPONSES):
            found = [(one.get("custom") or one)["input"] for one in await calls(served, path, stream)]
            assert [json.loads(text) for text in found] == [{"patch": PATCH}, {"input": ["a"]}], path


@asynchronous
async def test_a_freeform_tool_of_a_namespace_keeps_both_names() -> None:
    async with serving(turn(call("write", input="Hello"))) as served:
        [item] = await calls(served, RESPONSES, stream=True)
        assert (item["namespace"], item["name"], item["input"]) == ("notes", "write", "Hello")
        answer = (await served.post(RESPONSES, ASK[RESPONSES])).json()
        assert [tool["type"] for tool in answer["tools"]] == ["custom", "function", "custom"]


def test_a_freeform_tool_can_be_chosen() -> None:
    chosen: list[tuple[str, dict[str, Any]]] = [
        (RESPONSES, {"type": "custom", "name": "apply_patch"}),
        (CHAT, {"type": "custom", "custom": {"name": "apply_patch"}}),
        (
            RESPONSES,
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "custom", "name": "apply_patch"}]},
        ),
        (CHAT, {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [TOOLS[CHAT][0]]}}),
    ]
    for path, choice in chosen:
        request = parse(path, tools=TOOLS[path], tool_choice=choice)
        assert (request.callable_tools, request.tool_choice) == (("apply_patch",), "apply_patch"), choice
    assert [tool["function"]["name"] for tool in parse(CHAT, tools=TOOLS[CHAT]).tools] == ["apply_patch", "look"]
