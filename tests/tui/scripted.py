"""An engine whose words a test writes down, a view that takes notes, and the terminal chat run on them."""

from __future__ import annotations

import asyncio
import functools
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session, read
from mlxmtp_tui.widgets.prompt import Completions, Prompt
from textual import events
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from mlxmtp.decoding.stats import Stats
from mlxmtp.worker.messages import (
    Command,
    Compared,
    Died,
    Event,
    Failed,
    Fetched,
    Finished,
    Generate,
    Load,
    Loaded,
    Memory,
    Models,
    Said,
    Stopped,
)

DEADLINE_S = 20.0
"""Longer than anything here takes on a machine that is busy with other things."""
MEMORY = Memory(active=17_900_000_000, peak=18_200_000_000, caches=310_000_000)
ENDINGS = (Loaded, Finished, Stopped, Failed, Models, Fetched)
"""Events after which a command is over; a measurement is over with its last `Compared`."""

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
        by_name=False,
        default_depth=3,
        context=32_768,
        memory_limit=48_000_000_000,
        thinks=True,
        token_identical=True,
        seconds=1.5,
    )
    return replace(found, **changes)


def headless(name: str = "plain") -> Loaded:
    """A model that can only decode plainly."""
    return loaded(name, head=None, plain_because="the checkpoint has no head", default_depth=0, thinks=False)


def said(text: str, kind: str = "text", tokens: int = 40) -> Said:
    return Said(0, [[kind, text]], stats(tokens), MEMORY)


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


def answer(text: str, reason: str = "stop", **figures: Any) -> Answer:
    """A turn that is over, as a conversation keeps it."""
    return Answer(message(text), reason, stats(**figures))


def compared(done: int = 288, total: int = 288, depth: int = 3) -> Compared:
    plain, mtp = [40.0, 42.0, 41.0], [60.0, 63.0, 65.6]
    runs = 3 * done // total
    return Compared(0, depth, done, total, plain[:runs], mtp[:runs])


# -- the engine -------------------------------------------------------------------------------------------------


class ScriptedEngine:
    """The interface `Engine` of mlxmtp_tui/chat.py. It records what it is told, and says what a test lets it say.

    A stop ends what runs as the worker does, with what came so far, unless the engine is `deaf`.

    Args:
        script: the events that follow a command, by its class; a command that is not in it is left unanswered.
    """

    def __init__(self, script: dict[type[Command], Answers] | None = None) -> None:
        self.commands: list[Command] = []
        self.stops: list[int] = []
        self.killed = self.closed = self.deaf = False
        self._script = dict(script or {})
        self._said: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self._id = 0
        self._running: Command | None = None
        self._parts: list[list[str]] = []
        self._dead = False

    def on(self, kind: type[Command], answers: Answers) -> None:
        """What follows the commands of a class from now on: events, or a function of the command that gives them."""
        self._script[kind] = answers

    def say(self, *all_events: Event, to: int | None = None) -> None:
        """Push events by hand, as answers to the newest command or to the one with the id `to`."""
        for event in all_events:
            if isinstance(event, Said):
                self._parts += event.parts
            if isinstance(event, ENDINGS) or (isinstance(event, Compared) and event.done == event.total):
                self._running = None
            self._said.put_nowait(replace(event, id=self._id if to is None else to))

    def break_with(self, error: Exception) -> None:
        """The next thing heard from it is no event."""
        self._said.put_nowait(error)

    def die(self, code: int = -9, last: str = "") -> None:
        """The process is gone, and takes no command any more."""
        if not self._dead:
            self._dead = True
            self._said.put_nowait(Died(self._id, code, last))

    def sent(self, kind: type[Command]) -> list[Any]:
        """The commands of a class, in order."""
        return [command for command in self.commands if isinstance(command, kind)]

    async def heard(self) -> None:
        """Wait until all that it said was taken; for tests that nothing comes of it."""
        await until(self._said.empty, "somebody who listens to the engine")
        for _ in range(5):
            await asyncio.sleep(0)

    # the interface

    def next_id(self) -> int:
        self._id += 1
        return self._id

    def send(self, command: Command) -> None:
        self.commands.append(command)
        if self._dead:
            return
        self._running, self._parts = command, []
        answers = self._script.get(type(command), ())
        self.say(*(answers(command) if callable(answers) else answers), to=command.id)

    def stop(self) -> None:
        self.stops.append(self._id)
        running, self._running = self._running, None
        if self._dead or self.deaf or running is None:
            return
        if isinstance(running, Generate):
            of = {kind: "".join(text for this, text in self._parts if this == kind) for kind in ("text", "thinking")}
            ending = finished(of["text"], "interrupted", of["thinking"], tokens=40)
            self.say(ending if self._parts else replace(ending, stats=None, memory=None), to=running.id)
        else:
            self.say(Stopped(0), to=running.id)

    async def events(self) -> AsyncIterator[Event]:
        while True:
            event = await self._said.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if isinstance(event, Died):
                return

    def kill(self) -> None:
        self.killed = True
        self.die(-9)

    async def close(self) -> None:
        self.closed = True
        self.die(0)


