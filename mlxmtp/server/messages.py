"""Anthropic's Messages (docs.anthropic.com/en/api/messages), as Claude Code uses it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.adapter import ApiAdapter, ResponseContext, StreamWriter, server_sent_event, timings
from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError
from mlxmtp.server.history import (
    Message,
    assistant_message,
    history_items,
    history_tool_call,
    merge_leading_system,
    newest_user_message,
    parts_text,
    text_content,
    tool_message,
)
from mlxmtp.server.request import (
    NeutralValues,
    Request,
    answer_schema,
    generation_options,
    reject_unsupported,
    unread_fields,
)
from mlxmtp.server.thinking import parse_thinking
from mlxmtp.server.tools import Tool, ToolSet, function_tool, resolve_tool_choice
from mlxmtp.server.turn import (
    LogprobsDelta,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    TurnEnd,
    TurnEvent,
    TurnResult,
    new_id,
)

BILLING_PREFIX = "x-anthropic-billing-header:"
"""Begins Claude Code's first system block. The block changes with every session, so it would defeat the prefix cache
of everything after it, and is left out of the prompt."""
TOOL_CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}
"""`tool_choice.type` -> the choice of `resolve_tool_choice`."""
STOP_REASONS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
NEUTRAL: NeutralValues = {
    "logprobs": (False,),
    "top_logprobs": (0,),
    "mcp_servers": ([],),
    "container": (),
}
MARKS = ("redacted_thinking", "fallback")
"""Types of the blocks of an answer that its model does not read either."""
SIGNATURE = "mlxmtp"
"""Signature of thinking blocks. Clients send it back; this server does not check it."""


class MessagesAdapter(ApiAdapter):
    """Messages, and the counting of their tokens."""

    path = "/v1/messages"
    count_path = "/v1/messages/count_tokens"

    def parse(self, body: JsonObject, defaults: GenerationOptions) -> Request:
        reject_unsupported(body, NEUTRAL)
        tool_set = ToolSet.parse(body.objects("tools"), _tool)
        messages = merge_leading_system([*_system(body), *_messages(body, tool_set)])
        callable_tools, tool_choice = _tool_choice(body, tool_set.callable)
        config, thinking = body.object("output_config"), parse_thinking(body)
        schema = answer_schema(body, (config.object("format") if config else None) or body.object("output_format"))
        return Request(
            messages=messages,
            options=generation_options(body, defaults, thinking=thinking, json_schema=schema),
            thinking=thinking,
            tool_set=tool_set,
            callable_tools=callable_tools,
            tool_choice=tool_choice,
            parallel_tool_calls=_parallel_tool_calls(body),
            stream=bool(body.boolean("stream")),
            dropped=(*tool_set.dropped, *_continuation(body), *unread_fields(body)),
        )

    def build_response(self, context: ResponseContext, result: TurnResult) -> dict[str, Any]:
        content: list[dict[str, Any]] = []
        if result.reasoning:
            content.append({"type": "thinking", "thinking": result.reasoning, "signature": SIGNATURE})
        if result.text or not result.tool_calls:
            content.append({"type": "text", "text": result.text})
        content += [_tool_use(call) | {"input": json.loads(call.arguments)} for call in result.tool_calls]
        end = result.end
        message = _message(context) | {"content": content, **_stop_reason(end), "usage": _usage(context, end)}
        return message | timings(end.stats)

    def stream_writer(self, context: ResponseContext) -> StreamWriter:
        return MessagesStreamWriter(context)

    def error_body(self, error: ApiError) -> dict[str, Any]:
        error_type = "overloaded_error" if error.status == 503 else error.error_type
        return {"type": "error", "error": {"type": error_type, "message": str(error)}}


class MessagesStreamWriter(StreamWriter):
    """The stream of Messages: content blocks begin, grow and end."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._index = -1
        self._open: str | None = None

    def begin(self) -> Iterator[bytes]:
        usage = {"input_tokens": self._context.prompt_tokens, "output_tokens": 0}
        yield _event("message_start", message=_message(self._context) | {"usage": usage})

    def write(self, event: TurnEvent) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield from self._begin_block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta(type="thinking_delta", thinking=event.text)
            case TextDelta():
                yield from self._begin_block("text", {"type": "text", "text": ""})
                yield self._delta(type="text_delta", text=event.text)
            case ToolCall():
                yield from self._end_block()
                yield from self._begin_block("tool_use", _tool_use(event) | {"input": {}})
                yield self._delta(type="input_json_delta", partial_json=event.arguments)
                yield from self._end_block()
            case TurnEnd():
                yield from self._end(event)
            case LogprobsDelta():
                pass  # this protocol has no logprobs

    def fail(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(MessagesAdapter().error_body(error), "error")

    def _end(self, end: TurnEnd) -> Iterator[bytes]:
        if self._index < 0:
            yield from self._begin_block("text", {"type": "text", "text": ""})
        yield from self._end_block()
        usage = _usage(self._context, end)
        yield _event("message_delta", delta=_stop_reason(end), usage=usage, **timings(end.stats))
        yield _event("message_stop")

    def _begin_block(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._end_block()
        self._index, self._open = self._index + 1, kind
        yield _event("content_block_start", index=self._index, content_block=block)

    def _end_block(self) -> Iterator[bytes]:
        if self._open == "thinking":
            yield self._delta(type="signature_delta", signature=SIGNATURE)
        if self._open:
            yield _event("content_block_stop", index=self._index)
        self._open = None

    def _delta(self, **delta: Any) -> bytes:
        return _event("content_block_delta", index=self._index, delta=delta)


def _system(body: JsonObject) -> Iterator[Message]:
    if isinstance(body.get("system"), str):
        yield {"role": "system", "content": body.get("system")}
        return
    for block in body.objects("system"):
        text = block.string("text") or ""
        if not text.startswith(BILLING_PREFIX):
            yield {"role": "system", "content": text}


def _continuation(body: JsonObject) -> list[str]:
    """For the log: an answer that the client has begun is not continued, but generated from its start."""
    messages = body.objects("messages")
    return ["continuation of the last message"] if messages and messages[-1].get("role") == "assistant" else []


def _messages(body: JsonObject, tools: ToolSet) -> Iterator[Message]:
    items = history_items(body, "messages")
    newest = newest_user_message(["tool" if _results(item) else item.string("role") or "" for item in items])
    for i, item in enumerate(items):
        role = item.string("role")
        if role not in ("user", "assistant", "system"):
            item.reject("role", "user, assistant or system")
        if isinstance(item.get("content"), str) or role == "system":
            yield {"role": role, "content": text_content(item, tools)}
        elif role == "assistant":
            yield _assistant_message(item.objects("content"), tools)
        else:
            yield from _user_messages(item, tools, newest=i == newest)


def _results(item: JsonObject) -> list[JsonObject]:
    """The tool results of a message."""
    return [block for block in item.objects("content") if block.get("type") == "tool_result"]


def _assistant_message(blocks: list[JsonObject], tools: ToolSet) -> Message:
    reasoning, calls, others = "", [], []
    for block in blocks:
        kind = block.string("type")
        if kind == "thinking":
            reasoning += block.string("thinking") or ""
        elif kind == "tool_use":
            calls.append(history_tool_call(block.get("name"), block.get("input"), block.get("id")))
        elif kind not in MARKS:
            others.append(block)
    return assistant_message(parts_text(others, tools), reasoning, calls)


def _user_messages(item: JsonObject, tools: ToolSet, *, newest: bool) -> Iterator[Message]:
    """The messages of a user message: first tool results, which templates want right after the calls, then the text."""
    for block in _results(item):
        result = text_content(block, tools)
        prefix = "Error: " if block.boolean("is_error") and not result.lower().startswith("error") else ""
        yield tool_message(prefix + result, block.get("tool_use_id"))
    others = [block for block in item.objects("content") if block.get("type") != "tool_result"]
    if others:
        yield {"role": "user", "content": parts_text(others, tools, newest=newest, separator="\n\n")}


def _tool(item: JsonObject) -> Tool | None:
    if item.get("type") not in (None, "custom"):
        return None
    name = item.string("name")
    if not name:
        item.reject("name", "the name of the tool")
    schema = item.object("input_schema")
    return function_tool(name, item.string("description"), schema and item.get("input_schema"))


def _tool_choice(body: JsonObject, tools: list[Tool]) -> tuple[tuple[str, ...], str]:
    choice = body.object("tool_choice")
    kind = (choice.string("type") if choice else None) or "auto"
    if choice and kind not in TOOL_CHOICES:
        choice.reject("type", ", ".join(TOOL_CHOICES))
    name = (choice.string("name") or "") if choice and kind == "tool" else None
    return resolve_tool_choice(tools, TOOL_CHOICES[kind], name)


def _parallel_tool_calls(body: JsonObject) -> bool:
    choice = body.object("tool_choice")
    return not (choice and choice.boolean("disable_parallel_tool_use"))


def _message(context: ResponseContext) -> dict[str, Any]:
    return {
        "id": new_id("msg"),
        "type": "message",
        "role": "assistant",
        "model": context.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
    }


def _stop_reason(end: TurnEnd) -> dict[str, Any]:
    reason = "stop_sequence" if end.stopped_by else STOP_REASONS.get(end.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": end.stopped_by}


def _usage(context: ResponseContext, end: TurnEnd) -> dict[str, Any]:
    """Token counts. `input_tokens` does not include the tokens from the cache."""
    reused = context.cached_tokens(end.stats)
    return {
        "input_tokens": context.prompt_tokens - reused,
        "cache_read_input_tokens": reused,
        "cache_creation_input_tokens": 0,
        "output_tokens": end.stats.tokens if end.stats else 0,
    }


def _tool_use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name}


def _event(kind: str, **content: Any) -> bytes:
    return server_sent_event({"type": kind, **content}, kind)
