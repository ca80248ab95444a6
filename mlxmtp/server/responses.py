"""OpenAI's Responses (platform.openai.com/docs/api-reference/responses), stateless, as Codex uses it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.adapter import ApiAdapter, ResponseContext, StreamWriter
from mlxmtp.server.body import JsonObject
from mlxmtp.server.history import (
    Message,
    assistant_message,
    foreign_text,
    history_items,
    history_tool_call,
    merge_leading_system,
    newest_user_message,
    readable,
    text_content,
    tool_message,
)
from mlxmtp.server.request import (
    NeutralValues,
    Request,
    answer_schema,
    generation_options,
    max_tokens_limit,
    reject_unsupported,
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
from mlxmtp.server.thinking import parse_thinking
from mlxmtp.server.tools import ToolSet, freeform_arguments, parse_openai_tool, parse_openai_tool_choice
from mlxmtp.server.turn import TurnResult, new_id

NEUTRAL: NeutralValues = {
    **dict.fromkeys(("previous_response_id", "conversation", "prompt", "max_tool_calls"), ()),
    **dict.fromkeys(("background", "logprobs"), (False,)),
    "top_logprobs": (0,),
}
ADDED_TOOLS = ("tool_search_output", "additional_tools")
"""Types of the items that add tools to the conversation."""
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
        messages = merge_leading_system(_messages(body, tool_set), "input")
        callable_tools, tool_choice = parse_openai_tool_choice(body, tool_set.callable)
        text, thinking = body.object("text"), parse_thinking(body)
        schema = answer_schema(body, text.object("format") if text else None)
        return Request(
            messages=messages,
            options=generation_options(body, defaults, thinking=thinking, json_schema=schema),
            thinking=thinking,
            tool_set=tool_set,
            callable_tools=callable_tools,
            tool_choice=tool_choice,
            parallel_tool_calls=body.boolean("parallel_tool_calls") is not False,
            stream=bool(body.boolean("stream")),
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
    return messages + _input_messages(history_items(body, "input"), tool_set)


def _input_messages(items: Sequence[JsonObject], tools: ToolSet) -> list[Message]:
    """The chat messages of input items. Reasoning, text and calls of one answer become one message."""
    newest = newest_user_message([_role(item) for item in items])
    messages: list[Message] = []
    for i, item in enumerate(items):
        kind = item.string("type") or "message"
        if kind == "reasoning":
            reasoning = _reasoning(item, tools)
            if _has_only_reasoning(messages):
                messages[-1]["reasoning_content"] += reasoning
            elif reasoning:
                messages.append(assistant_message("", reasoning))
        elif kind == "item_reference":
            item.reject("type", "the item itself: this server stores none")
        elif kind == "message":
            message = _message(item, tools, newest=i == newest)
            if message["role"] == "assistant" and _has_only_reasoning(messages):
                messages[-1]["content"] = message["content"]
            else:
                messages.append(message)
        elif kind in ADDED_TOOLS:
            messages.append(_definitions(item, tools))
        elif kind.endswith("_output"):
            text = text_content(item, tools, "output") or text_content(item, tools, "result")
            messages.append(tool_message(text, item.get("call_id") or item.get("id")))
        elif "call_id" in item:
            _answer(messages).setdefault("tool_calls", []).append(_call(item, kind, tools))
        else:
            answer = _answer(messages)
            answer["content"] = "\n".join(filter(None, (answer["content"], foreign_text(item))))
    return messages


def _role(item: JsonObject) -> str:
    """The role of an item, as `newest_user_message` wants it."""
    kind = item.string("type") or "message"
    role = item.string("role") or ""
    if kind == "message":
        return "system" if role == "developer" else role
    return "tool" if kind.endswith("_output") else "assistant"


def _answer(messages: list[Message]) -> Message:
    """The answer that the last message is, or a new one."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append(assistant_message(""))
    return messages[-1]


def _call(item: JsonObject, kind: str, tools: ToolSet) -> dict[str, Any]:
    """The call of a function, of a freeform tool, or of a tool of another server's that the client has run."""
    if kind == "function_call":
        arguments = item.get("arguments")
    elif kind == "custom_tool_call":
        arguments = freeform_arguments(item.get("input"))
    else:
        arguments = readable(item.content)
    names = {origin: name for name, origin in tools.namespaces.items()}
    name = item.string("name") or kind.removesuffix("_call")
    return history_tool_call(names.get((item.string("namespace") or "", name), name), arguments, item.get("call_id"))


def _definitions(item: JsonObject, tools: ToolSet) -> Message:
    """The message of an item that adds tools: their definitions."""
    text = tools.define(item.objects("tools"))
    if "call_id" in item:
        return tool_message(text, item.get("call_id"))
    return {"role": "system", "content": text}


def _has_only_reasoning(messages: list[Message]) -> bool:
    """Whether the last message is an answer with nothing but reasoning so far."""
    return (
        bool(messages)
        and messages[-1].keys() == {"role", "content", "reasoning_content"}
        and not messages[-1]["content"]
    )


def _message(item: JsonObject, tools: ToolSet, *, newest: bool) -> Message:
    role = item.string("role")
    if role not in ("system", "developer", "user", "assistant"):
        item.reject("role", "system, developer, user or assistant")
    text = text_content(item, tools, newest=newest)
    if role == "assistant":
        return assistant_message(text)
    return {"role": "user" if role == "user" else "system", "content": text}


def _reasoning(item: JsonObject, tools: ToolSet) -> str:
    """The reasoning of an item: what this server encoded, else the item's own text."""
    encoded = decode_reasoning(item.string("encrypted_content"))
    return encoded or text_content(item, tools) or text_content(item, tools, "summary")
