"""The conversation on the screen: the newest turns, and older ones on demand."""

from __future__ import annotations

from textual.containers import VerticalScroll
from textual.message import Message
from textual.widgets import Static

from mlxmtp_tui.conversation import Turn
from mlxmtp_tui.figures import plural
from mlxmtp_tui.widgets.turns import Thinking, TurnView

MOUNTED = 24
"""Turns on the screen at first, and more each time: layout takes time for each widget, seen or not."""


class Earlier(Static):
    """The way to the turns that are not mounted."""

    class Asked(Message):
        """It was clicked."""

    def on_click(self) -> None:
        self.post_message(self.Asked())


class Transcript(VerticalScroll):
    """Follows the end until the reader scrolls."""

    can_focus = True

    def __init__(self) -> None:
        super().__init__()
        self._turns: list[Turn] = []
        self._first = 0
        self._unfolded = False

    def on_mount(self) -> None:
        self.anchor()

    async def show(self, turns: list[Turn]) -> None:
        """Draw a conversation from its end."""
        self._turns = turns
        self._first = max(len(turns) - MOUNTED, 0)
        async with self.batch():
            await self.remove_children()
            await self._add_earlier()
            await self.mount_all(TurnView(turn, unfolded=self._unfolded) for turn in turns[self._first :])
        self.anchor()

    async def begin(self) -> TurnView:
        """Draw the newest turn; the oldest ones make room."""
        view = TurnView(self._turns[-1], unfolded=self._unfolded)
        await self.mount(view)
        views = list(self.query(TurnView))
        if len(views) > 2 * MOUNTED:
            await self.remove_children(views[:MOUNTED])
            self._first += MOUNTED
            await self._add_earlier()
        self.anchor()
        return view

    async def note(self, text: str) -> None:
        """A remark between the turns."""
        await self.mount(Static(text, classes="note", markup=False))
        self.anchor()

    async def earlier(self) -> None:
        """Mount some more of what was before, and stay where the reader is."""
        if not self._first:
            return
        first = max(self._first - MOUNTED, 0)
        views = [TurnView(turn, unfolded=self._unfolded) for turn in self._turns[first : self._first]]
        top = self.query(TurnView).first()
        self._first = first
        async with self.batch():
            await self.mount_all(views, before=top)
            await self._add_earlier()
        self.call_after_refresh(self.scroll_to_widget, top, animate=False, top=True)

    def unfold(self, *, unfolded: bool) -> None:
        """All thinking, now and from now on."""
        self._unfolded = unfolded
        for thinking in self.query(Thinking):
            thinking.fold(unfolded=unfolded)

    @property
    def unfolded(self) -> bool:
        return self._unfolded

    @property
    def last(self) -> TurnView:
        return self.query(TurnView).last()

    def page(self, pages: int) -> None:
        """Scroll by pages; at the top, what was before comes."""
        if pages < 0 and self.scroll_y <= 0:
            self.run_worker(self.earlier())
        self.scroll_relative(y=pages * max(self.size.height - 2, 1), animate=False)
        if pages > 0 and self.scroll_y >= self.max_scroll_y:
            self.anchor()

    async def on_earlier_asked(self) -> None:
        await self.earlier()

    async def _add_earlier(self) -> None:
        await self.query(Earlier).remove()
        if self._first:
            await self.mount(Earlier(f"▲ {plural(self._first, 'earlier turn')}"), before=0)
