"""What the Responses API answers: the response object with its items, whole or as a stream of numbered events."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

from mlxmtp.server.adapter import ResponseContext, StreamWriter, server_sent_event, timings
from mlxmtp.server.errors import ApiError
from mlxmtp.server.tools import freeform_input
from mlxmtp.server.turn import (
    LogprobsDelta,
    ReasoningDelta,
    TextDelta,
    ToolCall,
    TurnEnd,
    TurnEvent,
    new_id,
)

Item = dict[str, Any]
ENCRYPTED_PREFIX = "mlxmtp:"
"""Marks our `encrypted_content`, which is the reasoning in base64. Codex sends back no other field of it."""


def response_object(context: ResponseContext, response_id: str, items: list[Item], end: TurnEnd | None = None) -> Item:
    """The response object.

    Args:
        end: the end of the turn; None: the response is in progress.
    """
    incomplete = end is not None and end.reason == "length"
    options = context.request.options
    response: Item = {
        "id": response_id,
        "object": "response",
        "created_at": context.created,
        "status": "in_progress" if end is None else "incomplete" if incomplete else "completed",
        "error": None,
        "incomplete_details": {"reason": "max_output_tokens"} if incomplete else None,
        "model": context.model,
        "output": items,
        "parallel_tool_calls": context.request.parallel_tool_calls,
        "store": False,
        "temperature": options.temperature,
        "top_p": options.top_p,
        "tools": [_tool(context, tool["function"]) for tool in context.request.tool_set.callable],
        "usage": None,
        **context.request.echo,
    }
    if end and end.stats:
        usage = _usage(context, end.stats.tokens, context.cached_tokens(end.stats))
        response |= {"usage": usage} | timings(end.stats)
    return response


def message_item(item_id: str, text: str, status: str = "completed") -> Item:
    """A message item.

    Args:
        status: "in_progress" before its text begins, "completed", or "incomplete" where the limit ended it.
    """
    content = [] if status == "in_progress" else [_text_part(text)]
    return {"id": item_id, "type": "message", "role": "assistant", "status": status, "content": content}


def reasoning_item(item_id: str, text: str, *, complete: bool = True) -> Item:
    """A reasoning item."""
    item: Item = {"id": item_id, "type": "reasoning", "summary": []}
    if complete:
        encrypted = ENCRYPTED_PREFIX + base64.b64encode(text.encode(errors="replace")).decode()
        item |= {"content": [{"type": "reasoning_text", "text": text}], "encrypted_content": encrypted}
    return item


def decode_reasoning(encrypted_content: str | None) -> str:
    """The text of a `reasoning_item` from its `encrypted_content`; "": it is not ours."""
    if not encrypted_content or not encrypted_content.startswith(ENCRYPTED_PREFIX):
        return ""
    try:
        return base64.b64decode(encrypted_content.removeprefix(ENCRYPTED_PREFIX), validate=True).decode(
            errors="replace"
        )
    except ValueError:
        return ""


def call_item(context: ResponseContext, item_id: str, call: ToolCall, *, done: bool = True) -> Item:
    """A tool call item. Codex wants the name and the namespace of the tool in separate fields."""
    status = "completed" if done else "in_progress"
    tools = context.request.tool_set
    item: Item = {"id": item_id, "type": "function_call", "status": status, "call_id": call.id, "name": call.name}
    if call.name in tools.namespaces:
        item["namespace"], item["name"] = tools.namespaces[call.name]
    if call.name in tools.freeform:
        return item | {"type": "custom_tool_call", "input": freeform_input(call.arguments) if done else ""}
    return item | {"arguments": call.arguments if done else ""}


class ResponsesStreamWriter(StreamWriter):
    """The stream of the Responses API: items begin, grow and end, and each event has a number."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._response_id = new_id("resp")
        self._sequence_number = -1
        self._items: list[Item] = []
        self._open: str | None = None
        self._item_id = ""
        self._text = ""

    def begin(self) -> Iterator[bytes]:
        response = response_object(self._context, self._response_id, [])
        yield self._event("response.created", response=response)
        yield self._event("response.in_progress", response=response)

    def write(self, event: TurnEvent) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield from self._begin_item("reasoning")
                yield self._delta("response.reasoning_text.delta", event.text)
            case TextDelta():
                yield from self._begin_item("message")
                yield self._delta("response.output_text.delta", event.text, logprobs=[])
            case ToolCall():
                yield from self._end_item()
                yield from self._call(event)
            case TurnEnd():
                yield from self._end(event)
            case LogprobsDelta():
                pass  # `ResponsesAdapter.parse` rejects a request for logprobs

    def fail(self, error: ApiError) -> Iterator[bytes]:
        fields = {"status": "failed", "error": {"code": error.code, "message": str(error)}}
        response = response_object(self._context, self._response_id, []) | fields
        yield self._event("response.failed", response=response)

    def _begin_item(self, kind: str) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._end_item()
        self._open, self._text = kind, ""
        if kind == "reasoning":
            self._item_id = new_id("rs")
            item, part = reasoning_item(self._item_id, "", complete=False), {"type": "reasoning_text", "text": ""}
        else:
            self._item_id = new_id("msg")
            item, part = message_item(self._item_id, "", "in_progress"), _text_part("")
        yield self._event("response.output_item.added", output_index=len(self._items), item=item)
        yield self._event("response.content_part.added", **self._place(), part=part)

    def _end_item(self, status: str = "completed") -> Iterator[bytes]:
        if self._open is None:
            return
        if self._open == "reasoning":
            item = reasoning_item(self._item_id, self._text)
            yield self._event("response.reasoning_text.done", **self._place(), text=self._text)
        else:
            item = message_item(self._item_id, self._text, status)
            yield self._event("response.output_text.done", **self._place(), text=self._text, logprobs=[])
        yield self._event("response.content_part.done", **self._place(), part=item["content"][0])
        yield self._item_done(item)
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        item_id, index = new_id("fc"), len(self._items)
        item = call_item(self._context, item_id, call)
        begun = call_item(self._context, item_id, call, done=False)
        yield self._event("response.output_item.added", output_index=index, item=begun)
        place = {"item_id": item_id, "output_index": index}
        is_freeform = item["type"] == "custom_tool_call"
        field, kind = ("input", "custom_tool_call_input") if is_freeform else ("arguments", "function_call_arguments")
        yield self._event(f"response.{kind}.delta", **place, delta=item[field])
        yield self._event(f"response.{kind}.done", **place, **{field: item[field]})
        yield self._item_done(item)

    def _end(self, end: TurnEnd) -> Iterator[bytes]:
        if not self._items:
            yield from self._begin_item("message")
        yield from self._end_item("incomplete" if end.reason == "length" else "completed")
        response = response_object(self._context, self._response_id, self._items, end)
        kind = "response.incomplete" if response["status"] == "incomplete" else "response.completed"
        yield self._event(kind, response=response)

    def _item_done(self, item: Item) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        self._text += text
        return self._event(kind, **self._place(), delta=text, **more)

    def _place(self) -> Item:
        """The fields that say which item and part an event is about."""
        return {"item_id": self._item_id, "output_index": len(self._items), "content_index": 0}

    def _event(self, kind: str, **content: Any) -> bytes:
        self._sequence_number += 1
        return server_sent_event({"type": kind, "sequence_number": self._sequence_number, **content}, kind)


def _tool(context: ResponseContext, function: Item) -> Item:
    """A tool, as the response object repeats it."""
    if function["name"] in context.request.tool_set.freeform:
        return {"type": "custom", "name": function["name"], "description": function["description"]}
    return {"type": "function", "strict": False, **function}


def _text_part(text: str) -> Item:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _usage(context: ResponseContext, generated: int, reused: int) -> Item:
    return {
        "input_tokens": context.prompt_tokens,
        "input_tokens_details": {"cached_tokens": reused, "cache_write_tokens": 0},
        "output_tokens": generated,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": context.prompt_tokens + generated,
    }
