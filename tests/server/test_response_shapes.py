"""The response object of Responses: repeated fields of the request, and the status at its end."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripted_engine import asynchronous
from tests.server.scripted import RESPONSES, LocalServer, serving, turn

TOOLS = [{"type": "function", "name": name, "parameters": {"type": "object"}} for name in ("look", "read")]
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


async def responses(served: LocalServer, stream: bool, **more: Any) -> list[dict[str, Any]]:
    """All response objects of an answer."""
    body = {"input": "hi"} | more
    if not stream:
        return [(await served.post(RESPONSES, body)).json()]
    return [one.data["response"] for one in await served.stream(RESPONSES, body) if "response" in one.data]


@both
@asynchronous
async def test_fields_of_the_request_are_repeated(stream: bool) -> None:
    told: dict[str, Any] = {"instructions": "Be brief.", "metadata": {"a": "b"}, "max_output_tokens": 9}
    async with serving(turn("fine")) as served:
        for answer in await responses(served, stream, **told):
            assert {name: answer[name] for name in told} == told
        for answer in await responses(served, stream):
            assert {name: answer[name] for name in told} == dict.fromkeys(told) | {"metadata": {}}


@both
@pytest.mark.parametrize(
    "choice",
    [
        "none",
        "required",
        {"type": "function", "name": "look"},
        {"type": "allowed_tools", "mode": "auto", "tools": [{"type": "function", "name": "look"}]},
    ],
)
@asynchronous
async def test_the_tool_choice_is_repeated(stream: bool, choice: Any) -> None:
    async with serving(turn("fine")) as served:
        for answer in await responses(served, stream, tools=TOOLS, tool_choice=choice):
            assert answer["tool_choice"] == choice
            assert [tool["name"] for tool in answer["tools"]] == ["look", "read"]
        assert {answer["tool_choice"] for answer in await responses(served, stream, tools=TOOLS)} == {"auto"}


@both
@asynchronous
async def test_a_message_that_the_limit_cuts_is_incomplete(stream: bool) -> None:
    async with serving(turn("<think>Hm.</think>Once upon", "length")) as served:
        answer = (await responses(served, stream))[-1]
        assert (answer["status"], answer["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
        [message] = [item for item in answer["output"] if item["type"] == "message"]
        assert (message["status"], message["content"][0]["text"]) == ("incomplete", "Once upon")
    async with serving(turn("Once upon")) as served:
        answer = (await responses(served, stream))[-1]
        assert [answer["status"], answer["output"][0]["status"]] == ["completed", "completed"]


@asynchronous
async def test_a_call_before_the_limit_is_complete() -> None:
    said = 'So.\n<tool_call>{"name": "look", "arguments": {}}</tool_call>\nAnd then'
    async with serving(turn(said, "length")) as served:
        answer = (await responses(served, stream=True, tools=TOOLS))[-1]
        found = [(item["type"], item["status"]) for item in answer["output"]]
        assert found == [("message", "completed"), ("function_call", "completed"), ("message", "incomplete")]
