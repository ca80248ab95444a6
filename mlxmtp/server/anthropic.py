"""Anthropic's Messages (docs.anthropic.com/en/api/messages), as Claude Code uses it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server import inbound
from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError
from mlxmtp.server.request import (
    HARMLESS,
    Message,
    Neutral,
    Request,
    check_schema_and_tools,
    function_tool,
    refuse_unheard,
    settings,
)
from mlxmtp.server.turn import Event, LogprobsDelta, Outcome, ReasoningDelta, TextDelta, ToolCall, TurnEnd, new_id
from mlxmtp.server.wire import ResponseContext, sse, timings

BILLING = "x-anthropic-billing-header:"
"""Claude Code's first system block begins so; it changes with every session, and nothing behind it could be reused."""
THINKING = {"enabled": True, "disabled": False, "adaptive": None}
CHOICES = {"auto": "auto", "any": "required", "none": "none", "tool": "named"}
NEUTRAL: Neutral = {
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "mcp_servers": ([],),
    "container": (),
}
SIGNATURE = "mlxmtp"
"""Clients send thinking back with the signature that it came with; nothing here needs one."""


def read(body: Fields, defaults: GenerationOptions) -> Request:
    """The request of a body."""
    refuse_unheard(body, NEUTRAL)
    offer = inbound.offer(body.objects("tools"), _tool)
    choice = body.object("tool_choice")
    kind = (choice.text("type") if choice else None) or "auto"
    if choice and kind not in CHOICES:
        choice.refuse("type", ", ".join(CHOICES))
    named = (choice.text("name") or "") if choice and kind == "tool" else None
    allowed, chosen = inbound.choose(offer.tools, CHOICES[kind], named)
    schema = _schema(body)
    check_schema_and_tools(schema, allowed, "output_config")
    return Request(
        inbound.with_one_system([*_system(body), *_messages(body)]),
        settings(
            body,
            defaults,
            thinking=_thinking(body),
            json_schema=schema,
        ),
        offer.tools,
        allowed,
        chosen,
        parallel=not (choice and choice.flag("disable_parallel_tool_use")),
        stream=bool(body.flag("stream")),
        dropped=(*offer.dropped, *_begun(body), *body.unread(*HARMLESS)),  # the last: all that is read has been
    )


def error(problem: ApiError) -> dict[str, Any]:
    """An error in this API's shape."""
    kind = {503: "overloaded_error"}.get(problem.status, problem.kind)
    return {"type": "error", "error": {"type": kind, "message": str(problem)}}


def whole(context: ResponseContext, outcome: Outcome) -> dict[str, Any]:
    """The answer as one object."""
    content: list[dict[str, Any]] = []
    if outcome.reasoning:
        content.append({"type": "thinking", "thinking": outcome.reasoning, "signature": SIGNATURE})
    if outcome.text or not outcome.calls:
        content.append({"type": "text", "text": outcome.text})
    content += [_use(one) | {"input": _object(one)} for one in outcome.calls]
    done = outcome.done
    answer = _message(context) | {"content": content, **_stop(done), "usage": _usage(context, done)}
    return answer | ({"timings": timings(done.stats)} if done.stats else {})


