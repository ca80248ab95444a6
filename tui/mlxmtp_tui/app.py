"""The application: lays out the screen, passes keys to the chat, shows the chat's messages."""

from __future__ import annotations

import asyncio
import gc
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from textual import events, on
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding
from textual.filter import LineFilter
from textual.screen import Screen
from textual.widgets import Static

from mlxmtp.errors import MlxmtpError
from mlxmtp.worker.process import StartTransport, WorkerProcess
from mlxmtp_tui import commands, history
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.conversation import Conversation
from mlxmtp_tui.foreign import WEB_LINK, ControlFilter
from mlxmtp_tui.formatting import measurement
from mlxmtp_tui.messages import Measured, Notice, StateChanged, TurnFinished, TurnGrew, TurnsReplaced, TurnStarted
from mlxmtp_tui.options import ChatOptions
from mlxmtp_tui.sessions import Session
from mlxmtp_tui.slash import SlashCommandApp
from mlxmtp_tui.widgets.panel import Panel
from mlxmtp_tui.widgets.prompt import Completions, PromptInput
from mlxmtp_tui.widgets.status import StatusLine

NARROW = 100
"""Columns of the terminal below which the panel is folded to a line."""
TICK_S = 0.3
"""Seconds between two checks of what has to be drawn or saved."""
ALONE_S = 1.2
"""Seconds after the last update of the answer from which on the statistics are drawn without it."""
LEAVE_S = 2.0
"""Seconds within which a second ctrl+c leaves."""
IDLE_S = 1.5
"""Seconds without a key or an event after which garbage is collected."""


