"""The interface of a protocol, and what the protocols have in common on the wire."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.request import GenerationOptions
from mlxmtp.server.body import JsonObject
from mlxmtp.server.errors import ApiError
from mlxmtp.server.prompting import PreparedPrompt
from mlxmtp.server.request import Request
from mlxmtp.server.turn import TurnEvent, TurnResult
from mlxmtp.server.vocabulary import Vocabulary

MIN_LOGPROB = -9999.0
"""OpenAI's logprob of an impossible token; JSON has no infinity."""


class ResponseContext:
    """What an adapter needs to know to write the answer of a turn.

    Args:
        request: the request that is answered.
        prompt: its tokens.
        model: name of the model.
        vocabulary: the texts and bytes of its tokens.
        created: time of the request, in seconds since 1970.
    """

    def __init__(
        self, request: Request, prompt: PreparedPrompt, model: str, vocabulary: Vocabulary, created: int
    ) -> None:
        self.request = request
        self.prompt_tokens = len(prompt.tokens)
        self.model = model
        self.created = created
        self.vocabulary = vocabulary

    def cached_tokens(self, stats: Stats | None) -> int:
        """The tokens of the prompt that were not read, at most all of them.

        The engine counts an answer by the ids that the model wrote, which can be more than the tokenizer's.
        """
        return min(stats.reused_tokens, self.prompt_tokens) if stats else 0


class StreamWriter(ABC):
    """Writes one answer as server-sent events."""

    @abstractmethod
    def begin(self) -> Iterator[bytes]:
        """The events before the first token."""

    @abstractmethod
    def write(self, event: TurnEvent) -> Iterator[bytes]:
        """The events for one event of the turn."""

    @abstractmethod
    def fail(self, error: ApiError) -> Iterator[bytes]:
        """The last events of a turn that failed after its stream had begun."""


class ApiAdapter(ABC):
    """One protocol. A new protocol is a subclass, and a line in `ADAPTERS` (mlxmtp/server/app.py)."""

    path: ClassVar[str]
    """The endpoint that generates a turn, by POST."""
    count_path: ClassVar[str | None] = None
    """The endpoint that counts the tokens of the same body; None: the protocol has none."""

    @abstractmethod
    def parse(self, body: JsonObject, defaults: GenerationOptions) -> Request:
        """The request of a body.

        Args:
            defaults: options that the body leaves out.

        Raises:
            ApiError: a field is wrong, or asks for what this server does not support.
        """

    @abstractmethod
    def build_response(self, context: ResponseContext, result: TurnResult) -> dict[str, Any]:
        """The body of the answer to a client that does not stream."""

    @abstractmethod
    def stream_writer(self, context: ResponseContext) -> StreamWriter:
        """Writes the answer to a client that streams."""

    def error_body(self, error: ApiError) -> dict[str, Any]:
        """The body of an error; in OpenAI's shape unless the protocol has its own."""
        return openai_error_body(error)


def openai_error_body(error: ApiError) -> dict[str, Any]:
    """An error in the shape of OpenAI's protocols."""
    fields = {"message": str(error), "type": error.error_type, "code": error.code, "param": error.param}
    return {"error": fields}


def encode_json(content: Any) -> bytes:
    """JSON as UTF-8. Half of a surrogate pair, which models and clients can write by escapes, becomes "?"."""
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode(errors="replace")


def server_sent_event(content: dict[str, Any] | str, event: str | None = None) -> bytes:
    """One server-sent event with JSON, or with a text as it is."""
    data = content.encode() if isinstance(content, str) else encode_json(content)
    return (f"event: {event}\n" if event else "").encode() + b"data: " + data + b"\n\n"


def timings(stats: Stats | None) -> dict[str, Any]:
    """The field `timings` of llama.cpp's server with figures of its own, in tokens and milliseconds; {} without stats.

    draft_n counts the drafts of the head and of prompt lookup together.
    """
    if not stats:
        return {}
    prefilled = stats.prompt_tokens - stats.reused_tokens
    decode_s = stats.draft_s + stats.verify_s + stats.other_s
    figures = {
        "prompt_n": prefilled,
        "cache_n": stats.reused_tokens,
        "prompt_ms": round(prefilled / stats.prefill_tps * 1e3, 3) if stats.prefill_tps else 0.0,
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
    return {"timings": figures}


def completion_usage(context: ResponseContext, stats: Stats | None) -> dict[str, Any]:
    """The field `usage` of Chat Completions and of Completions."""
    generated = stats.tokens if stats else 0
    return {
        "prompt_tokens": context.prompt_tokens,
        "completion_tokens": generated,
        "total_tokens": context.prompt_tokens + generated,
        "prompt_tokens_details": {"cached_tokens": context.cached_tokens(stats)},
    }