class Engines:
    """Starts scripted engines, and keeps them; what `ChatApp` and `Chat` take as `start`.

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


class Notes:
    """A view that writes down what the chat asks of it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.parts: list[list[str]] = []
        self.texts: list[str] = []
        self.errors: list[str] = []
        self.outcomes: list[Compared] = []

    def turn_began(self) -> None:
        self.calls.append("began")

    def turn_said(self, parts: list[list[str]]) -> None:
        self.parts += parts

    def turn_ended(self) -> None:
        self.calls.append("ended")

    def turns_changed(self) -> None:
        self.calls.append("changed")

    def measured(self, outcome: Compared) -> None:
        self.outcomes.append(outcome)

    def state_changed(self) -> None:
        pass

    def say(self, text: str, *, error: bool = False) -> None:
        (self.errors if error else self.texts).append(text)


class Talk:
    """A `Chat` on scripted engines, with a view that takes notes and a clock that a test moves."""

    def __init__(self, engines: Engines, options: Options, resumed: tuple[Session, Conversation] | None) -> None:
        self.engines = engines
        self.view = Notes()
        self.now = 100.0
        self.chat = Chat(self.view, engines, options, Session.new, resumed)
        self.chat.live.clock = lambda: self.now

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines.newest

    @property
    def status(self) -> str:
        return self.chat.live.status

    @property
    def answers(self) -> list[str | None]:
        """What was answered to each turn; None: nothing yet."""
        return [turn.answer.text if turn.answer else None for turn in self.chat.conversation.turns]

    @property
    def reasons(self) -> list[str | None]:
        return [turn.answer.reason if turn.answer else None for turn in self.chat.conversation.turns]

    async def reach(self, status: str) -> None:
        await until(lambda: self.status == status, f"status {status}", within=4.0)

    def on_disk(self) -> Conversation:
        """The chat as another process would read it; an empty one has no file."""
        file = self.chat.session.file
        return read(file)[1] if file.exists() else Conversation()


@asynccontextmanager
async def talking(
    engines: Engines | None = None,
    options: Options | None = None,
    *,
    resumed: tuple[Session, Conversation] | None = None,
    status: str = "ready",
) -> AsyncIterator[Talk]:
    """A chat that has come as far as `status`; left at the end."""
    talk = Talk(engines or Engines(), options or Options(), resumed)
    await talk.chat.start()
    try:
        await talk.reach(status)
        yield talk
    finally:
        await talk.chat.close()


@contextmanager
def brisk() -> Iterator[None]:
    """A pilot's steps last until nothing happens for 20 ms, twice a key; here everything happens within a few."""
    with patch.multiple("textual._wait", SLEEP_GRANULARITY=0.004, SLEEP_IDLE=0.001):
        yield


# -- the application --------------------------------------------------------------------------------------------


