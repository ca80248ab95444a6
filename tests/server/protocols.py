"""What each protocol's clients make of an answer, whole or streamed; whatever is out of order fails here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from tests.server.scripted import CHAT, MESSAGES, RESPONSES, Sent

Body = dict[str, Any]


@dataclass
class Heard:
    """An answer, in no protocol's shape.

    Args:
        calls: names and arguments. end: "stop", "length", "tool_calls", or Anthropic's "stop_sequence".
        usage: tokens of the prompt, of those from the cache, and of the answer. echo: what a client sends back of it.
        call_ids: of the calls.
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
    """How to ask, and how to listen.

    Args:
        ask: a body with messages (role, text), tools (name, description, schema) and more fields.
        results: what a client sends for the results of calls, by their ids.
    """

    path: str
    ask: Callable[..., Body]
    whole: Callable[[Body], Heard]
    streamed: Callable[[list[Sent]], Heard]
    results: Callable[[dict[str, str]], list[Body]]
    limit: str
    stop: str | None
    turns: str = "messages"


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


def _chat_whole(answer: Body) -> Heard:
    assert answer["object"] == "chat.completion"
    [choice] = answer["choices"]
    message = choice["message"]
    assert message["role"] == "assistant"
    heard = Heard(message["content"] or "", message.get("reasoning_content", ""), end=choice["finish_reason"])
    assert message["content"] is not None or message["tool_calls"]
    _chat_calls(heard, message.get("tool_calls", []))
    heard.usage = _chat_usage(answer["usage"])
    heard.echo = [message]
    return heard


def _chat_calls(heard: Heard, calls: list[Body]) -> None:
    assert {call["type"] for call in calls} <= {"function"}
    heard.calls = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    heard.call_ids = [call["id"] for call in calls]


def _chat_usage(usage: Body) -> tuple[int, int, int]:
    assert usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
    return usage["prompt_tokens"], usage["prompt_tokens_details"]["cached_tokens"], usage["completion_tokens"]


def _chat_streamed(events: list[Sent]) -> Heard:
    *chunks, last = [event.data for event in events]
    assert {event.event for event in events} == {None}
    assert last == "[DONE]"
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({(chunk["id"], chunk["model"], chunk["created"]) for chunk in chunks}) == 1
    heard, calls = Heard(), []
    if not chunks[-1]["choices"]:
        heard.usage = _chat_usage(chunks.pop()["usage"])
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    assert len(choices) == len(chunks)
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert [choice["finish_reason"] for choice in choices[:-1]] == [None] * (len(choices) - 1)
    assert choices[-1]["delta"] == {}
    heard.end = choices[-1]["finish_reason"]
    for choice in choices[1:-1]:
        [(kind, content)] = choice["delta"].items()
        if kind == "tool_calls":
            assert [one["index"] for one in content] == [len(calls)]
            calls += [{name: value for name, value in one.items() if name != "index"} for one in content]
        else:
            assert content, "an empty delta"
            assert kind in ("content", "reasoning_content")
            heard.text += content if kind == "content" else ""
            heard.reasoning += content if kind == "reasoning_content" else ""
    _chat_calls(heard, calls)
    message: Body = {"role": "assistant", "content": heard.text, "reasoning_content": heard.reasoning}
    heard.echo = [message | ({"tool_calls": calls} if calls else {})]
    return heard


# -- Messages -----------------------------------------------------------------------------------------------------

_ENDS = {"end_turn": "stop", "max_tokens": "length", "tool_use": "tool_calls", "stop_sequence": "stop_sequence"}
_DELTAS = {"text": ["text_delta"], "thinking": ["thinking_delta", "signature_delta"], "tool_use": ["input_json_delta"]}


def _messages_ask(text: str, tools: list[tuple[str, str, Body]] | None = None, **more: Any) -> Body:
    body = {"model": "any", "max_tokens": 1000, "messages": [{"role": "user", "content": text}]} | more
    if tools:
        body["tools"] = [{"name": name, "description": told, "input_schema": schema} for name, told, schema in tools]
    return body


def _messages_whole(answer: Body) -> Heard:
    assert (answer["type"], answer["role"]) == ("message", "assistant")
    heard = Heard(end=_ENDS[answer["stop_reason"]], echo=[{"role": "assistant", "content": answer["content"]}])
    assert (answer["stop_sequence"] is not None) == (heard.end == "stop_sequence")
    for block in answer["content"]:
        if block["type"] == "text":
            heard.text += block["text"]
        elif block["type"] == "thinking":
            assert block["signature"]
            heard.reasoning += block["thinking"]
        else:
            assert block["type"] == "tool_use"
            heard.calls.append((block["name"], block["input"]))
            heard.call_ids.append(block["id"])
    usage = answer["usage"]
    cached = usage["cache_read_input_tokens"]
    heard.usage = (usage["input_tokens"] + cached, cached, usage["output_tokens"])
    return heard


def _messages_streamed(events: list[Sent]) -> Heard:
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
    """The first content block of the events, and the events behind it."""
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


def _responses_whole(answer: Body) -> Heard:
    assert (answer["object"], answer["error"]) == ("response", None)
    heard = Heard(echo=answer["output"])
    for item in answer["output"]:
        if item["type"] == "reasoning":
            heard.reasoning += "".join(part["text"] for part in item["content"])
        elif item["type"] == "message":
            heard.text += "".join(part["text"] for part in item["content"])
        else:
            assert item["type"] == "function_call"
            heard.calls.append((item["name"], json.loads(item["arguments"])))
            heard.call_ids.append(item["call_id"])
    cut = answer["status"] == "incomplete"
    assert (answer["incomplete_details"] == {"reason": "max_output_tokens"}) == cut
    heard.end = "length" if cut else "tool_calls" if heard.calls else "stop"
    usage = answer["usage"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    heard.usage = (usage["input_tokens"], usage["input_tokens_details"]["cached_tokens"], usage["output_tokens"])
    return heard


def _responses_streamed(events: list[Sent]) -> Heard:
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
    """The item that these events made."""
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
