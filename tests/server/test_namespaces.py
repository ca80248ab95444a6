"""Tools in namespaces, as Codex sends the tools of MCP servers: the model sees one list of tools."""

from typing import Any

import pytest

from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS
from tests.server.scripted import RESPONSES, serving, turn

RESPONSES_API = next(one for one in PROTOCOLS if one.path == RESPONSES)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def function(name: str) -> dict[str, Any]:
    return {"type": "function", "name": name, "parameters": {"type": "object", "properties": {}}}


def namespace(name: str, *tools: str) -> dict[str, Any]:
    return {"type": "namespace", "name": name, "tools": [function(tool) for tool in tools]}


TOOLS = [function("read"), namespace("mcp__a", "search", "read"), namespace("mcp__b", "search")]
FLAT = ["read", "search", "mcp__a__read", "mcp__b__search"]
ORIGINS = [(None, "read"), ("mcp__a", "search"), ("mcp__a", "read"), ("mcp__b", "search")]


@both
@asynchronous
async def test_two_tools_with_the_same_name_can_both_be_called(stream: bool) -> None:
    calls = "\n".join(f'<tool_call>{{"name": "{name}", "arguments": {{}}}}</tool_call>' for name in FLAT)
    async with serving(turn(calls)) as served:
        body = {"input": [{"role": "user", "content": "go"}], "tools": TOOLS}
        if stream:
            parsed = RESPONSES_API.streamed(await served.stream(RESPONSES, body))
        else:
            parsed = RESPONSES_API.whole((await served.post(RESPONSES, body)).json())
        assert [(item.get("namespace"), item["name"]) for item in parsed.echo] == ORIGINS
        assert all(f'"name": "{name}"' in served.prompt for name in FLAT)
        results = RESPONSES_API.results(dict.fromkeys(parsed.call_ids, "done"))
        await served.post(RESPONSES, body | {"input": [*body["input"], *parsed.echo, *results]})
        history = served.prompt.split("</tools>")[1]
        assert [name for name in FLAT if f'{{"name": "{name}", "arguments": {{}}}}' in history] == FLAT
