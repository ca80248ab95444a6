"""The core: a request in, events out, in no protocol's shape."""

from __future__ import annotations

import json
import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.engine.parts import calls_of
from mlxmtp.server.arguments import fits
from mlxmtp.server.host import Host
from mlxmtp.server.prompting import Prepared
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
    """A whole tool call; `arguments` is a JSON object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True)
class LogprobsDelta:
    """Of tokens just generated: [id, logprob, [[id, logprob], ...]] each."""

    tokens: list[Any]


@dataclass(frozen=True)
class TurnEnd:
    """The end: "stop", "length" or "tool_calls".

    Args:
        stopped_by: the stop string that ended it. cache_bytes: what the prefix cache holds now.
    """

    reason: str
    stats: Stats | None
    stopped_by: str | None = None
    cache_bytes: int | None = None


Event = ReasoningDelta | TextDelta | ToolCall | LogprobsDelta | TurnEnd


@dataclass
class Outcome:
    """A whole turn, for clients that do not stream."""

    text: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[Any] = field(default_factory=list)
    done: TurnEnd = field(default_factory=lambda: TurnEnd("stop", None))

    def add(self, event: Event) -> None:
        match event:
            case ReasoningDelta():
                self.reasoning += event.text
            case TextDelta():
                self.text += event.text
            case ToolCall():
                self.calls.append(event)
            case LogprobsDelta():
                self.logprobs += event.tokens
            case TurnEnd():
                self.done = event


async def answer(host: Host, tokenizer: Any, request: Request, prepared: Prepared) -> AsyncGenerator[Event, None]:
    """Generate a turn. The last event is `TurnEnd`; left before it, the turn is stopped.

    Raises:
        ApiError: as `Host.turn`.
    """
    reader = Reader(tokenizer, request)
    stats = None
    async with aclosing(host.turn(request.client, prepared.command)) as events:
        async for event in events:
            match event:
                case TurnDelta():
                    stats = event.stats
                    if event.logprobs:
                        yield LogprobsDelta(event.logprobs)
                    for kind, text in event.segments:
                        for one in reader.feed(kind, text):
                            yield one
                        if reader.called and not request.parallel:
                            yield TurnEnd("tool_calls", stats)
                            return
                case Finished():
                    for one in reader.finish(complete=event.reason == "stop" and not event.stopped_by):
                        yield one
                    reason = "tool_calls" if reader.called and event.reason == "stop" else event.reason
                    caches = event.memory.caches if event.memory else None
                    yield TurnEnd(reason, event.stats or stats, event.stopped_by, caches)


class Reader:
    """Turns a turn's parts into events: calls parsed, line ends between the kinds left out.

    Args:
        request: a call of a tool that it does not offer, or with arguments of other types than that tool's, is text.
    """

    def __init__(self, tokenizer: Any, request: Request) -> None:
        self.called = False
        self._tokenizer = tokenizer
        self._request = request
        functions = [tool["function"] for tool in request.tools]
        self._schemas = {one["name"]: one["parameters"] for one in functions if one["name"] in request.allowed}
        self._raw = request.raw
        self._kind = ""
        self._call: str | None = None
        self._held = ""
        self._trim = False
        self._spoke = False

    def feed(self, kind: str, text: str) -> list[Event]:
        if self._raw:
            return [TextDelta(text)] if text else []
        events: list[Event] = []
        if kind != "tool" and self._call is not None:
            events += self._end_call(complete=True)
        if kind == "tool":
            self._call = (self._call or "") + text
        elif kind == "thinking":
            events += self._thought(text)
        else:
            events += self._spoken(text)
        return events

    def finish(self, *, complete: bool) -> list[Event]:
        """The turn is over; complete: by an end token, not by a limit or a stop string."""
        events = self._end_call(complete=complete) if self._call is not None else []
        if self._held and self._kind == "text" and not (self._trim or self.called):
            events.append(TextDelta(self._held))
        self._held = ""
        return events

    def _thought(self, text: str) -> list[Event]:
        if self._kind != "thinking":
            text, self._held = text.lstrip("\n"), ""
        text, self._held = _without_end(self._held + text)
        self._kind = "thinking" if text else self._kind
        return [ReasoningDelta(text)] if text else []

    def _spoken(self, text: str) -> list[Event]:
        if self._kind == "thinking":
            self._held, self._trim = "", True
        self._kind = "text"
        text = self._held + text
        if self._trim:  # behind thinking or a call
            text = text.lstrip("\n")
        text, self._held = _without_end(text)
        self._trim = self._trim and not text
        self._spoke = self._spoke or bool(text)
        return [TextDelta(text)] if text else []

    def _end_call(self, *, complete: bool) -> list[Event]:
        text, self._call = self._call or "", None
        start, end = self._tokenizer.tool_call_start or "", self._tokenizer.tool_call_end or ""
        found = calls_of(self._tokenizer, text, self._request.tools) if complete and self._schemas else None
        calls = [ToolCall(new_id("call"), one["name"], self._arguments(one)) for one in found or ()]
        if not all(one.arguments for one in calls) or not calls:
            return self._spoken(f"{start}{text}{end if complete else ''}")
        if not self._spoke or self._kind == "thinking":  # line ends between texts belong to them
            self._held, self._trim = "", True
        self._kind, self.called = "text", True
        return [*calls] if self._request.parallel else [calls[0]]

    def _arguments(self, call: dict[str, Any]) -> str:
        """The JSON object of a call's arguments; nothing where they are none, have numbers that JSON has not, or are
        not those of a tool that may be called."""
        value = call["arguments"]
        try:
            written = json.dumps(value, ensure_ascii=False, allow_nan=False) if isinstance(value, dict) else ""
        except ValueError:
            return ""
        known = call["name"] in self._schemas
        return written if known and fits(value, self._schemas[call["name"]]) else ""


def new_id(kind: str) -> str:
    return f"{kind}_{secrets.token_hex(12)}"


def _without_end(text: str) -> tuple[str, str]:
    """The text without the line ends behind it, and those: whether they belong to it is not known yet."""
    kept = text.rstrip("\n")
    return kept, text[len(kept) :]
