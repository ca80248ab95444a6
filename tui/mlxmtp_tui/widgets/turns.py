"""A turn on the screen: what was asked, the answer as it comes, one line of figures."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Click
from textual.widgets import Static

from mlxmtp_tui.conversation import Answer, Turn, call_line
from mlxmtp_tui.figures import plural, turn_line
from mlxmtp_tui.widgets.markdown import GrowingMarkdown

PAUSE_S = 0.06
"""The least time between two appends, and four times what the last one took: the screen must stay free for keys."""
SHARE = 4
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
        return Content.assemble(shown, ("\n… " + more, "$text-muted"))


class Thinking(Vertical):
    """The model's thinking, folded to one line."""

    def __init__(self, text: str = "", *, unfolded: bool = False) -> None:
        super().__init__()
        self._text = text
        self._unfolded = unfolded
        self._done = bool(text)

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
        if not self.is_mounted:
            return
        words = plural(len(self._text.split()), "word")
        arrow = "▾" if self._unfolded else "▸"
        self.query_one(".fold", Static).update(f"{arrow} {'thought' if self._done else 'thinking …'} ({words})")
        body = self.query_one(".thought", Static)
        body.display = self._unfolded
        if self._unfolded:
            body.update(self._text.strip("\n"))


class Called(Static):
    """A tool call: as the model writes it, then as it was understood."""

    def __init__(self, text: str = "") -> None:
        super().__init__(markup=False)
        self.feed(text)

    def feed(self, text: str) -> None:
        self._text = getattr(self, "_text", "") + text
        self.update(f"⚒ {self._text.strip()}")

    def understood(self, call: str) -> None:
        self.update(f"⚒ {call}")


class Said(Vertical):
    """An answer. `feed` may be called at any rate; the screen follows as fast as it can without losing keys."""

    def __init__(self, *, unfolded: bool = False) -> None:
        super().__init__()
        self._unfolded = unfolded
        self._due: list[list[str]] = []
        self._wake = asyncio.Event()
        self._over = False
        self._drawing: asyncio.Task[None] | None = None

    def on_mount(self) -> None:
        self._drawing = asyncio.create_task(self._draw())

    def on_unmount(self) -> None:
        if self._drawing:
            self._drawing.cancel()

    def feed(self, parts: Iterable[list[str]]) -> None:
        self._due += parts
        self._wake.set()

    async def finish(self, answer: Answer) -> None:
        """Draw what is left, and what is known only now."""
        self._over = True
        self._wake.set()
        if self._drawing:
            await self._drawing
        for widget in self.query(Thinking):
            widget.finish()
        for called, call in zip(self.query(Called), answer.calls, strict=False):
            called.understood(call_line(call).strip("`"))
        if line := turn_line(answer.stats, answer.reason, answer.speedup):
            await self.mount(Static(line, classes="figures", markup=False))
        for markdown in self.query(GrowingMarkdown):
            await markdown.settle()

    @property
    def code_blocks(self) -> list[str]:
        return [code for markdown in self.query(GrowingMarkdown) for code in markdown.code_blocks]

    async def _draw(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            due, self._due = self._due, []
            started = time.perf_counter()
            for kind, text in _joined(due):
                await self._append(kind, text)
            if self._over and not self._due:
                return
            await asyncio.sleep(max(PAUSE_S, SHARE * (time.perf_counter() - started)))

    async def _append(self, kind: str, text: str) -> None:
        last = self.children[-1] if self.children else None
        if kind == "tool":
            if isinstance(last, Called):
                last.feed(text)
            elif text:
                await self.mount(Called(text))
        elif kind == "thinking":
            if isinstance(last, Thinking):
                last.feed(text)
            elif text.strip():
                await self.mount(Thinking(text, unfolded=self._unfolded))
                self.query(Thinking).last()._done = False
        elif isinstance(last, GrowingMarkdown):
            await last.append(text)
        elif text := text.lstrip("\n"):
            if isinstance(last, Thinking):
                last.finish()
            markdown = GrowingMarkdown()
            await self.mount(markdown)
            await markdown.append(text)


class TurnView(Vertical):
    """One turn of the conversation."""

    def __init__(self, turn: Turn, *, unfolded: bool = False) -> None:
        super().__init__()
        self._turn = turn
        self._said = Said(unfolded=unfolded)

    def compose(self) -> ComposeResult:
        yield Asked(self._turn.typed)
        yield self._said

    async def on_mount(self) -> None:
        if answer := self._turn.answer:
            self._said.feed([["thinking", answer.thinking], ["text", answer.text]])
            for call in answer.calls:
                self._said.feed([["text", ""], ["tool", call_line(call).strip("`")]])
            self.run_worker(self._said.finish(answer))

    @property
    def said(self) -> Said:
        return self._said


def _joined(parts: list[list[str]]) -> list[tuple[str, str]]:
    whole: list[tuple[str, str]] = []
    for kind, text in parts:
        if whole and whole[-1][0] == kind:
            whole[-1] = kind, whole[-1][1] + text
        else:
            whole.append((kind, text))
    return whole
