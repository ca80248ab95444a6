"""An engine whose words a test writes down: in place of the worker process, for all that talks to one."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Any

from mlxmtp.decoding.stats import Stats
from mlxmtp.worker.lines import encode
from mlxmtp.worker.messages import (
    Command,
    Comparison,
    Died,
    Event,
    Finished,
    Generate,
    Load,
    Loaded,
    Memory,
    Stop,
    Stopped,
    TurnDelta,
    ends_command,
)

DEADLINE_S = 20.0
"""Longer than anything here takes on a machine that is busy with other things."""
MEMORY = Memory(active=17_900_000_000, peak=18_200_000_000, caches=310_000_000)

Answers = Iterable[Event] | Callable[[Any], Iterable[Event]]


def asynchronous(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that awaits, for pytest, which does not."""

    @functools.wraps(test)
    def run(*args: Any, **options: Any) -> None:
        asyncio.run(test(*args, **options))

    return run


async def until(
    condition: Callable[[], Any], what: str = "", within: float = DEADLINE_S, *, seen: Callable[[], str] | None = None
) -> None:
    """Wait for what is bound to come; fails with `what` where it does not, and with what is `seen` instead."""
    deadline = time.monotonic() + within
    while not condition():
        assert time.monotonic() < deadline, f"never came: {what or condition}" + (f"\n{seen()}" if seen else "")
        await asyncio.sleep(0.002)


# -- events with figures that fit together ----------------------------------------------------------------------


