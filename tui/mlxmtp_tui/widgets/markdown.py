"""Textual's Markdown, made to grow: what an append costs depends on what is appended, not on what is there.

Textual draws the last block anew at every append: highlights all of a code block, rebuilds all of a list. Past some
hundred lines that takes longer than a key may wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import Any

from markdown_it import MarkdownIt
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.highlight import highlight
from textual.widget import Widget
from textual.widgets import Label, Markdown
from textual.widgets._markdown import (
    MarkdownBlock,
    MarkdownBullet,
    MarkdownBulletList,
    MarkdownFence,
    MarkdownOrderedList,
)

PIECE_LINES = 32
"""A code block is drawn in pieces of so many lines; only the last one changes."""


class CodeBlock(MarkdownFence):
    """A code block in pieces. While it grows, each piece is highlighted by itself; `settle` does the whole again."""

    DEFAULT_CSS = """
    CodeBlock > Label { padding: 0 2; width: auto; }
    """

    def __init__(self, markdown: Markdown, token: Any, code: str) -> None:
        MarkdownBlock.__init__(self, markdown, token)  # the parent's would highlight all of it
        self.code = code
        self.lexer = token.info
        self.auto_links = False

    def compose(self) -> ComposeResult:
        for piece in pieces(self.code):
            yield Label(self._highlighted(piece))

    def notify_style_update(self) -> None:
        """A theme changes colours, which are names here."""
        MarkdownBlock.notify_style_update(self)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not isinstance(block, CodeBlock):
            await super()._update_from_block(block)
            return
        self.code, self.lexer = block.code, block.lexer
        self._token = block._token
        labels, new = list(self.query(Label)), list(pieces(self.code))
        last = max(len(labels) - 1, 0)
        for label, piece in zip(labels[last:], new[last:], strict=False):
            label.update(self._highlighted(piece))
        await self.mount_all([Label(self._highlighted(piece)) for piece in new[len(labels) :]])

    async def settle(self) -> None:
        """It will not grow any more: colour what reaches over pieces, such as long strings, as what it is."""
        found = await asyncio.to_thread(_sliced, self.code, self.lexer)
        for label, piece in zip(self.query(Label), found, strict=False):
            label.update(piece)

    def _highlighted(self, piece: str) -> Content:
        return highlight(piece, language=_language(self.lexer))


class _Growing(MarkdownBlock):
    """A list whose last item alone is drawn anew."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        items = list(block._blocks)
        rows = list(self.children)
        if type(block) is not type(self) or not rows or len(items) < len(rows):
            await super()._update_from_block(block)
            return
        last = rows[-1].query_children(Vertical).first()
        await _grow(last, items[len(rows) - 1]._blocks)
        await self.mount_all([_row(item) for item in items[len(rows) :]])
        self._copy_context(block)


class BulletList(_Growing, MarkdownBulletList):
    """An unordered list that grows."""

    # the parents' rules are for their own types
    DEFAULT_CSS = "BulletList Horizontal, BulletList Vertical { height: auto; width: 1fr; }"


class OrderedList(_Growing, MarkdownOrderedList):
    """An ordered list that grows."""

    DEFAULT_CSS = "OrderedList Horizontal, OrderedList Vertical { height: auto; width: 1fr; }"


class GrowingMarkdown(Markdown):
    """Markdown for a text that comes bit by bit."""

    BLOCKS = Markdown.BLOCKS | {
        "fence": CodeBlock,
        "code_block": CodeBlock,
        "bullet_list_open": BulletList,
        "ordered_list_open": OrderedList,
    }

    def __init__(self, markdown: str | None = None) -> None:
        super().__init__(markdown, parser_factory=_parser)

    async def settle(self) -> None:
        """The text is complete."""
        for block in self.query(CodeBlock):
            await block.settle()

    @property
    def code_blocks(self) -> list[str]:
        """The code of its fences, in order."""
        return [block.code for block in self.query(CodeBlock)]


def pieces(code: str) -> Iterator[str]:
    """The code in parts that an append leaves as they are, but for the last."""
    lines = code.splitlines() or [""]
    for start in range(0, len(lines), PIECE_LINES):
        yield "\n".join(lines[start : start + PIECE_LINES])


def _sliced(code: str, lexer: str) -> list[Content]:
    whole = highlight(code, language=_language(lexer)).split("\n", allow_blank=True)
    return [Content("\n").join(whole[start : start + PIECE_LINES]) for start in range(0, len(whole), PIECE_LINES)]


def _language(info: str) -> str:
    """The name after the fence; guessing without one costs more than it tells."""
    words = info.split()
    return words[0] if words else "text"


async def _grow(container: Widget, blocks: list[MarkdownBlock]) -> None:
    """Make the container's blocks those of the new parse: all but the last are there and the same."""
    old = [child for child in container.children if isinstance(child, MarkdownBlock)]
    if len(blocks) < len(old) or (old and type(old[-1]) is not type(blocks[len(old) - 1])):
        await container.remove_children()
        await container.mount_all(blocks)
        return
    if old:
        await old[-1]._update_from_block(blocks[len(old) - 1])
    await container.mount_all(blocks[len(old) :])


def _row(item: Any) -> Horizontal:
    bullet = MarkdownBullet()
    bullet.symbol = item.bullet if not item.bullet.isdigit() else f" {item.bullet}. "
    return Horizontal(bullet, Vertical(*item._blocks))


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("gfm-like")
