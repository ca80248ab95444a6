"""A strict client of each protocol: parses answers and streams, and fails on every deviation from the protocol."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.server.scripted import CHAT, MESSAGES, RESPONSES, ServerSentEvent, parse_events

Body = dict[str, Any]


@dataclass
class ParsedAnswer:
    """An answer, independent of the protocol.

    Args:
        calls: names and arguments of the tool calls.
        end: "stop", "length", "tool_calls", or Anthropic's "stop_sequence".
        usage: tokens of the prompt, of its cached part, and of the answer.
        echo: the messages or items that a client sends back in its next request.
        call_ids: ids of the tool calls.
    """

    text: str = ""
    reasoning: str = ""
    calls: list[tuple[str, Any]] = field(default_factory=list)
    end: str = ""
    usage: tuple[int, int, int] | None = None
    echo: list[Body] = field(default_factory=list)
    call_ids: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Protocol:
    """How to make requests of a protocol, and how to parse its answers.

    Args:
        ask: makes a body from a text, tools (name, description, schema) and more fields.
        whole: parses an answer that is not streamed.
        streamed: parses the events of a stream.
        results: makes messages from tool results by call id.
        limit: name of the field for max_tokens.
        stop: name of the field for stop strings; None: the protocol has none.
        turns: name of the field for the messages.
    """

    path: str
    ask: Callable[..., Body]
    whole: Callable[[Body], ParsedAnswer]
    streamed: Callable[[list[ServerSentEvent]], ParsedAnswer]
    results: Callable[[dict[str, str]], list[Body]]
    limit: str
    stop: str | None
    turns: str = "messages"

    def parse(self, body: str, stream: bool) -> ParsedAnswer:
        """Parse the body of an answer."""
        return self.streamed(parse_events(body)) if stream else self.whole(json.loads(body))


def protocol_id(one: Protocol) -> str:
    return one.path.rsplit("/", 1)[-1]


# -- Chat Completions ---------------------------------------------------------------------------------------------


def _chat_ask(text: str, tools: list[tuple[str, str, Body]] | None = None, **more: Any) -> Body:
    body = {"model": "any", "messages": [{"role": "user", "content": text}]} | more
    if tools:
        body["tools"] = [
            {"type": "function", "function": {"name": name, "description": told, "parameters": schema}}
            for name, told, schema in tools
        ]
    return body


def _chat_whole(answer: Body) -> ParsedAnswer:
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    message = choice["message"]
    assert message["role"] == "assistant"
    parsed = ParsedAnswer(message["content"] or "", message.get("reasoning_content", ""), end=choice["finish_reason"])
    assert message["content"] is not None or message["tool_calls"]
    _chat_calls(parsed, message.get("tool_calls", []))
    parsed.usage = _chat_usage(answer["usage"])
    parsed.echo = [message]
    return parsed


def _chat_calls(parsed: ParsedAnswer, calls: list[Body]) -> None:
    assert {call["type"] for call in calls} <= {"function"}
    parsed.calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    parsed.call_ids = [call["id"] for call in calls]


def _chat_usage(usage: Body) -> tuple[int, int, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]


def _chat_streamed(events: list[ServerSentEvent]) -> ParsedAnswer:
    *chunks, last = [event.data for event in events]
    assert {event.event for event in events} == {None}
    assert last == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks}) == 1
    parsed, calls = ParsedAnswer(), []
    if not chunks[-1]["choices"]:
        parsed.usage = _chat_usage(chunks.pop()["usage"])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["delta"] == {}
    parsed.end = choices[-1]["finish_reason"]
    for choice in choices[1:-1]:
        [(kind, content)] = choice["delta"].items()
        if kind == "tool_calls":
            assert [one["index"] for one in content] == [len(calls)]
            calls += [{name: value for name, value in one.items() if name != "index"} for one in content]
        else:
            assert content, "an empty delta"
            assert kind in ("content", "reasoning_content")
            parsed.text += content if kind == "content" else ""
            parsed.reasoning += content if kind == "reasoning_content" else ""
    _chat_calls(parsed, calls)
    message: Body = {"role": "assistant", "content": parsed.text, "reasoning_content": parsed.reasoning}
    parsed.echo = [message | ({"tool_calls": calls} if calls else {})]
    return parsed


# -- Messages -----------------------------------------------------------------------------------------------------

_ENDS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "stop_sequence": "stop_sequence"}
_DELTAS = {"text": ["text_delta"], "thinking": ["thinking_delta", "signature_delta"], "tool_use": ["input_json_delta"]}


def _messages_ask(text: str, tools: list[tuple[str, str, Body]] | None = None, **more: Any) -> Body:
    body = {"model": "any", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]} | more
    if tools:
        body["tools"] = [{"name": name, "description": told, "input_schema": schema} for name, told, schema in tools]
    return body


def _messages_whole(answer: Body) -> ParsedAnswer:
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    parsed = ParsedAnswer(end=_ENDS[answer["stop_reason"]], echo=[{"role": "assistant", "content": answer["content"]}])
    assert (answer["stop_sequence"] is not None) == (parsed.end == "stop_sequence")
    for block in answer["content"]:
        if block["type"] == "text":
            parsed.text += block["text"]
        elif block["type"] == "thinking":
            assert block["signature"]
            parsed.reasoning += block["thinking"]
        else:
            assert block["type"] == "tool_use"
            parsed.calls.append((block["name"], block["input"]))
            parsed.call_ids.append(block["id"])
    usage = answer["usage"]
    cached = usage["cache_read_input_tokens"]
    parsed.usage = (usage["input_tokens"] + cached, cached, usage["output_tokens"])
    return parsed


def _messages_streamed(events: list[ServerSentEvent]) -> ParsedAnswer:
    assert all(event.event == event.data["type"] for event in events)
    first, *blocks, delta, last = [event.data for event in events]
    assert [first["type"], delta["type"], last["type"]] == ["message_start", "message_delta", "message_stop"]
    message = first["message"]
    assert (message["content"], message["stop_reason"], message["usage"]["output_tokens"]) == ([], None, 0)
    content: list[Body] = []
    while blocks:
        block, blocks = _block(blocks, len(content))
        content.append(block)
    return _messages_whole(message | delta["delta"] | {"content": content, "usage": delta["usage"]})


def _block(events: list[Body], index: int) -> tuple[Body, list[Body]]:
    """The first content block of the events, and the events after it."""
    end = next(i for i, event in enumerate(events) if event["type"] == "content_block_stop")
    start, deltas = events[0], events[1:end]
    assert start["type"] == "content_block_start"
    assert {event["index"] for event in events[: end + 1]} == {index}
    assert {event["type"] for event in deltas} <= {"content_block_delta"}
    block = start["content_block"]
    kinds = [event["delta"]["type"] for event in deltas]
    assert kinds == sorted(kinds, key=_DELTAS[block["type"]].index)
    assert kinds[-1:] in ([], _DELTAS[block["type"]][-1:])
    told = "".join(
        value for event in deltas for name, value in event["delta"].items() if name not in ("type", "signature")
    )
    if block["type"] == "tool_use":
        assert block["input"] == {}
        return block | {"input": json.loads(told)}, events[end + 1 :]
    name = block["type"]
    assert block[name] == ""
    signature = {"signature": deltas[-1]["delta"]["signature"]} if name == "thinking" else {}
    return block | {name: told} | signature, events[end + 1 :]


# -- Responses ----------------------------------------------------------------------------------------------------


def _responses_ask(text: str, tools: list[tuple[str, str, Body]] | None = None, **more: Any) -> Body:
    body = {"model": "any", "input": [{"role": "user", "content": text}]} | more
    if tools:
        body["tools"] = [
            {"type": "function", "name": name, "description": told, "parameters": schema}
            for name, told, schema in tools
        ]
    return body


def _responses_whole(answer: Body) -> ParsedAnswer:
    assert (answer["object"], answer["error"]) == ("response", None)
    parsed = ParsedAnswer(echo=answer["output"])
    for item in answer["output"]:
        if item["type"] == "reasoning":
            parsed.reasoning += "".join(part["text"] for part in item["content"])
        elif item["type"] == "message":
            parsed.text += "".join(part["text"] for part in item["content"])
        else:
            assert item["type"] == "function_call"
            parsed.calls.append((item["name"], json.loads(item["arguments"])))
            parsed.call_ids.append(item["call_id"])
    cut = answer["status"] == "incomplete"
    assert (answer["incomplete_details"] == {"reason": "max_output_tokens"}) == cut
    parsed.end = "length" if cut else "tool_calls" if parsed.calls else "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    parsed.usage = (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])
    return parsed


def _responses_streamed(events: list[ServerSentEvent]) -> ParsedAnswer:
    assert all(event.event == event.data["type"] for event in events)
    assert [event.data["sequence_number"] for event in events] == list(range(len(events)))
    first, second, *items, last = [event.data for event in events]
    assert [first["type"], second["type"]] == ["response.created", "response.in_progress"]
    assert (first["response"]["status"], first["response"]["output"]) == ("in_progress", [])
    answer = last["response"]
    assert last["type"] == f"response.{answer['status']}"
    assert answer["id"] == first["response"]["id"]
    done: list[Body] = []
    while items:
        end = next(i for i, event in enumerate(items) if event["type"] == "response.output_item.done")
        done.append(_item(items[: end + 1], len(done)))
        items = items[end + 1 :]
    assert answer["output"] == done
    return _responses_whole(answer)


def _item(events: list[Body], index: int) -> Body:
    """The item that the events build up."""
    first, *grown, last = events
    assert first["type"] == "response.output_item.added"
    assert {event["output_index"] for event in events} == {index}
    begun, item = first["item"], last["item"]
    assert (begun["id"], begun["type"]) == (item["id"], item["type"])
    assert {event["item_id"] for event in grown} == {item["id"]}
    kinds = [event["type"].removeprefix("response.") for event in grown]
    deltas = "".join(event["delta"] for event in grown if event["type"].endswith(".delta"))
    short = [kind for kind, behind in pairwise([*kinds, ""]) if kind != behind]  # deltas as one
    if item["type"] == "function_call":
        assert short == ["function_call_arguments.delta", "function_call_arguments.done"]
        assert (begun["arguments"], deltas, grown[-1]["arguments"]) == ("", item["arguments"], item["arguments"])
        return item
    name = {"reasoning": "reasoning_text", "message": "output_text"}[item["type"]]
    expected = ["content_part.added", f"{name}.delta", f"{name}.done", "content_part.done"]
    assert short == (expected if deltas else [one for one in expected if not one.endswith("delta")])
    [part] = item["content"]
    assert (part["type"], part["text"]) == (name, deltas)
    assert grown[-2]["text"] == deltas
    assert grown[-1]["part"] == part
    return item


def _chat_results(by_id: dict[str, str]) -> list[Body]:
    return [{"role": "tool", "tool_call_id": id, "content": said} for id, said in by_id.items()]


def _messages_results(by_id: dict[str, str]) -> list[Body]:
    results = [{"type": "tool_result", "tool_use_id": id, "content": said} for id, said in by_id.items()]
    return [{"role": "user", "content": results}]


def _responses_results(by_id: dict[str, str]) -> list[Body]:
    return [{"type": "function_call_output", "call_id": id, "output": said} for id, said in by_id.items()]


PROTOCOLS = (
    Protocol(CHAT, _chat_ask, _chat_whole, _chat_streamed, _chat_results, "max_tokens", "stop"),
    Protocol(
        MESSAGES, _messages_ask, _messages_whole, _messages_streamed, _messages_results, "max_tokens", "stop_sequences"
    ),
    Protocol(
        RESPONSES,
        _responses_ask,
        _responses_whole,
        _responses_streamed,
        _responses_results,
        "max_output_tokens",
        None,
        "input",
    ),
)