def stats(tokens: int = 812, **changes: Any) -> Stats:
    """A turn of three drafts a round, at 61 tokens a second."""
    rounds = max(round(tokens / 2.7), 1)
    seconds = tokens / 61.2
    return replace(
        Stats(
            prompt_tokens=1_204,
            reused_tokens=980,
            tokens=tokens,
            rounds=rounds,
            drafted=3 * rounds,
            accepted=tokens - rounds,
            tokens_per_round=tokens / rounds,
            acceptance_by_depth=(0.88, 0.71, 0.52),
            drafted_by_depth=(rounds,) * 3,
            ttft_s=0.41,
            prefill_tps=930.0,
            decode_tps=61.2,
            draft_s=0.2 * seconds,
            verify_s=0.7 * seconds,
            other_s=0.1 * seconds,
            peak_memory_bytes=MEMORY.peak,
            evaluations=rounds + 2 * (rounds // 16),
            timed_rounds=rounds // 16,
        ),
        **changes,
    )


def loaded(name: str = "demo", **changes: Any) -> Loaded:
    """A model with a head of three drafts and a thinking mode. Like all events here it gets its id when it is said."""
    found = Loaded(
        id=0,
        name=name,
        head="qwen-mtp",
        plain_because=None,
        head_source=None,
        head_by_name=False,
        context=32_768,
        memory_limit=48_000_000_000,
        has_thinking=True,
        seconds=1.5,
        promise="identical",
    )
    return replace(found, **changes)


def headless(name: str = "plain") -> Loaded:
    """A model that can only decode plainly."""
    return loaded(name, head=None, plain_because="the checkpoint has no head", has_thinking=False)


def said(text: str, kind: str = "text", tokens: int = 40) -> TurnDelta:
    return TurnDelta(0, [[kind, text]], stats(tokens), MEMORY)


def message(text: str, thinking: str = "", calls: Iterable[tuple[str, dict[str, Any]]] = ()) -> dict[str, Any]:
    """An answer as the history has it."""
    answer: dict[str, Any] = {"role": "assistant", "content": text}
    if thinking:
        answer["reasoning_content"] = thinking
    if called := [{"type": "function", "function": {"name": name, "arguments": given}} for name, given in calls]:
        answer["tool_calls"] = called
    return answer


def finished(text: str, reason: str = "stop", thinking: str = "", **figures: Any) -> Finished:
    return Finished(0, reason, message(text, thinking), stats(**figures), MEMORY)


def answering(text: str, **figures: Any) -> list[Event]:
    """All of a turn that says `text`."""
    return [said(text), finished(text, **figures)]


def compared(done: int = 288, total: int = 288, depth: int = 3) -> Comparison:
    plain, mtp = [40.0, 42.0, 41.0], [60.0, 63.0, 65.6]
    runs = 3 * done // total
    return Comparison(0, depth, done, total, plain[:runs], mtp[:runs])


# -- the engine -------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """A `Transport` (mlxmtp/worker/process.py) in this process.

    It records the commands that it is sent, and its events are those that a test lets it say.
    A stop ends a running command as the worker does, with what came so far, unless the engine is `deaf`.

    Args:
        script: the events that answer a command, by its class; other commands are left unanswered.
    """

    def __init__(self, script: dict[type[Command], Answers] | None = None) -> None:
        self.commands: list[Command] = []
        self.stops: list[int] = []
        self.killed = self.closed = self.deaf = False
        self._script = dict(script or {})
        self._events: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._newest = 0
        self._running: dict[int, tuple[Command, list[list[str]]]] = {}
        self._dead = False

    def on(self, kind: type[Command], answers: Answers) -> None:
        """Set what answers the commands of a class from now on: events, or a function of the command."""
        self._script[kind] = answers

    def say(self, *all_events: Event, to: int | None = None) -> None:
        """Send events by hand, as answers to the newest command or to the one with the id `to`."""
        id = self._newest if to is None else to
        for event in all_events:
            if isinstance(event, TurnDelta) and id in self._running:
                self._running[id][1].extend(event.segments)
            if ends_command(event):
                self._running.pop(id, None)
            self._events.put_nowait(replace(event, id=id))

    def break_with(self, error: Exception) -> None:
        """Let the next line be no event."""
        self._events.put_nowait(error)

    def die(self, code: int = -9, last: str = "") -> None:
        """End the process: it takes no command any more."""
        if not self._dead:
            self._dead = True
            self._events.put_nowait(Died(0, code, last))

    def sent(self, kind: type[Command]) -> list[Any]:
        """The commands of a class, in order."""
        return [command for command in self.commands if isinstance(command, kind)]

    async def heard(self) -> None:
        """Wait until all that it said was read; for tests that nothing comes of it."""
        await until(self._events.empty, "somebody who listens to the engine")
        for _ in range(5):
            await asyncio.sleep(0)

    # the interface

    def send(self, command: Command) -> None:
        encode(command)  # as it would travel
        if isinstance(command, Stop):
            self._stop(command)
            return
        self.commands.append(command)
        self._newest = command.id
        if self._dead:
            return
        self._running[command.id] = command, []
        answers = self._script.get(type(command), ())
        self.say(*(answers(command) if callable(answers) else answers), to=command.id)

    async def events(self) -> AsyncIterator[Event]:
        while True:
            event = await self._events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Died):
                return

    def kill(self) -> None:
        self.killed = True
        self.die(-9)

    async def close(self, grace_s: float = 0.0) -> None:
        self.closed = True
        self.die(0)

    def _stop(self, stop: Stop) -> None:
        self.stops.append(stop.id)
        if self._dead or self.deaf or stop.id not in self._running:
            return
        running, parts = self._running.pop(stop.id)
        if isinstance(running, Generate):
            of = {kind: "".join(text for this, text in parts if this == kind) for kind in ("text", "thinking")}
            ending = finished(of["text"], "interrupted", of["thinking"], tokens=40)
            self.say(ending if parts else replace(ending, stats=None, memory=None), to=running.id)
        else:
            self.say(Stopped(0), to=running.id)


class Engines:
    """Starts scripted engines, and keeps them; what `ChatApp`, `Chat` and `Host` take as `start`.

    Args:
        script: of every engine to come. refusal: what starting one raises.
    """

    def __init__(self, script: dict[type[Command], Answers] | None = None) -> None:
        self.script: dict[type[Command], Answers] = {Load: lambda command: [loaded(command.model or "demo")]}
        self.script |= script or {}
        self.refusal: OSError | None = None
        self.all: list[ScriptedEngine] = []

    async def __call__(self) -> ScriptedEngine:
        if self.refusal:
            raise self.refusal
        self.all.append(ScriptedEngine(self.script))
        return self.all[-1]

    @property
    def newest(self) -> ScriptedEngine:
        return self.all[-1]
