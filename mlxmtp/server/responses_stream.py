"""A streamed answer of the Responses API: items that begin, grow and end, each event numbered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxmtp.server.problems import ApiError
from mlxmtp.server.response_items import call_item, failed, message_item, reasoning_item, response, text_part
from mlxmtp.server.turn import Event, LogprobsDelta, Outcome, ReasoningDelta, TextDelta, ToolCall, TurnEnd, new_id
from mlxmtp.server.wire import ResponseContext, sse


class ResponseWriter:
    """The answer as events."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._id = new_id("resp")
        self._number = -1
        self._items: list[dict[str, Any]] = []
        self._open: str | None = None
        self._item_id = ""
        self._text = ""

    def begin(self) -> Iterator[bytes]:
        about = response(self._context, self._id, [])
        yield self._event("response.created", response=about)
        yield self._event("response.in_progress", response=about)

    def feed(self, event: Event) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield from self._begin("reasoning")
                yield self._delta("response.reasoning_text.delta", event.text)
            case TextDelta():
                yield from self._begin("message")
                yield self._delta("response.output_text.delta", event.text, logprobs=[])
            case ToolCall():
                yield from self._end_item()
                yield from self._call(event)
            case TurnEnd():
                yield from self._end(event)
            case LogprobsDelta():
                pass  # asked for by no request that `read` lets through

    def fail(self, problem: ApiError) -> Iterator[bytes]:
        yield self._event("response.failed", response=failed(self._context, self._id, problem))

    def _begin(self, kind: str) -> Iterator[bytes]:
        if self._open == kind:
            return
        yield from self._end_item()
        self._open, self._text = kind, ""
        if kind == "reasoning":
            self._item_id = new_id("rs")
            item, part = reasoning_item(self._item_id, "", complete=False), {"type": "reasoning_text", "text": ""}
        else:
            self._item_id = new_id("msg")
            item, part = message_item(self._item_id, "", "in_progress"), text_part("")
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
        yield self._done(item)
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[bytes]:
        id, index = new_id("fc"), len(self._items)
        begun = call_item(self._context, id, call, "in_progress")
        yield self._event("response.output_item.added", output_index=index, item=begun)
        about = {"item_id": id, "output_index": index}
        yield self._event("response.function_call_arguments.delta", **about, delta=call.arguments)
        yield self._event("response.function_call_arguments.done", **about, arguments=call.arguments)
        yield self._done(call_item(self._context, id, call))

    def _end(self, done: TurnEnd) -> Iterator[bytes]:
        if not self._items:
            yield from self._begin("message")
        yield from self._end_item("incomplete" if done.reason == "length" else "completed")
        whole = response(self._context, self._id, self._items, Outcome(done=done))
        kind = "response.incomplete" if whole["status"] == "incomplete" else "response.completed"
        yield self._event(kind, response=whole)

    def _done(self, item: dict[str, Any]) -> bytes:
        self._items.append(item)
        return self._event("response.output_item.done", output_index=len(self._items) - 1, item=item)

    def _delta(self, kind: str, text: str, **more: Any) -> bytes:
        self._text += text
        return self._event(kind, **self._place(), delta=text, **more)

    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": len(self._items), "content_index": 0}

    def _event(self, kind: str, **content: Any) -> bytes:
        self._number += 1
        return sse({"type": kind, "sequence_number": self._number, **content}, kind)
