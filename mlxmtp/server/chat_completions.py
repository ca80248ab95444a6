"""OpenAI's Chat Completions (platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.limits import MAX_LOGPROBS
from mlxmtp.server import inbound
from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError
from mlxmtp.server.request import (
    HARMLESS,
    Neutral,
    Request,
    check_schema_and_tools,
    refuse_unheard,
    schema_of,
    settings,
)
from mlxmtp.server.turn import Event, LogprobsDelta, Outcome, ReasoningDelta, TextDelta, ToolCall, TurnEnd, new_id
from mlxmtp.server.wire import ResponseContext, openai_error, sse, timings, usage

LEAST = -9999.0
"""The API's own logprob of what cannot be; JSON has no infinity."""

NEUTRAL: Neutral = {"functions": (), "function_call": (), "audio": (), "modalities": (["text"],)}

error = openai_error


def read(body: Fields, defaults: GenerationOptions) -> Request:
    """The request of a body."""
    refuse_unheard(body, NEUTRAL)
    messages = inbound.chat_messages(body)
    offer = inbound.offer(body.objects("tools"), inbound.function_fields)
    allowed, choice = inbound.tool_choice(body, offer.tools)
    schema = schema_of(body.object("response_format"))
    check_schema_and_tools(schema, allowed, "response_format")
    options = body.object("stream_options")
    return Request(
        messages,
        settings(
            body,
            defaults,
            thinking=_thinking(body),
            json_schema=schema,
            logprobs=_logprobs(body),
        ),
        offer.tools,
        allowed,
        choice,
        parallel=body.flag("parallel_tool_calls") is not False,
        stream=bool(body.flag("stream")),
        usage=bool(options and options.flag("include_usage")),
        dropped=(*offer.dropped, *body.unread(*HARMLESS)),  # the last: all that is read has been
    )


def whole(context: ResponseContext, outcome: Outcome) -> dict[str, Any]:
    """The answer as one object."""
    message: dict[str, Any] = {"role": "assistant", "content": outcome.text or (None if outcome.calls else "")}
    if outcome.reasoning:
        message["reasoning_content"] = outcome.reasoning
    if outcome.calls:
        message["tool_calls"] = [_call(one) for one in outcome.calls]
    choice: dict[str, Any] = {"index": 0, "message": message, "finish_reason": outcome.done.reason, "logprobs": None}
    if context.request.settings.logprobs is not None:
        choice["logprobs"] = {"content": weights(context, outcome.logprobs)}
    stats = outcome.done.stats
    answer = _frame(context, "chat.completion") | {"choices": [choice], "usage": usage(context, stats)}
    return answer | ({"timings": timings(stats)} if stats else {})


def weights(context: ResponseContext, tokens: list[Any]) -> list[dict[str, Any]]:
    """Logprobs of tokens with their texts and bytes."""

    def one(id: int, logprob: float) -> dict[str, Any]:
        text = context.token(id)
        return {"token": text, "logprob": max(logprob, LEAST), "bytes": list(text.encode(errors="replace"))}

    return [one(id, logprob) | {"top_logprobs": [one(*pair) for pair in top]} for id, logprob, top in tokens]


class ChatWriter:
    """The answer as chunks."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._frame = _frame(context, "chat.completion.chunk")
        self._logprobs: list[Any] = []
        self._calls = 0

    def begin(self) -> Iterator[bytes]:
        yield self._delta({"role": "assistant", "content": ""})

    def feed(self, event: Event) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield self._delta({"reasoning_content": event.text})
            case TextDelta():
                yield self._delta({"content": event.text})
            case ToolCall():
                yield self._delta({"tool_calls": [{"index": self._calls, **_call(event)}]})
                self._calls += 1
            case LogprobsDelta():
                self._logprobs += event.tokens
            case TurnEnd():
                yield from self._end(event)

    def fail(self, problem: ApiError) -> Iterator[bytes]:
        yield sse(openai_error(problem))
        yield sse("[DONE]")

    def _end(self, done: TurnEnd) -> Iterator[bytes]:
        last = {"timings": timings(done.stats)} if done.stats else {}
        yield self._delta({}, done.reason, **({} if self._context.request.usage else last))
        if self._context.request.usage:
            yield sse(self._frame | {"choices": [], "usage": usage(self._context, done.stats)} | last)
        yield sse("[DONE]")

    def _delta(self, delta: dict[str, Any], finish: str | None = None, **more: Any) -> bytes:
        choice: dict[str, Any] = {"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}
        if self._logprobs:
            choice["logprobs"] = {"content": weights(self._context, self._logprobs)}
            self._logprobs = []
        return sse(self._frame | {"choices": [choice]} | more)


writer = ChatWriter


def _frame(context: ResponseContext, kind: str) -> dict[str, Any]:
    id = new_id("chatcmpl")
    return {"id": id, "object": kind, "created": context.created, "model": context.model}


def _call(call: ToolCall) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _thinking(body: Fields) -> bool | None:
    """Whether to think, as far as a field of vLLM's, of Qwen's or of OpenAI's says so."""
    wish = body.flag("enable_thinking")
    if template := body.object("chat_template_kwargs"):
        for name in template.names:
            if name not in ("enable_thinking", "thinking"):
                template.refuse_unless(name)
        wish = template.flag("enable_thinking") if "enable_thinking" in template else template.flag("thinking")
    return effort(body.text("reasoning_effort")) if wish is None else wish


def effort(value: str | None) -> bool | None:
    """Whether an effort means thinking: templates know on and off."""
    return None if value is None else value not in ("none", "minimal")


def _logprobs(body: Fields) -> int | None:
    top = body.whole("top_logprobs", 0, MAX_LOGPROBS)
    wanted = body.flag("logprobs")
    if top and not wanted:
        body.refuse("top_logprobs", "logprobs: true beside it")
    return (top or 0) if wanted else None
