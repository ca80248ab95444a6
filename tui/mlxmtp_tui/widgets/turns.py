"""A turn on the screen: the user's message, the answer as it is generated, one line of statistics.

The widgets of all turns are children of the transcript: a container a turn would be laid out at every change.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from textual.app import ComposeResult
from textual.containers import Vertical
from textual.content import Content
from textual.events import Click
from textual.message import Message
from textual.widget import Widget
from textual.widgets import Static

from mlxmtp.terminal import visible
from mlxmtp_tui.conversation import Answer, ChatTurn, format_call
from mlxmtp_tui.formatting import MUTED, plural, turn_line
from mlxmtp_tui.widgets.markdown import GrowingMarkdown

MIN_INTERVAL_S = 0.06
"""Least seconds between two updates of the screen."""
CPU_SHARE = min(0.02 * (os.cpu_count() or 1), 0.2)
"""Share of one processor that this process may take while an answer is generated: the engine needs the rest."""
MAX_INTERVAL_S = 0.8
"""Most seconds between two updates of the screen, whatever they cost."""
FOLD_LINES = 24
"""Lines of a user's message from which on it is folded."""
FOLD_CHARACTERS = 8000
"""Characters of a user's message from which on it is folded."""
SHOWN_LINES = 16
"""Lines of a folded message."""
SHOWN_CHARACTERS = 2000
"""Most characters of a folded message."""


class UserMessage(Static):
    """The user's message. A long one is folded until it is clicked."""

    def __init__(self, typed: str) -> None:
        self._lines = visible(typed).split("\n")
        self._folded = len(self._lines) > FOLD_LINES or len(typed) > FOLD_CHARACTERS
        super().__init__(self._content())

    def on_click(self) -> None:
        if self._folded:
            self._folded = False
            self.update(self._content())

    def _content(self) -> Content:
        if not self._folded:
            return Content("\n".join(self._lines))
        shown = "\n".join(self._lines[:SHOWN_LINES])[:SHOWN_CHARACTERS]
        more = plural(len(self._lines) - SHOWN_LINES, "more line") if len(self._lines) > FOLD_LINES else "more"
        return Content.assemble(shown, ("\n… " + more, MUTED))


class ThinkingBlock(Vertical):
    """The model's thinking, folded to one line until it is clicked.

    Args:
        done: whether the thinking is complete.
    """

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
    """A tool call: the text that the model writes, then the parsed call."""

    def __init__(self, text: str) -> None:
        super().__init__(f"⚒ {text.strip()}", markup=False)
        self._text = text

    def feed(self, text: str) -> None:
        self._text += text
        self.update(f"⚒ {self._text.strip()}")

    def show_parsed(self, call: str) -> None:
        self.update(f"⚒ {call}")


class StatsLine(Static):
    """The statistics under an answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(turn_line(answer.stats, answer.reason, answer.speedup), markup=False)


class StreamingAnswer:
    """The answer that is being generated, at the end of the transcript.

    `feed` can be called at any rate. The screen is updated as often as `CPU_SHARE` and the intervals allow.

    Args:
        transcript: the parent of its widgets.
        unfolded: whether thinking is shown.
    """

    class Updated(Message):
        """The answer was updated; what is drawn now shares its layout."""

    def __init__(self, transcript: Widget, *, unfolded: bool) -> None:
        self._transcript = transcript
        self._unfolded = unfolded
        self._blocks: list[Widget] = []
        self._open_block: Widget | None = None  # to which text of its kind is added
        self._pending: list[list[str]] = []
        self._fed = asyncio.Event()
        self._ended = asyncio.Event()
        self._updating = asyncio.create_task(self._update())

    def feed(self, segments: Iterable[list[str]]) -> None:
        """Add [kind, text] pairs."""
        self._pending += segments
        self._fed.set()

    async def finish(self, answer: Answer) -> None:
        """Show the rest, the parsed tool calls and the statistics."""
        self._ended.set()
        self._fed.set()
        await self._updating
        for block in self._blocks:
            if isinstance(block, ThinkingBlock):
                block.finish()
        call_blocks = (block for block in self._blocks if isinstance(block, ToolCallBlock))
        for call_block, call in zip(call_blocks, answer.calls, strict=False):
            call_block.show_parsed(_call_text(call))
        await self._transcript.mount(StatsLine(answer))
        for block in self._blocks:
            if isinstance(block, GrowingMarkdown):
                await block.settle()

    def cancel(self) -> None:
        """End the updates: the transcript shows something else."""
        self._updating.cancel()

    async def _update(self) -> None:
        used, started = time.process_time(), time.monotonic()
        while True:
            await self._fed.wait()
            self._fed.clear()
            pending, self._pending = self._pending, []
            for kind, text in _joined(pending):
                await self._append(kind, visible(text))
            self._transcript.post_message(self.Updated())
            if self._ended.is_set() and not self._pending:
                return
            await asyncio.sleep(MIN_INTERVAL_S)  # layout and drawing follow the append, and count too
            owed = (time.process_time() - used) / CPU_SHARE - (time.monotonic() - started)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), min(max(owed, 0), MAX_INTERVAL_S))
            if not 0 < owed < MAX_INTERVAL_S:  # saved time is not spent later, a large debt is written off
                used, started = time.process_time(), time.monotonic()

    async def _append(self, kind: str, text: str) -> None:
        last = self._open_block
        if kind == "tool":
            if isinstance(last, ToolCallBlock):
                last.feed(text)
            elif text:
                await self._add(ToolCallBlock(text))
        elif kind == "thinking":
            if isinstance(last, ThinkingBlock):
                last.feed(text)
            elif text.strip():
                await self._add(ThinkingBlock(text, unfolded=self._unfolded, done=False))
        elif isinstance(last, GrowingMarkdown):
            await last.append(text)
        elif text := text.lstrip("\n"):
            if isinstance(last, ThinkingBlock):
                last.finish()
            markdown = GrowingMarkdown()
            await self._add(markdown)
            await markdown.append(text)
        elif isinstance(last, ToolCallBlock):
            self._open_block = None  # an empty text ends a call; the next one gets a block of its own

    async def _add(self, block: Widget) -> None:
        self._blocks.append(block)
        self._open_block = block
        await self._transcript.mount(block)


def turn_widgets(turn: ChatTurn, *, unfolded: bool) -> list[Widget]:
    """The widgets of a turn whose answer is complete, or has not begun."""
    widgets: list[Widget] = [UserMessage(turn.typed)]
    if answer := turn.answer:
        if answer.thinking:
            widgets.append(ThinkingBlock(visible(answer.thinking), unfolded=unfolded))
        if answer.text:
            widgets.append(GrowingMarkdown(visible(answer.text)))
        widgets += [ToolCallBlock(_call_text(call)) for call in answer.calls]
        widgets.append(StatsLine(answer))
    return widgets


def _call_text(call: dict[str, Any]) -> str:
    """A tool call as it is shown."""
    return visible(format_call(call).strip("`"))


def _joined(segments: list[list[str]]) -> list[tuple[str, str]]:
    """Segments with neighbours of one kind joined."""
    joined: list[tuple[str, str]] = []
    for kind, text in segments:
        if joined and joined[-1][0] == kind:
            joined[-1] = kind, joined[-1][1] + text
        else:
            joined.append((kind, text))
    return joined