class MessagesWriter:
    """The answer as events: blocks that begin, grow and end."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._index = -1
        self._open: str | None = None

    def begin(self) -> Iterator[bytes]:
        usage = {"input_tokens": self._context.prompt_tokens, "output_tokens": 0}
        yield _event("message_start", message=_message(self._context) | {"usage": usage})

    def feed(self, event: Event) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield from self._block("thinking", {"type": "thinking", "thinking": "", "signature": ""})
                yield self._delta(type="thinking_delta", thinking=event.text)
            case TextDelta():
                yield from self._block("text", {"type": "text", "text": ""})
                yield self._delta(type="text_delta", text=event.text)
            case ToolCall():
                yield from self._end_block()
                yield from self._block("tool_use", _use(event) | {"input": {}})
                yield self._delta(type="input_json_delta", partial_json=event.arguments)
                yield from self._end_block()
            case TurnEnd():
                yield from self._end(event)
            case LogprobsDelta():
                pass  # this API has no logprobs

    def fail(self, problem: ApiError) -> Iterator[bytes]:
        yield sse(error(problem), "error")

    def _end(self, done: TurnEnd) -> Iterator[bytes]:
        if self._index < 0:
            yield from self._block("text", {"type": "text", "text": ""})
        yield from self._end_block()
        last = {"timings": timings(done.stats)} if done.stats else {}
        yield _event("message_delta", delta=_stop(done), usage=_usage(self._context, done), **last)
        yield _event("message_stop")

    def _block(self, kind: str, block: dict[str, Any]) -> Iterator[bytes]:
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


writer = MessagesWriter


def _system(body: Fields) -> Iterator[Message]:
    if isinstance(body.any("system"), str):
        yield {"role": "system", "content": body.any("system")}
        return
    for block in body.objects("system"):
        text = block.text("text") or ""
        if not text.startswith(BILLING):
            yield {"role": "system", "content": text}


def _begun(body: Fields) -> list[str]:
    """For the log: an answer that the client has begun is not continued, but given anew."""
    asked = body.objects("messages")
    return ["continuation of the last message"] if asked and asked[-1].any("role") == "assistant" else []


def _messages(body: Fields) -> Iterator[Message]:
    for item in body.objects("messages"):
        role = item.text("role")
        if role not in ("user", "assistant", "system"):
            item.refuse("role", "user, assistant or system")
        if isinstance(item.any("content"), str):
            yield {"role": role, "content": item.any("content")}
        elif role == "assistant":
            yield _said(item.objects("content"))
        elif role == "user":
            yield from _asked(item)
        else:
            yield {"role": "system", "content": inbound.text_of(item)}


def _said(blocks: list[Fields]) -> Message:
    text, reasoning, calls = "", "", []
    for block in blocks:
        kind = block.text("type")
        if kind == "text":
            text += block.text("text") or ""
        elif kind == "thinking":
            reasoning += block.text("thinking") or ""
        elif kind == "tool_use":
            calls.append(inbound.call(block.any("name"), block.any("input"), block.any("id")))
        elif kind != "redacted_thinking":
            block.refuse("type", "text, thinking or tool_use")
    return inbound.said(text, reasoning, calls)


def _asked(item: Fields) -> Iterator[Message]:
    """A user's message: results of tools first, as templates want them behind the calls, then what was said."""
    text = []
    for block in item.objects("content"):
        kind = block.text("type")
        if kind == "tool_result":
            said = inbound.text_of(block)
            failed = "Error: " if block.flag("is_error") and not said.lower().startswith("error") else ""
            yield {"role": "tool", "content": failed + said, "tool_call_id": str(block.any("tool_use_id") or "")}
        elif kind == "text":
            text.append(block.text("text") or "")
        else:
            block.refuse("type", "text or tool_result: this server reads text only")
    if text:
        yield {"role": "user", "content": "\n\n".join(text)}


def _tool(item: Fields) -> dict[str, Any] | None:
    if item.any("type") not in (None, "custom"):
        return None
    name = item.text("name")
    if not name:
        item.refuse("name", "the name of the tool")
    schema = item.object("input_schema")
    return function_tool(str(name), item.text("description"), schema and item.any("input_schema"))


def _thinking(body: Fields) -> bool | None:
    wish = body.object("thinking")
    if not wish:
        return None
    kind = wish.text("type")
    if kind not in THINKING:
        wish.refuse("type", ", ".join(THINKING))
    return THINKING[str(kind)]


def _schema(body: Fields) -> dict[str, Any] | None:
    config = body.object("output_config")
    wanted = (config.object("format") if config else None) or body.object("output_format")
    if wanted is None:
        return None
    if wanted.text("type") != "json_schema":
        wanted.refuse("type", "json_schema")
    schema = wanted.object("schema")
    return None if schema is None else dict(wanted.any("schema"))


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


def _stop(done: TurnEnd) -> dict[str, Any]:
    reasons = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    reason = "stop_sequence" if done.stopped_by else reasons.get(done.reason, "end_turn")
    return {"stop_reason": reason, "stop_sequence": done.stopped_by}


def _usage(context: ResponseContext, done: TurnEnd) -> dict[str, Any]:
    """Tokens; those of the cache are not among the input tokens."""
    reused = done.stats.reused_tokens if done.stats else 0
    return {
        "input_tokens": context.prompt_tokens - reused,
        "cache_read_input_tokens": reused,
        "cache_creation_input_tokens": 0,
        "output_tokens": done.stats.tokens if done.stats else 0,
    }


def _use(call: ToolCall) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id.replace("call_", "toolu_"), "name": call.name}


def _object(call: ToolCall) -> Any:
    import json

    return json.loads(call.arguments)


def _event(kind: str, **content: Any) -> bytes:
    return sse({"type": kind, **content}, kind)
