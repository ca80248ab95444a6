"""A turn on the screen: what was asked, the answer as it comes, one line of figures.

The parts of all turns are mounted side by side: each container around them would be laid out and drawn at every step.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from mlxmtp_tui.conversation import Answer, Turn, call_line
from mlxmtp_tui.figures import MUTED, plural, turn_line
from mlxmtp_tui.widgets.markdown import GrowingMarkdown

PAUSE_S = 0.06
"""The least time between two changes of the screen."""
SHARE = min(0.02 * (os.cpu_count() or 1), 0.2)
"""Of one processor, what this process may take while an answer comes: the engine needs the rest."""
LONGEST_S = 0.8
"""The most time between two changes of the screen, whatever they take."""
FOLDED_LINES, SHOWN_LINES = 24, 16


class Asked(Static):
    """What the user sent; a long text is folded until it is clicked."""

    def __init__(self, typed: str) -> None:
        self._lines = typed.split("\n")
        self._folded = len(self._lines) > FOLDED_LINES or len(typed) > 8000
        super().__init__(self._drawn())

    def on_click(self) -> None:
        if self._folded:
            self._folded = False
            self.update(self._drawn())

    def _drawn(self) -> Content:
        if not self._folded:
            return Content("\n".join(self._lines))
        shown = "\n".join(self._lines[:SHOWN_LINES])[:2000]
        more = plural(len(self._lines) - SHOWN_LINES, "more line") if len(self._lines) > FOLDED_LINES else "more"
        return Content.assemble(shown, ("\n… " + more, MUTED))


class Thinking(Vertical):
    """The model's thinking, folded to one line."""

    def __init__(self, text: str, *, unfolded: bool, done: bool = True) -> None:
        super().__init__()
        self._text = text
        self._unfolded = unfolded
        self._done = done

    def compose(self) -> ComposeResult:
        yield Static(classes="fold")
        yield Static(classes="thought", markup=False)

    def on_mount(self) -> None:
        self._draw()

    def feed(self, text: str) -> None:
        self._text += text
        self._draw()

    def finish(self) -> None:
        self._done = True
        self._draw()

    def fold(self, *, unfolded: bool) -> None:
        self._unfolded = unfolded
        self._draw()

    def on_click(self, event: Click) -> None:
        event.stop()
        self.fold(unfolded=not self._unfolded)

    def _draw(self) -> None:
        if not self.children:
            return  # not composed yet
        words = plural(len(self._text.split()), "word")
        arrow = "▾" if self._unfolded else "▸"
        self.query_one(".fold", Static).update(f"{arrow} {'thought' if self._done else 'thinking …'} ({words})")
        body = self.query_one(".thought", Static)
        body.display = self._unfolded
        if self._unfolded:
            body.update(self._text.strip("\n"))


class ToolCallBlock(Static):
    """A tool call: as the model writes it, then as it was understood."""

    def __init__(self, text: str) -> None:
        super().__init__(f"⚒ {text.strip()}", markup=False)
        self._text = text

    def feed(self, text: str) -> None:
        self._text += text
        self.update(f"⚒ {self._text.strip()}")

    def understood(self, call: str) -> None:
        self.update(f"⚒ {call}")


class Figures(Static):
    """The line of statistics under an answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(turn_line(answer.stats, answer.reason, answer.speedup), markup=False)


class AnswerBlock:
    """The answer that comes, drawn at the end of the transcript.

    `feed` may be called at any rate: the screen follows as fast as it may, which is not always as fast as it can.

    Args:
        transcript: where the parts are mounted. unfolded: thinking is shown.
    """

    class Grew(Message):
        """There is more of it; what is drawn now takes no layout of its own."""

    def __init__(self, transcript: Widget, *, unfolded: bool) -> None:
        self._transcript = transcript
        self._unfolded = unfolded
        self._parts: list[Widget] = []
        self._open: Widget | None = None
        self._due: list[list[str]] = []
        self._wake = asyncio.Event()
        self._ended = asyncio.Event()
        self._drawing = asyncio.create_task(self._draw())

    def feed(self, parts: Iterable[list[str]]) -> None:
        self._due += parts
        self._wake.set()

    async def finish(self, answer: Answer) -> None:
        """Draw what is left, and what is known only now."""
        self._ended.set()
        self._wake.set()
        await self._drawing
        for part in self._parts:
            if isinstance(part, Thinking):
                part.finish()
        called = (part for part in self._parts if isinstance(part, ToolCallBlock))
        for part, call in zip(called, answer.calls, strict=False):
            part.understood(call_line(call).strip("`"))
        await self._transcript.mount(Figures(answer))
        for part in self._parts:
            if isinstance(part, GrowingMarkdown):
                await part.settle()

    def cancel(self) -> None:
        """The transcript shows something else now."""
        self._drawing.cancel()

    async def _draw(self) -> None:
        used, started = time.process_time(), time.monotonic()
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, []
            for kind, text in _joined(due):
                await self._append(kind, text)
            self._transcript.post_message(self.Grew())
            if self._ended.is_set() and not self._due:
                return
            await asyncio.sleep(PAUSE_S)  # layout and drawing come after the append, and count too
            owed = (time.process_time() - used) / SHARE - (time.monotonic() - started)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), min(max(owed, 0), LONGEST_S))
            if not 0 < owed < LONGEST_S:  # neither is saved time spent later, nor is a debt carried on for long
                used, started = time.process_time(), time.monotonic()

    async def _append(self, kind: str, text: str) -> None:
        last = self._open
        if kind == "tool":
            if isinstance(last, ToolCallBlock):
                last.feed(text)
            elif text:
                await self._add(ToolCallBlock(text))
        elif kind == "thinking":
            if isinstance(last, Thinking):
                last.feed(text)
            elif text.strip():
                await self._add(Thinking(text, unfolded=self._unfolded, done=False))
        elif isinstance(last, GrowingMarkdown):
            await last.append(text)
        elif text := text.lstrip("\n"):
            if isinstance(last, Thinking):
                last.finish()
            markdown = GrowingMarkdown()
            await self._add(markdown)
            await markdown.append(text)
        elif isinstance(last, ToolCallBlock):
            self._open = None  # an empty text ends a call: the next one is another

    async def _add(self, part: Widget) -> None:
        self._parts.append(part)
        self._open = part
        await self._transcript.mount(part)


def drawn(turn: Turn, *, unfolded: bool) -> list[Widget]:
    """The widgets of a turn that is over, or has no answer yet."""
    widgets: list[Widget] = [Asked(turn.typed)]
    if answer := turn.answer:
        if answer.thinking:
            widgets.append(Thinking(answer.thinking, unfolded=unfolded))
        if answer.text:
            widgets.append(GrowingMarkdown(answer.text))
        widgets += [ToolCallBlock(call_line(call).strip("`")) for call in answer.calls]
        widgets.append(Figures(answer))
    return widgets


def _joined(parts: list[list[str]]) -> list[tuple[str, str]]:
    whole: list[tuple[str, str]] = []
    for kind, text in parts:
        if whole and whole[-1][0] == kind:
            whole[-1] = kind, whole[-1][1] + text
        else:
            whole.append((kind, text))
    return whole
