"""Answers that a client sends back become the same chat messages again; messages of every kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject
from tests.scripted_engine import asynchronous
from tests.server.protocols import PROTOCOLS, ParsedAnswer, Protocol, protocol_id
from tests.server.scripted import CHAT, MESSAGES, RESPONSES, LocalServer, adapter, serving, tokenizer, turn

TOOL = ("get_weather", "the weather", {"type": "object", "properties": {"city": {"type": "string"}}})
ROME = '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>'
BERN = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
ANSWERS = {
    "text": "Sunny.",
    "thinking": "<think>\nHm.\n</think>\n\nSunny.",
    "call": ROME,
    "calls": f"{ROME}\n{BERN}",
    "all": f"<think>\nHm.\n</think>\n\nI look.\n{ROME}\n{BERN}",
    "only thinking": "<think>\nHm.",
}
REASONING_TEMPLATE = (
    "{% for m in messages %}[{{ m.role }}:{{ m.reasoning_content or '' }}|{{ m.content }}"
    "|{% for c in m.tool_calls or [] %}{{ c.function.name }}({{ c.function.arguments.city }}){% endfor %}]{% endfor %}"
)

each = pytest.mark.parametrize("protocol", PROTOCOLS, ids=protocol_id)
both = pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])


def messages(path: str, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The chat messages of a body."""
    found = adapter(path).parse(JsonObject(json.loads(json.dumps(body))), GenerationOptions()).messages
    assert isinstance(found, list)
    return found  # type: ignore[return-value]


async def answered(served: LocalServer, protocol: Protocol, stream: bool) -> tuple[dict[str, Any], ParsedAnswer]:
    body = protocol.ask("How is it?", [TOOL])
    if stream:
        return body, protocol.streamed(await served.stream(protocol.path, body))
    return body, protocol.whole((await served.post(protocol.path, body)).json())


@each
@both
@pytest.mark.parametrize("kind", ANSWERS)
@asynchronous
async def test_an_answer_that_is_sent_back_is_unchanged(protocol: Protocol, stream: bool, kind: str) -> None:
    async with serving(turn(ANSWERS[kind])) as served:
        body, parsed = await answered(served, protocol, stream)
    results = protocol.results({id: f"result {i}" for i, id in enumerate(parsed.call_ids)})
    body[protocol.turns] += [*parsed.echo, *results, {"role": "user", "content": "And?"}]
    found = messages(protocol.path, body)
    assert [found[0], found[-1]] == [{"role": "user", "content": "How is it?"}, {"role": "user", "content": "And?"}]
    answer = dict(found[1])
    expected: dict[str, Any] = {"role": "assistant", "content": parsed.text}
    assert ("reasoning_content" in answer) == ("think" in ANSWERS[kind])
    if "think" in ANSWERS[kind]:
        expected["reasoning_content"] = "Hm."
    cities = [city for city in ("Rome", "Bern") if city in ANSWERS[kind]]
    if cities:
        assert [call["id"] for call in answer["tool_calls"]] == parsed.call_ids
        calls = [{"name": "get_weather", "arguments": {"city": city}} for city in cities]
        assert [call["function"] for call in answer.pop("tool_calls")] == calls
    assert answer == expected
    tools = [(one["role"], one["content"], one["tool_call_id"]) for one in found[2:-1]]
    assert tools == [("tool", f"result {i}", id) for i, id in enumerate(parsed.call_ids)]


@each
@both
@asynchronous
async def test_reasoning_that_is_sent_back_is_in_the_prompt(protocol: Protocol, stream: bool) -> None:
    from mlxmtp.checkpoints.checkpoint import DEMO
    from mlxmtp.engine.loading import load_tokenizer

    tokens = load_tokenizer(DEMO)
    tokens._tokenizer.chat_template = REASONING_TEMPLATE
    async with serving(turn(ANSWERS["all"]), tokens=tokens) as served:
        body, parsed = await answered(served, protocol, stream)
        results = protocol.results(dict.fromkeys(parsed.call_ids, "fine"))
        body[protocol.turns] += [*parsed.echo, *results]
        await served.post(protocol.path, body)
        assert served.prompt == (
            "[user:|How is it?|][assistant:Hm.|I look.|get_weather(Rome)get_weather(Bern)][tool:|fine|][tool:|fine|]"
        )


@asynchronous
async def test_the_prompt_of_the_demo_with_tools() -> None:
    async with serving(turn("Sunny.")) as served:
        body, _ = await answered(served, PROTOCOLS[0], stream=False)
        template = [{"role": "user", "content": "How is it?"}]
        assert served.prompt == tokenizer().apply_chat_template(
            template, tools=body["tools"], add_generation_prompt=True, tokenize=False
        )