class Desk:
    """The application under a pilot: keys in, what is seen out."""

    def __init__(self, app: ChatApp, pilot: Pilot[None], engines: Engines) -> None:
        self.app = app
        self.pilot = pilot
        self.engines = engines
        self.notices: list[tuple[str, str]] = []
        """What the user was told: (severity, text)."""
        app.notify = self._note  # type: ignore[method-assign]

    def _note(self, text: str, *, severity: str = "information", **_: Any) -> None:
        self.notices.append((severity, text))

    @property
    def chat(self) -> Chat:
        return self.app.chat

    @property
    def engine(self) -> ScriptedEngine:
        """The engine of the chat; the picker starts others."""
        return self.engines.all[0]

    @property
    def prompt(self) -> Prompt:
        return self.app.query_one(Prompt)

    @property
    def choices(self) -> list[str]:
        """What the popup over the prompt offers; nothing while it is closed."""
        popup = self.app.query_one(Completions)
        return [str(option.id) for option in popup.options] if popup.display else []

    @property
    def status(self) -> str:
        return str(self.app.query_one("#status", Static).render())

    @property
    def told(self) -> str:
        """The newest notice, or nothing."""
        return self.notices[-1][1] if self.notices else ""

    @property
    def errors(self) -> list[str]:
        return [text for severity, text in self.notices if severity == "error"]

    @property
    def turns(self) -> list[tuple[str, str | None]]:
        """What was typed, and what was answered to it."""
        return [(turn.typed, turn.answer.text if turn.answer else None) for turn in self.chat.conversation.turns]

    def seen(self, widget: Widget | None = None) -> str:
        """The text on the terminal, or the part of it where a widget is."""
        lines = self.app.screen._compositor.render_strips()
        if widget is None:
            return "\n".join(line.text.rstrip() for line in lines)
        region = widget.region
        return "\n".join(line.crop(region.x, region.right).text.rstrip() for line in lines[region.y : region.bottom])

    async def press(self, *keys: str) -> None:
        await self.pilot.press(*keys)

    async def write(self, text: str) -> None:
        """What keys would type, at once: a pilot takes long for each."""
        self.prompt.insert(text)
        await self.pilot.pause()

    async def enter(self, text: str) -> None:
        """Type a line and send it, past what the popup offers."""
        await self.write(text)
        self.app.query_one(Completions).offer([])
        await self.press("enter")

    async def paste(self, text: str) -> None:
        self.prompt.post_message(events.Paste(text))
        await self.pilot.pause()

    async def until(self, condition: Callable[[], Any], what: str = "") -> None:
        """Wait until something holds, and the screen shows it."""
        await until(condition, what, seen=self._all)
        await self.pilot.pause()

    async def sees(self, *texts: str) -> None:
        """Wait until all the texts are on the terminal."""
        await until(lambda: all(text in self.seen() for text in texts), str(texts), seen=self._all)

    async def reach(self, status: str) -> None:
        await self.until(lambda: self.chat.live.status == status, f"status {status}")

    def _all(self) -> str:
        return f"{self.seen()}\n{self.notices}\n{self.chat.live.status}: {self.turns}"

    async def asks(self, text: str, answered: str) -> None:
        """A turn from the question to its figures."""
        self.engine.on(Generate, answering(answered))
        await self.enter(text)
        await self.until(self.drawn, f"the answer to {text}")

    def drawn(self) -> bool:
        """Whether every turn is on the screen to its last line; of chats that are not too long for it."""
        asked, figures = (len(self.app.query(name)) for name in ("Asked", "Figures"))
        return self.chat.live.status == "ready" and asked == figures == len(self.turns)

    async def leaves(self) -> None:
        """The application comes to its end; what it cleans up is clean behind `chatting`."""
        await until(lambda: not self.app.is_running, "the end")


@asynccontextmanager
async def chatting(
    engines: Engines | None = None,
    options: Options | None = None,
    *,
    size: tuple[int, int] = (120, 40),
    resumed: tuple[Session, Conversation] | None = None,
    status: str = "ready",
) -> AsyncIterator[Desk]:
    """The application on scripted engines, as far as `status`."""
    engines = engines or Engines()
    app = ChatApp(engines, options or Options(), resumed=resumed)
    with brisk():
        async with app.run_test(size=size) as pilot:
            desk = Desk(app, pilot, engines)
            await desk.until(lambda: app.transcript is not None, "the transcript")
            await desk.reach(status)
            yield desk


def saved_chat(turns: int, root: Any = None, model: str = "demo") -> Any:
    """The file of a chat of so many short turns."""
    session = Session.new(model, root)
    for i in range(1, turns + 1):
        session.asked(f"question {i}", f"question {i}")
        session.answered(answer(f"answer {i}"))
    session.close()
    return session.file
