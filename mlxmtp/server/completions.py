"""OpenAI's Completions (platform.openai.com/docs/api-reference/completions): a text goes on, without a template."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

from mlxmtp.engine.request import GenerationOptions
from mlxmtp.limits import MAX_LOGPROBS
from mlxmtp.server.chat_completions import LEAST
from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError
from mlxmtp.server.request import HARMLESS, Neutral, Request, refuse_unheard, schema_of, settings
from mlxmtp.server.turn import Event, LogprobsDelta, Outcome, ToolCall, TurnEnd, new_id
from mlxmtp.server.wire import ResponseContext, openai_error, sse, timings, usage

DEFAULT_TOKENS = 16
"""The API's own default."""
NEUTRAL: Neutral = {"suffix": ("",), "tools": ([],), "tool_choice": ("auto", "none"), "functions": ([],)}

error = openai_error


def read(body: Fields, defaults: GenerationOptions) -> Request:
    """The request of a body."""
    refuse_unheard(body, NEUTRAL)
    options = body.object("stream_options")
    return Request(
        _prompt(body),
        settings(
            body,
            defaults,
            DEFAULT_TOKENS,
            json_schema=schema_of(body.object("response_format")),
            logprobs=body.whole("logprobs", 0, MAX_LOGPROBS),
        ),
        stream=bool(body.flag("stream")),
        place="prompt",
        usage=bool(options and options.flag("include_usage")),
        dropped=tuple(body.unread(*HARMLESS)),  # the last: all that is read has been
    )


def whole(context: ResponseContext, outcome: Outcome) -> dict[str, Any]:
    """The answer as one object."""
    stats = outcome.done.stats
    choice = _choice(outcome.text, _weights(context, outcome.logprobs), outcome.done.reason)
    answer = _frame(context) | {"choices": [choice], "usage": usage(context, stats)}
    return answer | ({"timings": timings(stats)} if stats else {})


class CompletionWriter:
    """The answer as chunks."""

    def __init__(self, context: ResponseContext) -> None:
        self._context = context
        self._frame = _frame(context)
        self._logprobs: list[Any] = []
        self._offset = 0

    def begin(self) -> Iterator[bytes]:
        yield from ()

    def feed(self, event: Event) -> Iterator[bytes]:
        match event:
            case LogprobsDelta():
                self._logprobs += event.tokens
            case TurnEnd():
                yield from self._end(event)
            case ToolCall():
                raise AssertionError("a completion has no tools")
            case _:
                yield sse(self._frame | {"choices": [_choice(event.text, self._weigh(), None)]})

    def fail(self, problem: ApiError) -> Iterator[bytes]:
        yield sse(openai_error(problem))
        yield sse("[DONE]")

    def _end(self, done: TurnEnd) -> Iterator[bytes]:
        last = {"timings": timings(done.stats)} if done.stats else {}
        choice = _choice("", self._weigh(), done.reason)
        yield sse(self._frame | {"choices": [choice]} | ({} if self._context.request.usage else last))
        if self._context.request.usage:
            yield sse(self._frame | {"choices": [], "usage": usage(self._context, done.stats)} | last)
        yield sse("[DONE]")

    def _weigh(self) -> dict[str, Any] | None:
        """The logprobs of the tokens since the last chunk."""
        weights, self._logprobs = _weights(self._context, self._logprobs, self._offset), []
        self._offset += sum(map(len, weights["tokens"])) if weights else 0
        return weights


writer = CompletionWriter


def _prompt(body: Fields) -> str | list[int]:
    prompt = body.any("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    ids = isinstance(prompt, list) and all(isinstance(one, int) and not isinstance(one, bool) for one in prompt)
    if not prompt or not (isinstance(prompt, str) or ids):
        body.refuse("prompt", "one text, or one list of token ids")
    return prompt  # type: ignore[no-any-return]


def _frame(context: ResponseContext) -> dict[str, Any]:
    return {"id": new_id("cmpl"), "object": "text_completion", "created": context.created, "model": context.model}


def _choice(text: str, weights: dict[str, Any] | None, finish: str | None) -> dict[str, Any]:
    return {"index": 0, "text": text, "logprobs": weights, "finish_reason": finish}


def _weights(context: ResponseContext, tokens: list[Any], start: int = 0) -> dict[str, Any] | None:
    if context.request.settings.logprobs is None:
        return None
    texts = [context.token(id) for id, _, _ in tokens]
    return {
        "tokens": texts,
        "token_logprobs": [max(logprob, LEAST) for _, logprob, _ in tokens],
        "top_logprobs": [{context.token(id): max(logprob, LEAST) for id, logprob in top} for _, _, top in tokens],
        "text_offset": list(accumulate(map(len, texts[:-1]), initial=start)) if texts else [],
    }
