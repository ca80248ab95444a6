"""OpenAI's Completions (platform.openai.com/docs/api-reference/completions): continues a text without a template."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.limits import MAX_LOGPROBS
from mlxmtp.server.adapter import (
    MIN_LOGPROB,
    ApiAdapter,
    ResponseContext,
    StreamWriter,
    completion_usage,
    timings,
)
from mlxmtp.server.body import JsonObject, whole_number
from mlxmtp.server.chat_completions import ChunkWriter, include_usage
from mlxmtp.server.request import (
    NeutralValues,
    Request,
    answer_schema,
    generation_options,
    reject_unsupported,
    unread_fields,
)
from mlxmtp.server.turn import LogprobsDelta, ToolCall, TurnEnd, TurnEvent, TurnResult, new_id

DEFAULT_MAX_TOKENS = 16
"""The API's own default."""
NEUTRAL: NeutralValues = {"suffix": ("",), "tools": ([],), "tool_choice": ("auto", "none"), "functions": ([],)}


class CompletionsAdapter(ApiAdapter):
    """Completions of one text or of one list of token ids."""

    path = "/v1/completions"

    def parse(self, body: JsonObject, defaults: GenerationOptions) -> Request:
        reject_unsupported(body, NEUTRAL)
        return Request(
            messages=_prompt(body),
            options=generation_options(
                body,
                defaults,
                max_tokens=DEFAULT_MAX_TOKENS,
                json_schema=answer_schema(body),
                logprobs=body.integer("logprobs", 0, MAX_LOGPROBS),
            ),
            stream=bool(body.boolean("stream")),
            include_usage=include_usage(body),
            dropped=tuple(unread_fields(body)),
        )

    def build_response(self, context: ResponseContext, result: TurnResult) -> dict[str, Any]:
        choice = _choice(result.text, _logprobs(context, result.logprobs), result.end.reason)
        stats = result.end.stats
        return _envelope(context) | {"choices": [choice], "usage": completion_usage(context, stats)} | timings(stats)

    def stream_writer(self, context: ResponseContext) -> StreamWriter:
        return CompletionStreamWriter(context)


class CompletionStreamWriter(ChunkWriter):
    """The stream of Completions: chunks of the text."""

    def __init__(self, context: ResponseContext) -> None:
        super().__init__(context, _envelope(context))
        self._tokens: list[Any] = []
        self._text_offset = 0

    def begin(self) -> Iterator[bytes]:
        yield from ()

    def write(self, event: TurnEvent) -> Iterator[bytes]:
        match event:
            case LogprobsDelta():
                self._tokens += event.tokens
            case TurnEnd():
                yield from self._end(_choice("", self._new_logprobs(), event.reason), event)
            case ToolCall():
                raise AssertionError("a completion has no tools")
            case _:
                yield self._chunk(_choice(event.text, self._new_logprobs(), None))

    def _new_logprobs(self) -> dict[str, Any] | None:
        """The logprobs of the tokens since the last chunk."""
        tokens, self._tokens = self._tokens, []
        logprobs = _logprobs(self._context, tokens, self._text_offset)
        self._text_offset += sum(self._context.vocabulary.characters(token) for token, _, _ in tokens)
        return logprobs


def _prompt(body: JsonObject) -> str | list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    ids = [whole_number(item) for item in prompt] if isinstance(prompt, list) else []
    if not prompt or not (isinstance(prompt, str) or (ids and None not in ids)):
        body.reject("prompt", "one text, or one list of token ids")
    return prompt if isinstance(prompt, str) else [id for id in ids if id is not None]


def _envelope(context: ResponseContext) -> dict[str, Any]:
    return {"id": new_id("cmpl"), "object": "text_completion", "created": context.created, "model": context.model}


def _choice(text: str, logprobs: dict[str, Any] | None, finish_reason: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}


def _logprobs(context: ResponseContext, tokens: list[Any], text_offset: int = 0) -> dict[str, Any] | None:
    """The logprobs of tokens whose first one is at `text_offset` characters; None: not asked for."""
    if context.request.options.logprobs is None:
        return None
    vocabulary = context.vocabulary
    lengths = [vocabulary.characters(token) for token, _, _ in tokens]
    tops = [
        {vocabulary.unique_text(token): max(logprob, MIN_LOGPROB) for token, logprob in top} for _, _, top in tokens
    ]
    return {
        "tokens": [vocabulary.unique_text(token) for token, _, _ in tokens],
        "token_logprobs": [max(logprob, MIN_LOGPROB) for _, logprob, _ in tokens],
        "top_logprobs": tops,
        "text_offset": list(accumulate(lengths[:-1], initial=text_offset)) if lengths else [],
    }