def test_leading_system_messages_are_merged_and_later_ones_stay() -> None:
    system = [{"role": role, "content": f"{role} {i}"} for i, role in enumerate(["developer", "system", "system"])]
    user = {"role": "user", "content": "hi"}
    expected = [{"role": "system", "content": "developer 0\n\nsystem 1"}, user, system[2]]
    assert messages(CHAT, {"messages": [*system[:2], user, system[2]]}) == expected
    assert messages(RESPONSES, {"instructions": "developer 0", "input": [system[1], user, system[2]]}) == expected
    body = {"system": [{"type": "text", "text": "developer 0"}], "messages": [system[1], user, system[2]]}
    assert messages(MESSAGES, body) == expected
    assert messages(MESSAGES, body | {"system": "developer 0"}) == expected


def test_the_billing_header_of_claude_code_is_left_out() -> None:
    """It changes with every session, and would defeat the prefix cache."""
    blocks = ["x-anthropic-billing-header: cc_version=2; cch=1a2b3;", "You are Claude Code.", "Be brief."]
    system = [{"type": "text", "text": text, "cache_control": {"type": "ephemeral"}} for text in blocks]
    found = messages(MESSAGES, {"system": system, "messages": [{"role": "user", "content": "hi"}]})
    assert found[0] == {"role": "system", "content": "You are Claude Code.\n\nBe brief."}


@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_content_is_a_text_or_parts(path: str) -> None:
    kind = "input_text" if path == RESPONSES else "text"
    parts = [{"type": kind, "text": "Hello "}, {"type": kind, "text": "there"}]
    turns = "input" if path == RESPONSES else "messages"
    [found] = messages(path, {turns: [{"role": "user", "content": parts}]})
    assert found["content"].replace("\n\n", "") == "Hello there"


def test_results_of_tools_as_parts() -> None:
    parts = [{"type": "text", "text": "1"}, {"type": "text", "text": "2"}]
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    chat = [{"role": "assistant", "content": None, "tool_calls": [call]}, {"role": "tool", "content": parts}]
    assert messages(CHAT, {"messages": chat})[1]["content"] == "12"
    result = {"type": "tool_result", "tool_use_id": "c", "content": parts}
    failed = {"type": "tool_result", "tool_use_id": "d", "content": "no such file", "is_error": True}
    said = {"type": "text", "text": "Go on."}
    found = messages(MESSAGES, {"messages": [{"role": "user", "content": [said, result, failed]}]})
    assert [(one["role"], one["content"]) for one in found] == [
        ("tool", "12"),
        ("tool", "Error: no such file"),
        ("user", "Go on."),
    ]
    output = {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "12"}]}
    assert messages(RESPONSES, {"input": [output]}) == [{"role": "tool", "content": "12", "tool_call_id": "c"}]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_reasoning_under_either_name(name: str) -> None:
    said = {"role": "assistant", "content": "Sunny.", name: "Hm."}
    expected = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}
    assert messages(CHAT, {"messages": [said]}) == [expected]


@pytest.mark.parametrize(
    "reasoning",
    [
        {"summary": [{"type": "summary_text", "text": "Hm."}]},
        {"summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
        {"summary": [{"type": "summary_text", "text": "Hm."}], "encrypted_content": "of somebody else"},
    ],
    ids=["summary", "content", "sealed elsewhere"],
)
def test_reasoning_items_belong_to_the_answer_after_them(reasoning: dict[str, Any]) -> None:
    user = {"role": "user", "content": "hi"}
    thought = {"type": "reasoning", "id": "rs", **reasoning}
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Sunny."}]}
    expected = {"role": "assistant", "content": "Sunny.", "reasoning_content": "Hm."}
    assert messages(RESPONSES, {"input": [user, thought, said, user]}) == [user, expected, user]
    alone = {"role": "assistant", "content": "", "reasoning_content": "Hm."}
    assert messages(RESPONSES, {"input": [user, thought, user, said]})[1] == alone
    assert messages(RESPONSES, {"input": [user, thought]})[1] == alone


def test_each_answer_of_responses_has_its_own_calls() -> None:
    def call(id: str) -> dict[str, Any]:
        return {"type": "function_call", "call_id": id, "name": "f", "arguments": "{}"}

    def output(id: str) -> dict[str, Any]:
        return {"type": "function_call_output", "call_id": id, "output": id}

    thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]}
    user = {"role": "user", "content": "hi"}
    found = messages(RESPONSES, {"input": [user, call("a"), call("b"), output("a"), output("b"), thought, call("c")]})
    assert [one["role"] for one in found] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [[call["id"] for call in one["tool_calls"]] for one in found if one["role"] == "assistant"] == [
        ["a", "b"],
        ["c"],
    ]
    assert [one.get("reasoning_content") for one in found if one["role"] == "assistant"] == [None, "Hm."]
