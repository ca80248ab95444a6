"""Textual's Markdown for streams: the cost of an append depends on the new text, not on the length of the document.

Textual redraws the last block at each append: it highlights all of a code block and rebuilds all of a list. From some
hundred lines on that takes longer than a key may wait.
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
    MarkdownParagraph,
    MarkdownTable,
)

PIECE_LINES = 32
"""Lines of a piece of a code block; an append changes the last piece only."""


class CodeBlock(MarkdownFence):
    """A code block in pieces, each highlighted by itself while the block grows; `settle` highlights it as a whole."""

    DEFAULT_CSS = """
    CodeBlock > Label { padding: 0 2; }
    """

    def __init__(self, markdown: Markdown, token: Any, code: str) -> None:
        MarkdownBlock.__init__(self, markdown, token)  # MarkdownFence would highlight all of it
        self.code = code
        self.lexer = token.info
        self.auto_links = False

    def compose(self) -> ComposeResult:
        for piece in pieces(self.code):
            yield Label(self._highlighted(piece))

    def notify_style_update(self) -> None:
        """Change the theme: the colours are names here, so nothing is highlighted again."""
        MarkdownBlock.notify_style_update(self)

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if not isinstance(block, CodeBlock):
            await super()._update_from_block(block)
            return
        self.code, self.lexer = block.code, block.lexer
        self._token = block._token
        labels, new = list(self.query(Label)), list(pieces(self.code))
        last = max(min(len(labels), len(new)) - 1, 0)
        for label, piece in zip(labels[last:], new[last:], strict=False):
            label.update(self._highlighted(piece))
        for label in labels[len(new) :]:  # the first of the closing ticks were parsed as code
            await label.remove()
        await self.mount_all([Label(self._highlighted(piece)) for piece in new[len(labels) :]])

    async def settle(self) -> None:
        """Highlight the complete block as a whole, for syntax that spans pieces, such as long strings."""
        highlighted = await asyncio.to_thread(_highlight_pieces, self.code, self.lexer)
        for label, piece in zip(self.query(Label), highlighted, strict=False):
            label.update(piece)

    def _highlighted(self, piece: str) -> Content:
        return highlight(piece.expandtabs(), language=_language(self.lexer))


class _Growing:
    """A list that redraws its last item only. Not a block: Textual takes styles from the first base class."""

    async def _update_from_block(self: Any, block: MarkdownBlock) -> None:
        items = list(block._blocks)
        rows = list(self.children)
        if type(block) is not type(self) or not rows or len(items) < len(rows):
            await _replace(self, block)
            return
        symbols = _symbols(items)
        for row, symbol in zip(rows, symbols, strict=False):  # the tenth item moves the numbers of the other nine
            bullet = row.query_children(MarkdownBullet).first()
            if bullet.symbol != symbol:
                bullet.symbol = symbol
                bullet.refresh(layout=True)
        last = rows[-1].query_children(Vertical).first()
        await _grow(last, items[len(rows) - 1]._blocks)
        await self.mount_all([_row(item, symbols[i]) for i, item in enumerate(items) if i >= len(rows)])
        self._copy_context(block)


class BulletList(_Growing, MarkdownBulletList):
    """An unordered list that grows."""


class OrderedList(_Growing, MarkdownOrderedList):
    """An ordered list that grows."""


class Table(MarkdownTable):
    """A table that can lose its last row, when more text shows that it was none; Textual's fails then."""

    async def _update_from_block(self, block: MarkdownBlock) -> None:
        if isinstance(block, MarkdownTable) and len(block._get_headers_and_rows()[1]) < len(self._rows):
            await _replace(self, block)
            return
        await super()._update_from_block(block)


IN_PLACE = (MarkdownParagraph, CodeBlock, _Growing, Table)
"""Blocks inside a list that can be updated in place; others are replaced."""


class GrowingMarkdown(Markdown):
    """Markdown that is appended to."""

    BLOCKS = Markdown.BLOCKS | {
        "fence": CodeBlock,
        "code_block": CodeBlock,
        "bullet_list_open": BulletList,
        "ordered_list_open": OrderedList,
        "table_open": Table,
    }

    def __init__(self, markdown: str | None = None) -> None:
        super().__init__(markdown, parser_factory=_parser)

    async def settle(self) -> None:
        """Highlight the code of the complete text."""
        for block in self.query(CodeBlock):
            await block.settle()

    @property
    def code_blocks(self) -> list[str]:
        """The contents of the code blocks, in order."""
        return [block.code for block in self.query(CodeBlock)]


def pieces(code: str) -> Iterator[str]:
    """The code in pieces of `PIECE_LINES`; an append changes the last piece only."""
    lines = code.splitlines() or [""]
    for start in range(0, len(lines), PIECE_LINES):
        yield "\n".join(lines[start : start + PIECE_LINES])


def _highlight_pieces(code: str, lexer: str) -> list[Content]:
    whole = highlight(code.expandtabs(), language=_language(lexer)).split("\n", allow_blank=True)
    return [Content("\n").join(whole[start : start + PIECE_LINES]) for start in range(0, len(whole), PIECE_LINES)]


def _language(info: str) -> str:
    """The language after the fence; without one it is plain text, as guessing is slow."""
    words = info.split()
    return words[0] if words else "text"


async def _grow(container: Widget, blocks: list[MarkdownBlock]) -> None:
    """Update the container to the blocks of the new parse: all but its last block are the same."""
    old = [child for child in container.children if isinstance(child, MarkdownBlock)]
    if len(blocks) < len(old):
        await container.remove_children()
        await container.mount_all(blocks)
        return
    if old:
        last, newest = old[-1], blocks[len(old) - 1]
        if type(last) is type(newest) and isinstance(last, IN_PLACE):
            await last._update_from_block(newest)
        else:
            await _replace(last, newest)
    await container.mount_all(blocks[len(old) :])


async def _replace(last: Widget, block: MarkdownBlock) -> None:
    """Replace the last child of a widget by a block."""
    parent = last.parent
    assert isinstance(parent, Widget)
    await last.remove()
    await parent.mount(block)


def _row(item: Any, symbol: str) -> Horizontal:
    bullet = MarkdownBullet()
    bullet.symbol = symbol
    return Horizontal(bullet, Vertical(*item._blocks))


def _symbols(items: list[Any]) -> list[str]:
    """The bullets or numbers of the items, as Textual writes them."""
    if not items or not items[0].bullet.isdigit():
        return [item.bullet for item in items]
    numbers = [f"{number}. " for number, _ in enumerate(items, int(items[0].bullet))]
    return [number.rjust(max(map(len, numbers)) + 1) for number in numbers]


@cache
def _parser() -> MarkdownIt:
    return MarkdownIt("gfm-like")
