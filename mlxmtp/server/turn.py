"""One turn of the engine, as events that do not depend on the protocol."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.output import parse_tool_calls
from mlxmtp.server.host import Host
from mlxmtp.server.prompting import PreparedPrompt
from mlxmtp.server.request import Request
from mlxmtp.worker.messages import Finished, TurnDelta


@dataclass(frozen=True)
class ReasoningDelta:
    """More of the reasoning."""

    text: str


@dataclass(frozen=True)
class TextDelta:
    """More of the answer."""

    text: str


@dataclass(frozen=True)
class ToolCall:
    """A complete tool call. `arguments` is a JSON object as text."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class LogprobsDelta:
    """The log-probabilities of newly generated tokens: [id, logprob, [[id, logprob], ...]] for each."""

    tokens: list[Any]


@dataclass(frozen=True)
class TurnEnd:
    """The end of the turn.

    Args:
        reason: "stop", "length" or "tool_calls".
        stats: statistics of the turn; None: it was stopped before its first token.
        stopped_by: the stop string that ended a turn without tool calls.
        cache_bytes: size of the prefix cache now.
    """

    reason: str
    stats: Stats | None
    stopped_by: str | None = None
    cache_bytes: int | None = None


TurnEvent = ReasoningDelta | TextDelta | ToolCall | LogprobsDelta | TurnEnd


@dataclass
class TurnResult:
    """All events of a turn together, for a client that does not stream."""

    text: str = ""
    reasoning: str = ""
    tool_calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    end: TurnEnd = field(default_factory=lambda: TurnEnd("stop", None))

    def add(self, event: TurnEvent) -> None:
        match event:
            case ReasoningDelta():
                self.reasoning += event.text
            case TextDelta():
                self.text += event.text
            case ToolCall():
                self.tool_calls.append(event)
            case LogprobsDelta():
                self.logprobs += event.tokens
            case TurnEnd():
                self.end = event


async def generate_turn(
    host: Host, tokenizer: Any, request: Request, prompt: PreparedPrompt
) -> AsyncGenerator[TurnEvent, None]:
    """Generate a turn. The last event is `TurnEnd`. Closing the generator earlier stops the engine.

    Raises:
        ApiError: as `Host.turn`.
    """
    parser = TurnParser(tokenizer, request)
    stats = None
    async with aclosing(host.turn(request.client, prompt.command)) as events:
        async for event in events:
            match event:
                case TurnDelta():
                    stats = event.stats
                    if event.logprobs:
                        yield LogprobsDelta(event.logprobs)
                    for kind, text in event.segments:
                        for parsed in parser.feed(kind, text):
                            yield parsed
                        if parser.called and not request.parallel_tool_calls:
                            yield TurnEnd("tool_calls", stats)
                            return
                case Finished():
                    for parsed in parser.finish(complete=event.reason == "stop"):
                        yield parsed
                    reason, stopped_by = event.reason, event.stopped_by
                    if parser.called and reason == "stop":
                        reason, stopped_by = "tool_calls", None
                    cache_bytes = event.memory.caches if event.memory else None
                    yield TurnEnd(reason, event.stats or stats, stopped_by, cache_bytes)


class TurnParser:
    """Turns the segments of a turn into events: parses tool calls, and removes the newlines around other segments.

    A call of a tool that may not be called, or whose arguments are no JSON object, stays text. A call that the limit
    cuts is left out.

    Args:
        tokenizer: mlx-lm's `TokenizerWrapper`; it has the model's tool parser.
        request: the request with its tools.
    """

    def __init__(self, tokenizer: Any, request: Request) -> None:
        self.called = False
        """Whether there was a tool call."""
        self._tokenizer = tokenizer
        self._request = request
        self._callable = request.callable_functions
        self._kind = ""
        self._call: str | None = None
        self._newlines = ""
        self._skip_newlines = False
        self._has_text = False

    def feed(self, kind: str, text: str) -> list[TurnEvent]:
        """The events of more text of a segment.

        Args:
            kind: "text", "thinking" or "tool".
        """
        if self._request.raw:
            return [TextDelta(text)] if text else []
        events: list[TurnEvent] = []
        if kind != "tool" and self._call is not None:
            events += self._end_call(complete=True)
        if kind == "tool":
            self._call = (self._call or "") + text
        elif kind == "thinking":
            events += self._reasoning(text)
        else:
            events += self._text(text)
        return events

    def finish(self, *, complete: bool) -> list[TurnEvent]:
        """The events of what was held back until the end of the turn.

        Args:
            complete: the turn was not cut. Stop strings do not cut calls.
        """
        events = self._end_call(complete=complete) if self._call is not None else []
        if self._newlines and self._kind == "text" and not (self._skip_newlines or self.called):
            events.append(TextDelta(self._newlines))
        self._newlines = ""
        return events

    def _reasoning(self, text: str) -> list[TurnEvent]:
        if self._kind != "thinking":
            text, self._newlines = text.lstrip("\n"), ""
        text, self._newlines = _split_newlines(self._newlines + text)
        self._kind = "thinking" if text else self._kind
        return [ReasoningDelta(text)] if text and self._request.thinking.shown else []

    def _text(self, text: str) -> list[TurnEvent]:
        if self._kind == "thinking":
            self._newlines, self._skip_newlines = "", True
        self._kind = "text"
        text = self._newlines + text
        if self._skip_newlines:  # after thinking or a call
            text = text.lstrip("\n")
        text, self._newlines = _split_newlines(text)
        self._skip_newlines = self._skip_newlines and not text
        self._has_text = self._has_text or bool(text)
        return [TextDelta(text)] if text else []

    def _end_call(self, *, complete: bool) -> list[TurnEvent]:
        text, self._call = self._call or "", None
        if self._callable and not complete:
            self._newlines = ""
            return []
        start, end = self._tokenizer.tool_call_start or "", self._tokenizer.tool_call_end or ""
        parsed = parse_tool_calls(self._tokenizer, text, self._callable) if self._callable else None
        calls = [ToolCall(new_id("call"), call["name"], self._arguments(call)) for call in parsed or ()]
        if not all(call.arguments for call in calls) or not calls:
            return self._text(f"{start}{text}{end if complete else ''}")
        if not self._has_text or self._kind == "thinking":  # newlines between two texts are part of the text
            self._newlines, self._skip_newlines = "", True
        self._kind, self.called = "text", True
        return [*calls] if self._request.parallel_tool_calls else [calls[0]]

    def _arguments(self, call: dict[str, Any]) -> str:
        """The arguments as a JSON object; "": not an object, not finite, or of no tool that may be called."""
        arguments = call["arguments"]
        if call["name"] not in self._request.callable_tools:
            return ""
        try:
            return json.dumps(arguments, ensure_ascii=False, allow_nan=False) if isinstance(arguments, dict) else ""
        except ValueError:
            return ""


def new_id(prefix: str) -> str:
    """A random id, such as "msg_0123456789abcdef01234567"."""
    return f"{prefix}_{secrets.token_hex(12)}"


def _split_newlines(text: str) -> tuple[str, str]:
    """The text without its newlines at the end, and those newlines: the next segment decides what becomes of them."""
    stripped = text.rstrip("\n")
    return stripped, text[len(stripped) :]