class ChatApp(SlashCommandApp):
    """A chat with a local model.

    Args:
        start: starts an engine process.
        options: the model and the settings.
        new_session: makes the file of a new chat, for a model's name.
        resumed: the file and the conversation of a saved chat.
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
        options: ChatOptions,
        new_session: Callable[[str], Session] = Session.new,
        resumed: tuple[Session, Conversation] | None = None,
    ) -> None:
        super().__init__(start)
        self.chat = Chat(self.post_message, start, options, new_session, resumed)
        self._choose_first, self._first_notice = options.choose, options.notice
        self._interrupted_at = float("-inf")
        self._undrawn = True
        self._answer_updated_at = float("-inf")
        self._key_at = time.monotonic()
        self._control_filter = ControlFilter()

    def compose(self) -> ComposeResult:
        completions = Completions()
        yield Panel()
        yield Static(id="place")  # until the transcript is imported, which takes longer than a first look at the screen
        yield completions
        yield PromptInput(completions)
        yield StatusLine()

    def on_mount(self) -> None:
        self.query_one(PromptInput).focus()
        self.query_one(PromptInput).past[:] = history.load()
        for number in (signal.SIGTERM, signal.SIGHUP):
            asyncio.get_running_loop().add_signal_handler(number, self.exit)
        self.set_interval(TICK_S, self._tick)
        self.call_after_refresh(self._begin)

    async def _begin(self) -> None:
        """Do what takes longer than a first look at the screen."""
        from mlxmtp_tui.widgets.transcript import Transcript

        place = self.query_one("#place")
        self.transcript = Transcript()
        await self.screen.mount(self.transcript, after=place)
        await place.remove()
        self.run_worker(self.chat.start())
        self.post_message(TurnsReplaced(list(self.chat.conversation.turns)))
        if self._first_notice:
            self.say(self._first_notice, error=True)
        if self._choose_first:
            self.slash("model")
        gc.collect()
        gc.disable()  # a collection takes longer than a key may wait; `_tick` collects when the user is idle

    async def on_unmount(self) -> None:
        gc.enable()
        await self.chat.close()

    @on(TurnStarted)
    def turn_started(self, message: TurnStarted) -> None:
        if self.transcript:
            self.transcript.begin(message.turn)

    @on(TurnGrew)
    def turn_grew(self, message: TurnGrew) -> None:
        if self.transcript:
            self.transcript.feed(message.segments)

    @on(TurnFinished)
    def turn_finished(self, message: TurnFinished) -> None:
        if self.transcript:
            self.transcript.finish(message.answer)

    @on(TurnsReplaced)
    def turns_replaced(self, message: TurnsReplaced) -> None:
        if self.transcript:
            self.transcript.show(message.turns)

    @on(Measured)
    def measured(self, message: Measured) -> None:
        if self.transcript:
            self.transcript.note(measurement(message.comparison, self.chat.loaded.head if self.chat.loaded else None))

    @on(StateChanged)
    def state_changed(self) -> None:
        self._undrawn = True
        if self.chat.state.status != "answering":
            self._draw()

    @on(Notice)
    def notice(self, message: Notice) -> None:
        self.say(message.text, error=message.error)

    @on(PromptInput.Submitted)
    def submitted(self, event: PromptInput.Submitted) -> None:
        text = event.text
        if not text.strip():
            return
        try:
            if command := commands.parse(text):
                self._remember(text)
                self.slash(*command)
                return
            accepted = self.chat.submit(text.removeprefix("/") if text.startswith("//") else text)
        except MlxmtpError as error:
            self.say(str(error), error=True)
            accepted = False
        if accepted:
            self._remember(text)
        else:
            self.query_one(PromptInput).put_back()

    def _remember(self, text: str) -> None:
        """Add a prompt to the history."""
        past = self.query_one(PromptInput).past
        if not past or past[-1] != text:
            past.append(text)
            history.add(text)

    @on(PromptInput.LeaveRequested)
    def leave(self) -> None:
        self.exit()

    def get_line_filters(self) -> Sequence[LineFilter]:
        return [*super().get_line_filters(), self._control_filter]

    def open_url(self, url: str, *, new_tab: bool = True) -> None:
        """Open a link that was clicked, if it leads to the web."""
        if WEB_LINK.match(url):
            super().open_url(url, new_tab=new_tab)
        else:
            self.say(f"{url} is not opened: only links to http and https are")

    def action_stop(self) -> None:
        self.chat.stop()

    def action_interrupt(self) -> None:
        """Copy the selection, else stop, else clear the prompt, else leave when it is pressed twice."""
        prompt = self.query_one(PromptInput)
        if selected := self.screen.get_selected_text() or prompt.selected_text:
            self.copy(selected)
            self.screen.clear_selection()
        elif self.chat.stop():
            pass
        elif prompt.text and len(self.screen_stack) == 1:
            prompt.fill("")
        elif time.monotonic() - self._interrupted_at < LEAVE_S:
            self.exit()
        else:
            self._interrupted_at = time.monotonic()
            self.say("ctrl+c again leaves")

    async def action_again(self) -> None:
        state = self.chat.state
        if state.status in ("gone", "stopping") or state.silence_s:
            await self.chat.restart()
        else:
            self.chat.retry()

    @on(PromptInput.ScrollRequested)
    def scroll(self, event: PromptInput.ScrollRequested) -> None:
        if self.transcript:
            self.transcript.page(event.pages)

    def action_slash(self, name: str, arguments: str = "") -> None:
        self.slash(name, arguments)

    def on_text_area_changed(self) -> None:
        self._key_at = time.monotonic()

    def on_resize(self, event: events.Resize) -> None:
        self.narrow = event.size.width < NARROW
        self.post_message(StateChanged())

    def watch_stats_view(self) -> None:
        self.post_message(StateChanged())

    def get_system_commands(self, screen: Screen[Any]) -> Iterable[SystemCommand]:
        yield from super().get_system_commands(screen)
        for command in commands.COMMANDS:
            yield SystemCommand(command.usage, command.help, partial(self.slash, command.name))

    def _tick(self) -> None:
        state = self.chat.state
        self.chat.save_partial()
        if (self._undrawn or state.busy) and time.monotonic() - self._answer_updated_at > ALONE_S:
            self._draw()
        idle_s = time.monotonic() - max(self._key_at, state.last_event_at)
        if not state.busy and IDLE_S <= idle_s < IDLE_S + TICK_S:
            gc.collect()

    def on_streaming_answer_updated(self) -> None:
        self._answer_updated_at = time.monotonic()
        self._draw()

    def _draw(self) -> None:
        if not self.is_running:
            return
        self._undrawn = False
        chat, panel = self.chat, self.query_one(Panel)
        panel.display = self.stats_view != "line" and not (self.narrow and self.stats_view == "live")
        if panel.display:
            panel.draw(self.stats_view, chat.state, chat.loaded, chat.settings, chat.model_name)
        self.query_one(StatusLine).draw(chat, folded=not panel.display)


def run(options: ChatOptions, resumed: Path | None = None, *, mouse: bool = True) -> None:
    """Open the chat on this terminal until the user leaves.

    Args:
        resumed: the file of a saved chat.
        mouse: whether the chat handles the mouse, not the terminal.

    Raises:
        SessionError: the saved chat cannot be opened.
    """
    saved = Session.resume(resumed) if resumed else None
    ChatApp(WorkerProcess.start, options, resumed=saved).run(mouse=mouse)
