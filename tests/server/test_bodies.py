"""The recorded requests agree with their own `expects`."""

import json
from typing import Any

import pytest

from tests.server.bodies import Body, all_bodies, body

PATHS = {
    "chat": "/v1/chat/completions", "responses": "/v1/responses", "messages": "/v1/messages", "probe": "/",
    "completions": "/v1/completions", "count_tokens": "/v1/messages/count_tokens", "models": "/v1/models",
}  # fmt: skip
CLIENTS = {
    "openai SDK", "anthropic SDK", "aider", "claude-code", "claude-code --bare", "codex", "opencode", "pi", "qwen-code",
    "cline", "continue", "llm", "llm --no-stream", "llm --schema", "mini-swe-agent", "zed", "open-webui",
}  # fmt: skip
SENT = [one for one in all_bodies() if one.body is not None]
KNOWN = {
    "api", "stream", "usage", "roles", "tools", "dropped_tools", "namespaces", "max_tokens", "reasoning", "calls",
    "tool_results", "json_schema", "present", "absent", "ignored",
}  # fmt: skip
each = pytest.mark.parametrize("one", SENT, ids=str)


def strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [text for one in (value.values() if isinstance(value, dict) else value) for text in strings(one)]
    return [value] if isinstance(value, str) else []


def names(tools: list[dict[str, Any]]) -> list[str]:
    found = [tool | tool.get("function", {}) for tool in tools]
    return [name for tool in found for name in (names(tool["tools"]) if "tools" in tool else [tool.get("name")])]


def roles(messages: list[dict[str, Any]]) -> list[str]:
    """Roles, counted in another way than the server does: without leading system messages, and consecutive assistant
    items as one."""
    kinds = {"reasoning": "assistant", "function_call": "assistant", "function_call_output": "tool"}
    found: list[str] = []
    for message in messages:
        role = kinds.get(message.get("type", ""), message.get("role", ""))
        parts = message.get("content")
        results = [part for part in parts or () if isinstance(part, dict) and part.get("type") == "tool_result"]
        found += ["tool"] * len(results)
        nothing_else = results and len(results) == len(parts)
        leading = role in ("system", "developer") and not found
        if leading or nothing_else or (role == "assistant" and found[-1:] == ["assistant"]):
            continue
        found.append(role)
    return found


def test_every_client_is_there() -> None:
    assert {one.client for one in all_bodies()} == CLIENTS


def test_a_body_can_be_changed() -> None:
    first = body("codex-first")
    first.body["model"] = "changed"
    assert body("codex-first").body["model"] == "mlxmtp"
    assert {one.expects["api"] for one in all_bodies("chat", "models")} == {"chat", "models"}


@pytest.mark.parametrize("one", all_bodies(), ids=str)
def test_api_and_path(one: Body) -> None:
    assert one.path.split("?")[0] == PATHS[one.expects["api"]]
    assert (one.method == "POST") == (one.body is not None)
    assert one.expects.keys() <= KNOWN


@each
def test_fields_agree_with_expects(one: Body) -> None:
    sent, expects = one.body, one.expects
    assert expects["stream"] == sent.get("stream", False)
    assert bool(expects.get("usage")) == sent.get("stream_options", {}).get("include_usage", False)
    limits = [sent[name] for name in ("max_tokens", "max_completion_tokens", "max_output_tokens") if name in sent]
    assert ([expects["max_tokens"]] if "max_tokens" in expects else []) == limits
    assert set(expects.get("ignored", ())) <= sent.keys()
    assert bool(expects.get("json_schema")) == ("response_format" in sent)


@each
def test_messages_are_counted(one: Body) -> None:
    if one.expects["api"] == "completions":
        return
    items = one.body.get("messages", one.body.get("input"))
    items = [{"role": "user", "content": items}] if isinstance(items, str) else items
    system = any(item.get("role") in ("system", "developer") for item in items)
    system = system or "system" in one.body or "instructions" in one.body
    assert one.expects["roles"] == ["system"] * system + roles(items)


@each
def test_tools_are_named(one: Body) -> None:
    dropped = one.expects.get("dropped_tools", [])
    sent = [tool for tool in one.body.get("tools", []) if tool.get("type") not in dropped]
    assert names(sent) == one.expects.get("tools", [])
    assert len(sent) + len(dropped) == len(one.body.get("tools", []))


@each
def test_texts_are_there(one: Body) -> None:
    all_of_it = strings(one.body)
    for text in one.expects.get("present", []) + one.expects.get("reasoning", []) + one.expects.get("absent", []):
        assert any(text in found for found in all_of_it), text
    for text in one.expects.get("calls", []):
        assert text in all_of_it
    assert len(one.expects.get("tool_results", [])) == one.expects.get("roles", []).count("tool")


def test_sizes_are_those_of_the_wire() -> None:
    sizes = {name: len(json.dumps(body(name).body)) for name in ("claude-code-first", "codex-first", "qwen-code-first")}
    assert sizes["claude-code-first"] > 20_000
    assert sizes["codex-first"] > 20_000
    assert sizes["qwen-code-first"] > 45_000
