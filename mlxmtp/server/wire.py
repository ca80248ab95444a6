"""What a protocol's adapter is, and how events go over the line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Protocol

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.fields import Fields
from mlxmtp.server.problems import ApiError
from mlxmtp.server.prompting import Prepared
from mlxmtp.server.request import Request
from mlxmtp.server.turn import Event, Outcome

KEEP_ALIVE = b": keep-alive\n\n"


class Writer(Protocol):
    """One streamed answer: server-sent events, as bytes."""

    def begin(self) -> Iterator[bytes]: ...
    def feed(self, event: Event) -> Iterator[bytes]: ...
    def fail(self, problem: ApiError) -> Iterator[bytes]: ...


class ApiAdapter(Protocol):
    """A protocol."""

    def read(self, body: Fields, defaults: GenerationOptions) -> Request:
        """Raises ApiError: the body is not what it should be, or asks for what is not there."""

    def whole(self, context: ResponseContext, outcome: Outcome) -> dict[str, Any]:
        """The answer of a client that does not stream."""

    def writer(self, context: ResponseContext) -> Writer: ...

    def error(self, problem: ApiError) -> dict[str, Any]: ...


class ResponseContext:
    """What an adapter knows about the turn that it writes.

    Args:
        model: the served name. text_of: gives a token id's text.
    """

    def __init__(self, request: Request, prepared: Prepared, model: str, tokenizer: Any, created: int) -> None:
        self.request = request
        self.prompt_tokens = len(prepared.tokens)
        self.model = model
        self.created = created
        self._tokenizer = tokenizer

    def token(self, id: int) -> str:
        return str(self._tokenizer.decode([id]))


def encoded(content: Any) -> bytes:
    """JSON; half a surrogate pair, which models and clients can write with escapes, has no place in UTF-8."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def sse(content: dict[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event."""
    data = content.encode() if isinstance(content, str) else encoded(content)
    return (f"event: {event}\n" if event else "").encode() + b"data: " + data + b"\n\n"


def openai_error(problem: ApiError) -> dict[str, Any]:
    """An error as OpenAI's APIs have it."""
    about = {"message": str(problem), "type": problem.kind, "code": problem.code, "param": problem.param}
    return {"error": about}


def timings(stats: Stats) -> dict[str, Any]:
    """What llama.cpp's server tells under this name; tokens and milliseconds."""
    read = stats.prompt_tokens - stats.reused_tokens
    decode_s = stats.draft_s + stats.verify_s + stats.other_s
    return {
        "prompt_n": read,
        "cache_n": stats.reused_tokens,
        "prompt_ms": round(read / stats.prefill_tps * 1e3, 3) if stats.prefill_tps else 0.0,
        "prompt_per_second": stats.prefill_tps,
        "predicted_n": stats.tokens,
        "predicted_ms": round(decode_s * 1e3, 3),
        "predicted_per_second": stats.decode_tps,
        "draft_n": stats.drafted + stats.looked_up,
        "draft_n_accepted": stats.accepted + stats.looked_up_accepted,
        "looked_up_n": stats.looked_up,
        "tokens_per_round": round(stats.tokens_per_round, 3),
        "acceptance_by_depth": [round(share, 4) for share in stats.acceptance_by_depth],
    }


def usage(context: ResponseContext, stats: Stats | None) -> dict[str, Any]:
    """Tokens, as Chat Completions counts them."""
    said = stats.tokens if stats else 0
    return {
        "prompt_tokens": context.prompt_tokens,
        "completion_tokens": said,
        "total_tokens": context.prompt_tokens + said,
        "prompt_tokens_details": {"cached_tokens": stats.reused_tokens if stats else 0},
    }
