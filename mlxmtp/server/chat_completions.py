"""OpenAI's Chat Completions (platform.openai.com/docs/api-reference/chat)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.limits import MAX_LOGPROBS
from mlxmtp.server.adapter import (
    MIN_LOGPROB,
    ApiAdapter,
    ResponseContext,
    StreamWriter,
    completion_usage,
    openai_error_body,
    server_sent_event,
    timings,
)
from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError
from mlxmtp.server.history import (
    HistoryItem,
    Message,
    assistant_message,
    foreign_text,
    history_items,
    history_tool_call,
    merge_leading_system,
    newest_user_message,
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
from mlxmtp.server.tools import (
    ToolSet,
    freeform_arguments,
    freeform_input,
    parse_openai_tool,
    parse_openai_tool_choice,
)
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

NEUTRAL: NeutralValues = {"functions": (), "function_call": (), "audio": (), "modalities": (["text"],)}
ROLES = {"developer": "system", "function": "tool"}
"""Names of roles -> the names in chat templates."""


class ChatCompletionsAdapter(ApiAdapter):
    """Chat Completions, with vLLM's and llama.cpp's extensions that clients send."""

    path = "/v1/chat/completions"

    def parse(self, body: JsonObject, defaults: GenerationOptions) -> Request:
        reject_unsupported(body, NEUTRAL)
        tool_set = ToolSet.parse(body.objects("tools"), parse_openai_tool)
        messages = merge_leading_system(_messages(body, tool_set))
        callable_tools, tool_choice = parse_openai_tool_choice(body, tool_set.callable)
        thinking, schema = parse_thinking(body), answer_schema(body)
        return Request(
            messages=messages,
            options=generation_options(body, defaults, thinking=thinking, json_schema=schema, logprobs=_logprobs(body)),
            thinking=thinking,
            tool_set=tool_set,
            callable_tools=callable_tools,
            tool_choice=tool_choice,
            parallel_tool_calls=body.boolean("parallel_tool_calls") is not False,
            stream=bool(body.boolean("stream")),
            include_usage=include_usage(body),
            dropped=(*tool_set.dropped, *unread_fields(body)),
        )

    def build_response(self, context: ResponseContext, result: TurnResult) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": result.text or (None if result.tool_calls else "")}
        if result.reasoning:
            message["reasoning_content"] = result.reasoning
        if result.tool_calls:
            message["tool_calls"] = [_tool_call(context, call) for call in result.tool_calls]
        choice = _choice("message", message, result.end.reason)
        if context.request.options.logprobs is not None:
            choice["logprobs"] = {"content": _logprobs_content(context, result.logprobs)}
        stats = result.end.stats
        response = _envelope(context, "chat.completion")
        return response | {"choices": [choice], "usage": completion_usage(context, stats)} | timings(stats)

    def stream_writer(self, context: ResponseContext) -> StreamWriter:
        return ChatStreamWriter(context)


class ChunkWriter(StreamWriter):
    """What the streams of Chat Completions and of Completions have in common.

    Args:
        envelope: the fields that all chunks have.
    """

    def __init__(self, context: ResponseContext, envelope: dict[str, Any]) -> None:
        self._context = context
        self._envelope = envelope

    def fail(self, error: ApiError) -> Iterator[bytes]:
        yield server_sent_event(openai_error_body(error))
        yield server_sent_event("[DONE]")

    def _chunk(self, choice: dict[str, Any], **more: Any) -> bytes:
        return server_sent_event(self._envelope | {"choices": [choice]} | more)

    def _end(self, choice: dict[str, Any], end: TurnEnd) -> Iterator[bytes]:
        """The last chunks: the finish reason, and the usage where the client asks for it."""
        last = timings(end.stats)
        if self._context.request.include_usage:
            yield self._chunk(choice)
            usage = completion_usage(self._context, end.stats)
            yield server_sent_event(self._envelope | {"choices": [], "usage": usage} | last)
        else:
            yield self._chunk(choice, **last)
        yield server_sent_event("[DONE]")


class ChatStreamWriter(ChunkWriter):
    """The stream of Chat Completions: chunks with deltas of the message."""

    def __init__(self, context: ResponseContext) -> None:
        super().__init__(context, _envelope(context, "chat.completion.chunk"))
        self._logprobs: list[Any] = []
        self._tool_calls = 0

    def begin(self) -> Iterator[bytes]:
        yield self._delta({"role": "assistant", "content": ""})

    def write(self, event: TurnEvent) -> Iterator[bytes]:
        match event:
            case ReasoningDelta():
                yield self._delta({"reasoning_content": event.text})
            case TextDelta():
                yield self._delta({"content": event.text})
            case ToolCall():
                yield self._delta({"tool_calls": [{"index": self._tool_calls, **_tool_call(self._context, event)}]})
                self._tool_calls += 1
            case LogprobsDelta():
                self._logprobs += event.tokens
            case TurnEnd():
                yield from self._end(self._choice({}, event.reason), event)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self._chunk(self._choice(delta, None))

    def _choice(self, delta: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
        """A choice with the logprobs of the tokens since the last chunk."""
        choice = _choice("delta", delta, finish_reason)
        if self._logprobs:
            choice["logprobs"] = {"content": _logprobs_content(self._context, self._logprobs)}
            self._logprobs = []
        return choice


def include_usage(body: JsonObject) -> bool:
    """Whether a stream of Chat Completions or of Completions ends with the usage."""
    stream_options = body.object("stream_options")
    return bool(stream_options and stream_options.boolean("include_usage"))


def _envelope(context: ResponseContext, kind: str) -> dict[str, Any]:
    return {"id": new_id("chatcmpl"), "object": kind, "created": context.created, "model": context.model}


def _choice(field: str, content: dict[str, Any], finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, field: content, "finish_reason": finish_reason, "logprobs": None}


def _tool_call(context: ResponseContext, call: ToolCall) -> dict[str, Any]:
    if call.name in context.request.tool_set.freeform:
        custom = {"name": call.name, "input": freeform_input(call.arguments)}
        return {"id": call.id, "type": "custom", "custom": custom}
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}}


def _logprobs_content(context: ResponseContext, tokens: list[Any]) -> list[dict[str, Any]]:
    """Logprobs of tokens, with their texts and bytes."""

    def entry(token: int, logprob: float) -> dict[str, Any]:
        vocabulary = context.vocabulary
        text, own = vocabulary.text(token), list(vocabulary.token_bytes(token))
        return {"token": text, "logprob": max(logprob, MIN_LOGPROB), "bytes": own}

    return [entry(token, logprob) | {"top_logprobs": [entry(*pair) for pair in top]} for token, logprob, top in tokens]


def _messages(body: JsonObject, tools: ToolSet) -> list[Message]:
    items = history_items(body, "messages")
    newest = newest_user_message([ROLES.get(item.string("role") or "", item.string("role") or "") for item in items])
    return [_message(item, tools, newest=i == newest) for i, item in enumerate(items)]


def _message(item: HistoryItem, tools: ToolSet, *, newest: bool) -> Message:
    name = item.string("role") or ""
    role = ROLES.get(name, name)
    if role not in ("system", "user", "assistant", "tool"):
        item.reject("role", "system, developer, user, assistant or tool")
    text = text_content(item, tools, newest=newest)
    if role == "tool":
        return tool_message(text, item.get("tool_call_id"))
    if role != "assistant":
        return {"role": role, "content": text}
    reasoning = text_content(item, tools, "reasoning_content") or text_content(item, tools, "reasoning")
    calls = item.objects("tool_calls")
    if "function_call" in item:  # before there were tools
        calls.append(HistoryItem({"function": item.get("function_call")}, item.path_of("function_call")))
    known = [call for call in calls if isinstance(call.get("function"), str | Mapping) or call.object("custom")]
    lines = [text, *(foreign_text(call) for call in calls if call not in known)]
    return assistant_message("\n".join(filter(None, lines)), reasoning, map(_history_call, known))


def _history_call(item: JsonObject) -> dict[str, Any]:
    if custom := item.object("custom"):
        return history_tool_call(custom.get("name"), freeform_arguments(custom.get("input")), item.get("id"))
    function = item.object("function") or JsonObject({"name": item.get("function")})
    return history_tool_call(function.get("name"), function.get("arguments"), item.get("id"))


def _logprobs(body: JsonObject) -> int | None:
    top = body.integer("top_logprobs", 0, MAX_LOGPROBS)
    logprobs = body.boolean("logprobs")
    if top and not logprobs:
        body.reject("top_logprobs", "logprobs: true beside it")
    return (top or 0) if logprobs else None
