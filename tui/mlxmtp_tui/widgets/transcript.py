"""The conversation on the screen: the newest turns, and older ones on demand."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from mlxmtp_tui.conversation import Turn
from mlxmtp_tui.figures import plural
from mlxmtp_tui.widgets.turns import AnswerBlock, Asked, Thinking, drawn

MOUNTED = 24
"""Turns on the screen at first, and more each time: layout takes time for each widget, seen or not."""


class Earlier(Static):
    """The way to the turns that are not mounted."""

    class Wanted(Message):
        """It was clicked."""

    def on_click(self) -> None:
        self.post_message(self.Wanted())


class Transcript(VerticalScroll):
    """Follows the end until the reader scrolls."""

    can_focus = False

    def __init__(self) -> None:
        super().__init__()
        self._turns: list[Turn] = []
        self._first = 0
        self._answering: AnswerBlock | None = None
        self.unfolded = False

    async def show(self, turns: list[Turn]) -> None:
        """Draw a conversation from its end; a turn without an answer is going to get one."""
        self._leave()
        self._turns = turns
        now = list(turns)  # while this is drawn, an answer may come
        self._first = max(len(now) - MOUNTED, 0)
        widgets = [widget for turn in now[self._first :] for widget in drawn(turn, unfolded=self.unfolded)]
        async with self.batch():
            await self.remove_children()
            await self.mount_all(widgets)
            await self._mark_earlier()
        if now and now[-1].answer is None:
            self._answering = AnswerBlock(self, unfolded=self.unfolded)
        self.anchor()

    async def begin(self, turn: Turn) -> None:
        """Draw a new turn; the oldest ones make room."""
        self._leave()
        await self.mount(Asked(turn.typed))
        asked = list(self.query(Asked))
        if len(asked) > 2 * MOUNTED:
            keep = self.children.index(asked[-MOUNTED])
            await self.remove_children(self.children[:keep])
            self._first += len(asked) - MOUNTED
            await self._mark_earlier()
        self._answering = AnswerBlock(self, unfolded=self.unfolded)
        self.anchor()

    @property
    def answering(self) -> AnswerBlock | None:
        """Where the answer that comes is drawn."""
        return self._answering

    async def note(self, text: str) -> None:
        """A remark between the turns."""
        await self.mount(Static(text, classes="note", markup=False))
        self.anchor()

    async def earlier(self) -> None:
        """Mount some more of what was before, and stay where the reader is."""
        if not self._first:
            return
        first = max(self._first - MOUNTED, 0)
        older = self._turns[first : self._first]
        widgets: list[Widget] = [widget for turn in older for widget in drawn(turn, unfolded=self.unfolded)]
        top = self.query(Asked).first()
        self._first = first
        async with self.batch():
            await self.mount_all(widgets, before=top)
            await self._mark_earlier()
        self.call_after_refresh(self.scroll_to_widget, top, animate=False, top=True)

    def unfold(self, *, unfolded: bool) -> None:
        """All thinking, now and from now on."""
        self.unfolded = unfolded
        for thinking in self.query(Thinking):
            thinking.fold(unfolded=unfolded)

    def page(self, pages: int) -> None:
        """Scroll by pages; at the top, what was before comes."""
        if pages < 0 and self.scroll_y <= 0:
            self.run_worker(self.earlier())
        self.scroll_relative(y=pages * max(self.size.height - 2, 1), animate=False)
        if pages > 0 and self.scroll_y >= self.max_scroll_y:
            self.anchor()

    async def on_earlier_wanted(self) -> None:
        await self.earlier()

    def on_unmount(self) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._answering:
            self._answering.cancel()
        self._answering = None

    async def _mark_earlier(self) -> None:
        await self.query(Earlier).remove()
        if self._first:
            await self.mount(Earlier(f"▲ {plural(self._first, 'earlier turn')}"), before=0)
