"""The application: lays out the screen, gives keys to the chat, draws what the chat says."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from textual import events, on
from textual.app import App, ComposeResult, SystemCommand
from textual.binding import Binding
from textual.screen import Screen
from textual.widgets import Static

from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.messages import Comparison
from mlxmtp.worker.process import StartTransport, WorkerProcess
from mlxmtp_tui import clipboard, commands, history
from mlxmtp_tui.changes import Changes
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.conversation import Conversation
from mlxmtp_tui.figures import measurement
from mlxmtp_tui.roles import Options
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.slash import SlashCommands
from mlxmtp_tui.widgets.panel import Panel, View, head_lines, one_line, shortened
from mlxmtp_tui.widgets.prompt import Completions, Prompt

if TYPE_CHECKING:
    from mlxmtp_tui.widgets.transcript import Transcript

NARROW = 100
"""Columns below which the panel is folded to a line."""
TICK_S = 0.3
ALONE_S = 1.2
"""The statistics are drawn with the answer; so long after that, alone."""
TWICE_S = 2.0
IDLE_S = 1.5
AGAIN_S = 10.0
"""The same error is not shown more often: a full disk is one at every save."""
VIEWS: tuple[View, ...] = ("live", "turns", "line")

STATES = {
    "starting": "starting the engine …",
    "choosing": "no model · /model chooses one",
    "loading": "loading …",
    "ready": "",
    "answering": "answering · esc stops",
    "stopping": "stopping …",
    "measuring": "measuring · esc stops",
    "gone": "no engine · ctrl+r starts it",
}


class ChatApp(App[None]):
    """A chat with a local model.

    Args:
        start: starts an engine process.
        options: model and settings.
        new_session: makes the file of a new chat. resumed: a saved chat to go on with.
    """

    TITLE = "mlxmtp"
    CSS_PATH = "chat.tcss"
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (NARROW, "-wide")]  # noqa: RUF012 - as the base class has it
    BINDINGS: ClassVar = [
        Binding("ctrl+c", "interrupt", "copy, stop, clear, leave", priority=True, show=False),
        Binding("escape", "stop", "stop", show=False),
        Binding("ctrl+y", "slash('copy')", "copy the answer", priority=True),
        Binding("ctrl+r", "again", "answer again, restart", priority=True),
        Binding("ctrl+o", "slash('edit')", "edit the last message", priority=True),
        Binding("ctrl+t", "slash('think', 'show')", "show thinking", priority=True),
        Binding("ctrl+s", "slash('stats')", "statistics", priority=True),
        Binding("f1", "slash('help')", "help", priority=True),
        Binding("ctrl+z", "suspend_process", "suspend", priority=True, show=False),
    ]

    def __init__(
        self,
        start: StartTransport,
        options: Options,
        new_session: Callable[[str], Session] = Session.new,
        resumed: tuple[Session, Conversation] | None = None,
    ) -> None:
        super().__init__()
        self.chat = Chat(self, start, options, new_session, resumed)
        self.slash = SlashCommands(self)
        self.start_engine = start
        self.choose_first = options.choose
        self.stats_view: View = "live"
        self.narrow = False
        self.transcript: Transcript | None = None
        self._interrupted_at = float("-inf")
        self._dirty = True
        self._grew_at = float("-inf")
        self._key_at = time.monotonic()
        self._errors: dict[str, float] = {}
        self._changes = Changes(self)

    def compose(self) -> ComposeResult:
        completions = Completions()
        yield Panel()
        yield Static(id="place")  # the transcript's, which takes longer to import than the rest to draw
        yield completions
        yield Prompt(completions)
        yield Static(id="status", markup=False)

    def on_mount(self) -> None:
        self.query_one(Prompt).focus()
        self.query_one(Prompt).past[:] = history.load()
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.set_interval(TICK_S, self._tick)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """What takes longer than a first look at the screen."""
        from mlxmtp_tui.widgets.transcript import Transcript

        place = self.query_one("#place")
        self.transcript = Transcript()
        await self.screen.mount(self.transcript, after=place)
        await place.remove()
        self.run_worker(self.chat.start())
        self.turns_changed()
        if self.choose_first:
            self.slash("model")
        gc.collect()
        gc.disable()  # a collection takes longer than a key may wait; `_tick` collects when nobody types

    async def on_unmount(self) -> None:
        gc.enable()
        await self.chat.close()

    # what the chat asks of the screen

    def turn_began(self) -> None:
        self._changes.begin(self.chat.conversation.turns[-1])

    def turn_said(self, parts: list[list[str]]) -> None:
        self._changes.feed(parts)

    def turn_ended(self) -> None:
        if answer := self.chat.conversation.turns[-1].answer:
            self._changes.finish(answer)

    def turns_changed(self) -> None:
        self._changes.show(self.chat.conversation.turns)

    def measured(self, outcome: Comparison) -> None:
        self._changes.note(measurement(outcome, self.chat.loaded.head if self.chat.loaded else None))

    def state_changed(self) -> None:
        self._dirty = True
        if self.chat.live.status != "answering":
            self._draw()

    def say(self, text: str, *, error: bool = False) -> None:
        now = time.monotonic()
        if error and now - self._errors.get(text, float("-inf")) < AGAIN_S:
            return
        self._errors[text] = now
        self.notify(text, severity="error" if error else "information", timeout=12 if error else 4, markup=False)

    # keys

    @on(Prompt.Submitted)
    def submitted(self, event: Prompt.Submitted) -> None:
        text = event.text
        if not text.strip():
            return
        prompt = self.query_one(Prompt)
        try:
            if command := commands.parse(text):
                self._remember(text)
                self.slash(*command)
                return
            taken = self.chat.submit(text.removeprefix("/") if text.startswith("//") else text)
        except MlxmtpError as error:
            self.say(str(error), error=True)
            taken = False
        if taken:
            self._remember(text)
        else:
            prompt.put_back()

    def _remember(self, text: str) -> None:
        past = self.query_one(Prompt).past
        if not past or past[-1] != text:
            past.append(text)
            history.add(text)

    @on(Prompt.LeaveRequested)
    def leave(self) -> None:
        self.exit()

    def action_stop(self) -> None:
        self.chat.stop()

    def action_interrupt(self) -> None:
        """Copy a selection, else stop, else clear the prompt; twice leaves."""
        prompt = self.query_one(Prompt)
        if selected := self.screen.get_selected_text() or prompt.selected_text:
            self.copy(selected)
            self.screen.clear_selection()
        elif self.chat.stop():
            pass
        elif prompt.text and len(self.screen_stack) == 1:
            prompt.fill("")
        elif time.monotonic() - self._interrupted_at < TWICE_S:
            self.exit()
        else:
            self._interrupted_at = time.monotonic()
            self.say("ctrl+c again leaves")

    async def action_again(self) -> None:
        live = self.chat.live
        if live.status in ("gone", "stopping") or live.silent_s:
            await self.chat.restart()
        else:
            self.chat.retry()

    @on(Prompt.ScrollRequested)
    def scroll(self, event: Prompt.ScrollRequested) -> None:
        if self.transcript:
            self.transcript.page(event.pages)

    def action_slash(self, name: str, arguments: str = "") -> None:
        self.slash(name, arguments)

    def on_text_area_changed(self) -> None:
        self._key_at = time.monotonic()

    def on_resize(self, event: events.Resize) -> None:
        self.narrow = event.size.width < NARROW
        self.state_changed()

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        for command in commands.COMMANDS:
            yield SystemCommand(command.usage, command.help, partial(self.slash, command.name))

    # drawing

    def copy(self, text: str) -> None:
        """To the clipboard, by whichever way works here."""
        if not clipboard.copied(text):
            self.copy_to_clipboard(text)
        self.say("copied")

    def _tick(self) -> None:
        live = self.chat.live
        self.chat.keep()
        if (self._dirty or live.busy) and time.monotonic() - self._grew_at > ALONE_S:
            self._draw()
        idle = time.monotonic() - max(self._key_at, live.heard)
        if not live.busy and IDLE_S <= idle < IDLE_S + TICK_S:
            gc.collect()

    def on_answer_block_grew(self) -> None:
        self._grew_at = time.monotonic()
        self._draw()

    def _draw(self) -> None:
        if not self.is_running:
            return
        self._dirty = False
        chat, panel = self.chat, self.query_one(Panel)
        panel.display = self.stats_view != "line" and not (self.narrow and self.stats_view == "live")
        if panel.display:
            panel.draw(self.stats_view, chat.live, chat.loaded, chat.settings, chat.model_name)
        self.query_one("#status", Static).update(self._status(folded=not panel.display), layout=False)

    def _status(self, *, folded: bool) -> str:
        chat = self.chat
        state = STATES[chat.live.status]
        if silent := chat.live.silent_s:
            state = f"the engine has said nothing for {silent:.0f} s · ctrl+r restarts it"
        elif chat.live.status == "loading":
            state = f"loading {shortened(chat.model_name, 40)} …"
        parts = [state] if state else []
        if folded:
            parts += [
                one_line(chat.live, chat.loaded)
                or " · ".join([chat.model_name, *head_lines(chat.loaded, chat.settings)])
            ]
        elif not state:
            parts = ["enter sends · ctrl+j new line · f1 help"]
        return " · ".join(part for part in parts if part)


def run(options: Options, resumed: Path | None = None, *, mouse: bool = True) -> None:
    """Open the chat on this terminal; returns when the user leaves.

    Raises:
        SessionError: the chat to go on with cannot be opened.
    """
    saved = Session.resume(resumed) if resumed else None
    ChatApp(WorkerProcess.start, options, resumed=saved).run(mouse=mouse)
