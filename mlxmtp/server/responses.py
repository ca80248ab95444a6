"""OpenAI's Responses (platform.openai.com/docs/api-reference/responses), stateless, as Codex uses it."""

from __future__ import annotations

from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.adapter import ApiAdapter, ResponseContext, StreamWriter
from mlxmtp.server.body import JsonObject
from mlxmtp.server.request import (
    Message,
    NeutralValues,
    Request,
    assistant_message,
    generation_options,
    history_tool_call,
    max_tokens_limit,
    merge_system_messages,
    reasoning_effort,
    reject_unsupported,
    response_schema,
    text_content,
    tool_message,
    unread_fields,
)
from mlxmtp.server.responses_output import (
    ResponsesStreamWriter,
    call_item,
    decode_reasoning,
    message_item,
    reasoning_item,
    response_object,
)
from mlxmtp.server.tools import ToolSet, parse_openai_tool, parse_openai_tool_choice
from mlxmtp.server.turn import TurnResult, new_id

NEUTRAL: NeutralValues = {
    **dict.fromkeys(("previous_response_id", "conversation", "prompt", "max_tool_calls"), ()),
    **dict.fromkeys(("background", "logprobs"), (False,)),
    "top_logprobs": (0,),
    "response_format": ({"type": "text"},),
}
UNSUPPORTED_INCLUDE = "message.output_text.logprobs"
"""The value of `include` that is rejected. The others ask for hosted tools, or for what is always in the answer."""


class ResponsesAdapter(ApiAdapter):
    """Responses without stored conversations: each request has the whole input."""

    path = "/v1/responses"

    def parse(self, body: JsonObject, defaults: GenerationOptions) -> Request:
        reject_unsupported(body, NEUTRAL)
        if UNSUPPORTED_INCLUDE in body.strings("include"):
            body.reject("include", f"a list without {UNSUPPORTED_INCLUDE}, which this server does not give here")
        truncation = ["truncation auto"] if body.get("truncation") == "auto" else []
        tool_set = ToolSet.parse(body.objects("tools"), parse_openai_tool)
        messages = _messages(body, tool_set)
        callable_tools, tool_choice = parse_openai_tool_choice(body, tool_set.tools)
        text, reasoning = body.object("text"), body.object("reasoning")
        schema = response_schema(text.object("format") if text else None)
        return Request(
            messages=merge_system_messages(messages, "input"),
            options=generation_options(
                body,
                defaults,
                thinking=reasoning_effort(reasoning.string("effort") if reasoning else None),
                json_schema=schema,
            ),
            tools=tool_set.tools,
            callable_tools=callable_tools,
            tool_choice=tool_choice,
            parallel_tool_calls=body.boolean("parallel_tool_calls") is not False,
            stream=bool(body.boolean("stream")),
            namespaces=tool_set.namespaces,
            echo=_echo(body),
            dropped=(*tool_set.dropped, *truncation, *unread_fields(body)),
        )

    def build_response(self, context: ResponseContext, result: TurnResult) -> dict[str, Any]:
        items = []
        if result.reasoning:
            items.append(reasoning_item(new_id("rs"), result.reasoning))
        if result.text or not result.tool_calls:
            status = "incomplete" if result.end.reason == "length" else "completed"
            items.append(message_item(new_id("msg"), result.text, status))
        items += [call_item(context, new_id("fc"), call) for call in result.tool_calls]
        return response_object(context, new_id("resp"), items, result.end)

    def stream_writer(self, context: ResponseContext) -> StreamWriter:
        return ResponsesStreamWriter(context)


def _echo(body: JsonObject) -> dict[str, Any]:
    """The fields of the request that the response object repeats."""
    metadata = body.object("metadata")
    return {
        "instructions": body.string("instructions"),
        "max_output_tokens": max_tokens_limit(body),
        "metadata": body.get("metadata") if metadata else {},
        "tool_choice": body.get("tool_choice") or "auto",
    }


def _messages(body: JsonObject, tool_set: ToolSet) -> list[Message]:
    """The chat messages of `instructions` and `input`."""
    messages: list[Message] = []
    if instructions := body.string("instructions"):
        messages.append({"role": "system", "content": instructions})
    items = body.get("input")
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    return messages + _input_messages(body.objects("input"), tool_set)


def _input_messages(items: list[JsonObject], tool_set: ToolSet) -> list[Message]:
    """The chat messages of input items. Reasoning, text and calls of one answer become one message."""
    names = {origin: name for name, origin in tool_set.namespaces.items()}
    messages: list[Message] = []
    for item in items:
        kind = item.string("type") or "message"
        if kind == "reasoning":
            reasoning = _reasoning(item)
            if _has_only_reasoning(messages):
                messages[-1]["reasoning_content"] += reasoning
            elif reasoning:
                messages.append(assistant_message("", reasoning))
        elif kind == "function_call":
            if not messages or messages[-1]["role"] != "assistant":
                messages.append(assistant_message(""))
            origin = item.string("namespace") or "", item.string("name") or ""
            call = history_tool_call(names.get(origin, item.get("name")), item.get("arguments"), item.get("call_id"))
            messages[-1].setdefault("tool_calls", []).append(call)
        elif kind == "function_call_output":
            messages.append(tool_message(text_content(item, "output"), item.get("call_id")))
        elif kind == "message":
            message = _message(item)
            if message["role"] == "assistant" and _has_only_reasoning(messages):
                messages[-1]["content"] = message["content"]
            else:
                messages.append(message)
        else:
            item.reject("type", "message, reasoning, function_call or function_call_output")
    return messages


def _has_only_reasoning(messages: list[Message]) -> bool:
    """Whether the last message is an answer with nothing but reasoning so far."""
    return (
        bool(messages)
        and messages[-1].keys() == {"role", "content", "reasoning_content"}
        and not messages[-1]["content"]
    )


def _message(item: JsonObject) -> Message:
    role = item.string("role")
    if role not in ("system", "developer", "user", "assistant"):
        item.reject("role", "system, developer, user or assistant")
    text = text_content(item)
    if role == "assistant":
        return assistant_message(text)
    return {"role": "user" if role == "user" else "system", "content": text}


def _reasoning(item: JsonObject) -> str:
    """The reasoning of an item: what this server encoded, else the item's own text."""
    return decode_reasoning(item.string("encrypted_content")) or text_content(item) or text_content(item, "summary")
