"""The conversation on the screen: the newest turns, and earlier ones on demand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial

from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import MountError, Widget
from textual.widgets import Static

from mlxmtp_tui.conversation import Answer, ChatTurn
from mlxmtp_tui.formatting import plural
from mlxmtp_tui.widgets.turns import StreamingAnswer, ThinkingBlock, UserMessage, turn_widgets

MOUNTED_TURNS = 24
"""Turns that are mounted at first, and with each step back: layout takes time for each widget, seen or not."""
WELCOME = "Type a message and press enter. /help shows keys and commands."


class EarlierTurns(Static):
    """A link to the turns that are not mounted."""

    class Requested(Message):
        """The link was clicked."""

    def on_click(self) -> None:
        self.post_message(self.Requested())


class Transcript(VerticalScroll):
    """Follows the end of the conversation until the reader scrolls.

    The methods that change it return at once; the changes are made one after the other.
    """

    can_focus = False

    def __init__(self) -> None:
        super().__init__()
        self._turns: list[ChatTurn] = []
        self._first_mounted = 0
        self._answer: StreamingAnswer | None = None
        self._changes: asyncio.Queue[Callable[[], Awaitable[None]]] = asyncio.Queue()
        self._unfolded = False

    def on_mount(self) -> None:
        self.run_worker(self._make_changes())

    def on_unmount(self) -> None:
        self._leave_answer()

    def show(self, turns: list[ChatTurn]) -> None:
        """Replace the conversation. A last turn without an answer is going to get one."""
        self._changes.put_nowait(partial(self._show, turns))

    def begin(self, turn: ChatTurn) -> None:
        """Add a turn, whose answer is to come."""
        self._changes.put_nowait(partial(self._begin, turn))

    def feed(self, segments: list[list[str]]) -> None:
        """Add [kind, text] pairs to the answer of the last turn."""
        self._changes.put_nowait(partial(self._feed, segments))

    def finish(self, answer: Answer) -> None:
        """End the answer of the last turn."""
        self._changes.put_nowait(partial(self._finish, answer))

    def note(self, text: str) -> None:
        """Add a remark after the last turn."""
        self._changes.put_nowait(partial(self._note, text))

    def toggle_thinking(self) -> None:
        """Unfold all thinking, of later turns too; or fold it."""
        self._unfolded = not self._unfolded
        for thinking in self.query(ThinkingBlock):
            thinking.fold(unfolded=self._unfolded)

    def page(self, pages: int) -> None:
        """Scroll by pages. At the top, earlier turns are mounted."""
        if pages < 0 and self.scroll_y <= 0:
            self.run_worker(self._mount_earlier())
        self.scroll_relative(y=pages * max(self.size.height - 2, 1), animate=False)
        if pages > 0 and self.scroll_y >= self.max_scroll_y:
            self.anchor()

    async def on_earlier_turns_requested(self) -> None:
        await self._mount_earlier()

    async def _make_changes(self) -> None:
        while True:
            change = await self._changes.get()
            try:
                await change()
            except MountError:
                if self.app.is_running and self.is_attached:
                    raise  # otherwise the app was closed meanwhile

    async def _show(self, turns: list[ChatTurn]) -> None:
        self._leave_answer()
        self._turns = turns
        self._first_mounted = max(len(turns) - MOUNTED_TURNS, 0)
        mounted = turns[self._first_mounted :]
        widgets = [widget for turn in mounted for widget in turn_widgets(turn, unfolded=self._unfolded)]
        async with self.batch():
            await self.remove_children()
            await self.mount_all(widgets)
            await self._update_earlier_link()
        if turns and turns[-1].answer is None:
            self._answer = StreamingAnswer(self, unfolded=self._unfolded)
        self.anchor()
        if not turns:
            await self._note(WELCOME)

    async def _begin(self, turn: ChatTurn) -> None:
        self._leave_answer()
        self._turns.append(turn)
        await self.mount(UserMessage(turn.typed))
        messages = list(self.query(UserMessage))
        if len(messages) > 2 * MOUNTED_TURNS:
            kept = self.children.index(messages[-MOUNTED_TURNS])
            await self.remove_children(self.children[:kept])
            self._first_mounted += len(messages) - MOUNTED_TURNS
            await self._update_earlier_link()
        self._answer = StreamingAnswer(self, unfolded=self._unfolded)
        self.anchor()

    async def _feed(self, segments: list[list[str]]) -> None:
        if self._answer:
            self._answer.feed(segments)

    async def _finish(self, answer: Answer) -> None:
        if self._turns:
            self._turns[-1] = replace(self._turns[-1], answer=answer)
        if self._answer:
            await self._answer.finish(answer)

    async def _note(self, text: str) -> None:
        await self.mount(Static(text, classes="note", markup=False))
        self.anchor()

    async def _mount_earlier(self) -> None:
        """Mount some earlier turns. The view stays where it is."""
        if not self._first_mounted:
            return
        first = max(self._first_mounted - MOUNTED_TURNS, 0)
        earlier = self._turns[first : self._first_mounted]
        widgets: list[Widget] = [widget for turn in earlier for widget in turn_widgets(turn, unfolded=self._unfolded)]
        top = self.query(UserMessage).first()
        self._first_mounted = first
        async with self.batch():
            await self.mount_all(widgets, before=top)
            await self._update_earlier_link()
        self.call_after_refresh(self.scroll_to_widget, top, animate=False, top=True)

    def _leave_answer(self) -> None:
        if self._answer:
            self._answer.cancel()
        self._answer = None

    async def _update_earlier_link(self) -> None:
        await self.query(EarlierTurns).remove()
        if self._first_mounted:
            await self.mount(EarlierTurns(f"▲ {plural(self._first_mounted, 'earlier turn')}"), before=0)
