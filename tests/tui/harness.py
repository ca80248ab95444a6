"""The chat and its application on scripted engines: `ChatHarness` without a screen, `AppHarness` under a pilot."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from unittest.mock import patch

from mlxmtp_tui.app import ChatApp
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.conversation import Answer, Conversation
from mlxmtp_tui.messages import Measured, Notice, StateChanged, TurnFinished, TurnGrew, TurnsReplaced, TurnStarted
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session, read
from mlxmtp_tui.widgets.prompt import Completions, PromptInput
from textual import events
from textual.message import Message
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Static

from mlxmtp.worker.messages import Comparison, Generate
from mlxmtp.worker.process import StartTransport
from tests.scripted_engine import (
    MEMORY,
    Engines,
    ScriptedEngine,
    answering,
    asynchronous,
    compared,
    finished,
    headless,
    loaded,
    message,
    said,
    stats,
    until,
)

__all__ = [
    "MEMORY",
    "AppHarness",
    "ChatHarness",
    "Engines",
    "RecordedMessages",
    "ScriptedEngine",
    "answer",
    "answering",
    "asynchronous",
    "brisk",
    "compared",
    "finished",
    "headless",
    "loaded",
    "message",
    "running_app",
    "running_chat",
    "said",
    "saved_chat",
    "stats",
    "until",
]


def answer(text: str, reason: str = "stop", **figures: Any) -> Answer:
    """A turn that is over, as a conversation keeps it."""
    return Answer(message(text), reason, stats(**figures))


class RecordedMessages:
    """Takes the messages of a chat in place of the screen."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        """Which of a turn's messages came, in order: "began", "ended", "changed"."""
        self.parts: list[list[str]] = []
        self.texts: list[str] = []
        self.errors: list[str] = []
        self.outcomes: list[Comparison] = []

    def __call__(self, message: Message) -> None:
        match message:
            case TurnStarted():
                self.calls.append("began")
            case TurnGrew():
                self.parts += message.segments
            case TurnFinished():
                self.calls.append("ended")
            case TurnsReplaced():
                self.calls.append("changed")
            case Measured():
                self.outcomes.append(message.comparison)
            case Notice():
                (self.errors if message.error else self.texts).append(message.text)
            case _:
                assert isinstance(message, StateChanged)


class ChatHarness:
    """A `Chat` on scripted engines, with recorded messages and a clock that a test moves."""

    def __init__(
        self,
        engines: Engines,
        options: ChatOptions,
        resumed: tuple[Session, Conversation] | None,
        start: StartTransport | None = None,
    ) -> None:
        self.engines = engines
        self.view = RecordedMessages()
        self.now = 100.0
        self.chat = Chat(self.view, start or engines, options, Session.new, resumed)
        self.chat.state.clock = lambda: self.now

    @property
    def engine(self) -> ScriptedEngine:
        return self.engines.newest

    @property
    def status(self) -> str:
        return self.chat.state.status

    @property
    def answers(self) -> list[str | None]:
        """What was answered to each turn; None: nothing yet."""
        return [turn.answer.text if turn.answer else None for turn in self.chat.conversation.turns]

    @property
    def reasons(self) -> list[str | None]:
        return [turn.answer.reason if turn.answer else None for turn in self.chat.conversation.turns]

    async def reach(self, status: str) -> None:
        await until(lambda: self.status == status, f"status {status}")

    def on_disk(self) -> Conversation:
        """The chat as another process would read it; an empty one has no file."""
        file = self.chat.log.session.file
        return read(file)[1] if file.exists() else Conversation()


@asynccontextmanager
async def running_chat(
    engines: Engines | None = None,
    options: ChatOptions | None = None,
    *,
    resumed: tuple[Session, Conversation] | None = None,
    status: str = "ready",
) -> AsyncIterator[ChatHarness]:
    """A chat that has come as far as `status`; left at the end."""
    harness = ChatHarness(engines or Engines(), options or ChatOptions(), resumed)
    await harness.chat.start()
    try:
        await harness.reach(status)
        yield harness
    finally:
        await harness.chat.close()


@contextmanager
def brisk() -> Iterator[None]:
    """A pilot's steps last until nothing happens for 20 ms, twice a key; here everything happens within a few.

    The chat collects garbage when it begins, which takes half a second among all that pytest has imported.
    """
    with patch.multiple("textual._wait", SLEEP_GRANULARITY=0.004, SLEEP_IDLE=0.001), patch("gc.collect"):
        yield


# -- the application --------------------------------------------------------------------------------------------


class AppHarness:
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
    def prompt(self) -> PromptInput:
        return self.app.query_one(PromptInput)

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
        await self.until(lambda: self.chat.state.status == status, f"status {status}")

    def _all(self) -> str:
        return f"{self.seen()}\n{self.notices}\n{self.chat.state.status}: {self.turns}"

    async def asks(self, text: str, answered: str) -> None:
        """A turn from the question to its figures."""
        self.engine.on(Generate, answering(answered))
        await self.enter(text)
        await self.until(self.drawn, f"the answer to {text}")

    def drawn(self) -> bool:
        """Whether every turn is on the screen to its last line; of chats that are not too long for it."""
        asked, figures = (len(self.app.query(name)) for name in ("UserMessage", "StatsLine"))
        return self.chat.state.status == "ready" and asked == figures == len(self.turns)

    async def leaves(self) -> None:
        """The application comes to its end; what it cleans up is clean behind `chatting`."""
        await until(lambda: not self.app.is_running, "the end")


@asynccontextmanager
async def running_app(
    engines: Engines | None = None,
    options: ChatOptions | None = None,
    *,
    size: tuple[int, int] = (120, 40),
    resumed: tuple[Session, Conversation] | None = None,
    status: str = "ready",
) -> AsyncIterator[AppHarness]:
    """The application on scripted engines, as far as `status`."""
    engines = engines or Engines()
    app = ChatApp(engines, options or ChatOptions(), resumed=resumed)
    with brisk():
        async with app.run_test(size=size) as pilot:
            ui = AppHarness(app, pilot, engines)
            await ui.until(lambda: app.transcript is not None, "the transcript")
            await ui.reach(status)
            yield ui


def saved_chat(turns: int, root: Any = None, model: str = "demo") -> Any:
    """The file of a chat of so many short turns."""
    session = Session.new(model, root)
    for i in range(1, turns + 1):
        session.write_user(f"question {i}", f"question {i}")
        session.write_answer(answer(f"answer {i}"))
    session.close()
    return session.file
