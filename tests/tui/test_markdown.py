"""Markdown that grows ends as the same text that Textual draws of the whole, however it was cut."""

from __future__ import annotations

import gc
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from mlxmtp_tui.widgets.markdown import PIECE_LINES, CodeBlock, GrowingMarkdown, pieces
from textual.app import App, ComposeResult
from textual.containers import Horizontal
from textual.content import Content
from textual.pilot import Pilot
from textual.widget import Widget
from textual.widgets import Label, Markdown

from tests.grids import cases
from tests.tui.harness import asynchronous, brisk

WIDTH, LOW, HIGH = 60, 10, 130


def code(count: int, language: str = "python", indent: str = "") -> str:
    """A fence of so many lines, some of them blank; no two are alike."""
    body = ["" if i % 7 == 5 else f"value_{i} = call({i}, 'text {i}')  # {'x' * (i % 9)}" for i in range(count)]
    return "\n".join(indent + line for line in [f"```{language}", *body, "```"])


PARAGRAPHS = (
    "A paragraph that is long enough to need more than one line of the screen, with *emphasis*, **strength**, "
    "~~errors~~ and `code`.\n\n"
    "Another, with 日本語, an emoji 👩‍👩‍👧 and a hard  \nbreak; a < b & c > d, \\*no emphasis\\*.\n"
)
TEXTS = {
    "one word": "word",
    "prose": PARAGRAPHS,
    "prose without an end": PARAGRAPHS + "\nAnd it goes **on and",
    "headings": "# One\n\ntext\n\n## Two\n### Three *so*\n#### Four\n##### Five\n###### Six\ntext below",
    "headings by lines": "One\n===\n\ntext\n\nTwo\n---\n\nthe end",
    "bullets": "Before:\n\n- one\n- two **strong**\n- three\n\nAfter.",
    "bullets without a blank line": "Before:\n- one\n- two\n\nAfter.",
    "loose bullets": "- one\n\n- two\n\n  more of two\n\n- three\n",
    "nested bullets": "- one\n  - one a\n    - deep\n      - deeper\n  - one b\n- two\n  - two a\n- three",
    "other bullets": "* one\n* two\n\n+ three\n+ four",
    "long list": "\n".join(f"- item {i} says something {'long ' * (i % 20)}" for i in range(16)),
    "numbers": "1. one\n2. two\n3. three\n",
    "numbers to twelve": "\n".join(f"{i}. item {i}" for i in range(1, 13)),
    "numbers past a hundred": "\n".join(f"{i}. item {i}" for i in range(95, 105)),
    "numbers that all say one": "1. one\n1. two\n1. three\n",
    "numbers from seven": "7. seven\n8. eight\n9. nine\n10. ten\n",
    "numbers with brackets": "1) one\n2) two\n",
    "numbers and bullets": "1. one\n   - a\n   - b\n2. two\n   1. two one\n   2. two two\n\n   text in two\n3. three\n",
    "bullets and numbers": "- a\n  1. one\n  2. two\n- b\n\n  text in b\n  > a quote in b\n- c\n",
    "tasks": "- [ ] open\n- [x] done\n",
    "table": "Before\n\n| a | b |\n| --- | ---: |\n| 1 | 2 |\n| three | `four` |\n| 5 | **6** |\n\nAfter.",
    "table at the end": "| a | b |\n|---|---|\n| 1 | 2 |\n| 3 | 4 |",
    "wide table": "| name | what it does |\n|---|---|\n"
    + "\n".join(f"| n{i} | {'many words ' * 6}|" for i in range(8)),
    "table with a heading right behind": "| a | b |\n|---|---|\n| 1 | 2 |\n# Heading\n\ntext",
    "table with a list right behind": "| a | b |\n|---|---|\n| 1 | 2 |\n- item\n- item",
    "table with a fence right behind": "| a | b |\n|---|---|\n| 1 | 2 |\n```\ncode\n```\n",
    "quotes": "> one\n> two\n>\n> three\n\ntext\n\n> > deep\n> shallow\n",
    "quote with a list and code": "> - one\n> - two\n>\n> ```python\n> x = 1\n> ```\n\nafter",
    "rules": "above\n\n---\n\nbetween\n\n***\n\nbelow",
    "links": 'See [the docs](https://example.org/a_b "title"), <https://example.org> and https://example.org/x_y_z.\n\n'
    "![a picture](https://example.org/p.png)\n",
    "html": "<details><summary>x</summary>\n\ntext\n\n</details>\n\nmore <b>text</b>",
    **{f"code of {count}": f"So:\n\n{code(count)}\n\nThat is all." for count in (0, 1, 31, 32, 33, 100)},
    **{f"code of {count} at the end": f"So:\n\n{code(count)}" for count in (1, 32, 33)},
    "code without an end": code(40).removesuffix("\n```"),
    "code without a language": code(5, ""),
    "code in an unknown language": code(5, "nonsense"),
    "code with attributes": code(5, 'python title="a.py" {1,3}'),
    "code with tildes": "~~~\na\n~~~\n",
    "code in more ticks": "````md\n```\ninside\n```\n````\n\nafter",
    "code with blank lines at its ends": "```\n\n\na\n\n\n```\n\nafter",
    "code with tabs": "```go\nfunc main() {\n\tprintln(1)\n\t\tprintln(2)\n}\n```\n",
    "code by indent": "text\n\n    indented = 1\n    more = 2\n\ntext",
    "code in a list": f"1. Do:\n\n{code(3, indent='   ')}\n\n2. Then:\n\n{code(40, 'sh', '   ')}\n\n3. Done.\n",
    "code in bullets": f"- a\n{code(2, indent='  ')}\n- b\n  - c\n{code(2, indent='    ')}\n\nend",
    "two codes": f"{code(3)}\n{code(4, 'js')}\n",
    "all of it": f"# Title\n\n{PARAGRAPHS}\n- one\n- two\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n{code(34)}\n\n"
    "> quote\n\n1. x\n2. y\n",
}


class Page(App[None]):
    """Texts side by side, all of one width."""

    # the blank lines over and under a fence are ours to leave away
    CSS = """
    #texts { height: auto; }
    #texts > * { width: 1fr; }
    MarkdownFence > Label { padding: 0 2; }
    """

    def compose(self) -> ComposeResult:
        yield Horizontal(id="texts")


@asynccontextmanager
async def page() -> AsyncIterator[Pilot[None]]:
    """A terminal that is low while texts grow, so that drawing takes no time; `lines` draws them whole."""
    gc.disable()  # as the chat does; a collection takes longer than a text
    try:
        with brisk():
            async with Page().run_test(size=(WIDTH, LOW)) as pilot:
                yield pilot
    finally:
        gc.enable()


async def put(pilot: Pilot[None], *texts: Markdown) -> None:
    await pilot.app.query_one("#texts").mount_all(texts)
    await pilot.pause()


async def lines(pilot: Pilot[None], grown: Markdown, *others: Markdown) -> list[list[str]]:
    """What is seen of each text, line by line, without blanks at their ends. The others are new."""
    # the width is another one before the others come: Textual may hold on to the height of a text that grew twice
    # before it was laid out
    await pilot.resize_terminal(WIDTH * (1 + len(others)) + (not others), HIGH)
    await put(pilot, *others)
    return [seen(pilot.app, text) for text in (grown, *others)]


def seen(app: App[Any], widget: Widget) -> list[str]:
    region = widget.region
    strips = app.screen._compositor.render_strips()[region.y : region.bottom]
    assert len(strips) == region.height, "all of it is on the screen"
    return [strip.crop(region.x, region.right).text.rstrip() for strip in strips]


def cuts(text: str, seed: int) -> Iterator[str]:
    """The text in parts as an engine says them: mostly a few characters, in a long text more at a time."""
    rng = random.Random(seed)
    longest = 3 + len(text) // 14
    at = 0
    while at < len(text):
        part = text[at : at + rng.randint(1, longest)]
        at += len(part)
        yield part


@pytest.mark.parametrize("name", cases(TEXTS, default=[*TEXTS][::9]))
@asynchronous
async def test_a_text_in_cuts_ends_as_the_whole(name: str) -> None:
    source = TEXTS[name]
    growing = GrowingMarkdown()
    async with page() as pilot:
        await put(pilot, growing)
        for part in cuts(source, seed=len(source)):
            await growing.append(part)
        whole, resumed = Markdown(source), GrowingMarkdown(source)
        grown, expected, at_once = await lines(pilot, growing, whole, resumed)
        assert any(expected), "there is something to compare"
        assert at_once == expected, "a text that was there from the start"
        assert grown == expected, "a text that grew"
        await growing.settle()
        await resumed.settle()
        await pilot.pause()
        for text in (growing, resumed):
            assert seen(pilot.app, text) == expected, "and it stays so when it is settled"
        for block in [*growing.query(CodeBlock), *resumed.query(CodeBlock)]:
            assert text_of(block).expandtabs() == block.code.expandtabs()
        assert growing.code_blocks == resumed.code_blocks


@asynchronous
async def test_a_growing_list_is_laid_out_anew_as_it_grows() -> None:
    text = "\n".join(f"- item {i} says something {'long ' * (4 + 2 * i)}" for i in range(4))
    growing, whole = GrowingMarkdown(), Markdown(text)
    async with Page().run_test(size=(2 * WIDTH, 40)) as pilot:
        await put(pilot, growing, whole)
        for part in cuts(text, seed=1):
            await growing.append(part)
            await pilot.pause()  # as the chat does, which never changes the screen twice at once
        assert seen(pilot.app, growing) == seen(pilot.app, whole)


def text_of(block: CodeBlock) -> str:
    """What the pieces of a code block show."""
    return "\n".join(content(label).plain for label in block.query(Label))


def content(label: Label) -> Content:
    shown = label.visual
    assert isinstance(shown, Content)
    return shown


@pytest.mark.parametrize("count", [PIECE_LINES - 1, PIECE_LINES, 2 * PIECE_LINES])
@asynchronous
async def test_the_end_of_a_fence_comes_tick_by_tick(count: int) -> None:
    """Ticks that are not yet three are a line of the code; it must go again when the fence ends."""
    text = code(count)
    growing, whole = GrowingMarkdown(), Markdown(text + "\nafter")
    async with page() as pilot:
        await put(pilot, growing)
        await growing.append(text.removesuffix("```"))
        for part in ("`", "`", "`", "\n", "after"):
            await growing.append(part)
            await pilot.pause()
        grown, expected = await lines(pilot, growing, whole)
        assert grown == expected


@asynchronous
async def test_code_blocks_are_the_code_of_the_fences_in_order() -> None:
    growing = GrowingMarkdown()
    async with page() as pilot:
        await put(pilot, growing)
        for part in cuts("a\n\n```py\nx = 1\n```\n\n- b\n\n  ```\n  y\n\n  z\n  ```\n\n```js\nopen", seed=3):
            await growing.append(part)
        assert growing.code_blocks == ["x = 1", "y\n\nz", "open"]


def styles(block: CodeBlock) -> list[list[str]]:
    """The styles of each line of code, but for the colour that all of it has."""
    found = []
    for label in block.query(Label):
        lines = content(label).split("\n", allow_blank=True)
        found += [
            sorted({str(span.style) for span in line.spans if span.end > span.start} - {"$text"}) for line in lines
        ]
    return found


@pytest.mark.parametrize("resumed", [False, True])
@asynchronous
async def test_a_string_over_several_pieces_is_coloured_as_a_string_when_it_is_settled(resumed: bool) -> None:
    count = 3 * PIECE_LINES
    text = '```python\ntext = """\n' + "\n".join(f"if {i} in not words" for i in range(count)) + '\n"""\n```\n'
    growing = GrowingMarkdown(text if resumed else None)
    async with page() as pilot:
        await put(pilot, growing)
        if not resumed:
            for part in cuts(text, seed=1):
                await growing.append(part)
        await growing.settle()
        (block,) = growing.query(CodeBlock)
        inside = styles(block)[1 : count + 1]
        assert len({tuple(line) for line in inside}) == 1, "every line of the string looks like every other"
        assert any("success" in style for style in inside[0]), "and as a string does"


@asynchronous
async def test_only_the_last_piece_of_a_growing_block_is_drawn_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What an append costs must not depend on what is there."""
    drawn: list[str] = []
    highlighted = CodeBlock._highlighted
    monkeypatch.setattr(
        CodeBlock, "_highlighted", lambda block, piece: drawn.append(piece) or highlighted(block, piece)
    )
    growing = GrowingMarkdown()
    async with page() as pilot:
        await put(pilot, growing)
        await growing.append("```python\n" + "\n".join(f"line_{i}" for i in range(20 * PIECE_LINES)))
        for i in range(5):
            drawn.clear()
            await growing.append(f"\nmore_{i}")
            assert sum(piece.count("\n") + 1 for piece in drawn) <= 2 * PIECE_LINES, i


@asynchronous
async def test_the_items_of_a_growing_list_stay_the_widgets_that_they_are() -> None:
    growing = GrowingMarkdown()
    async with page() as pilot:
        await put(pilot, growing)
        await growing.append("\n".join(f"- item {i}" for i in range(30)))
        await pilot.pause()
        before = list(growing.children[0].children)
        for part in (" goes on", "\n- item 30", "\n- item 31"):
            await growing.append(part)
        await pilot.pause()
        after = list(growing.children[0].children)
        assert len(after) == 32
        assert all(one is other for one, other in zip(before, after, strict=False))


def test_pieces_are_the_code_in_parts_that_stay() -> None:
    def joined(text: str) -> Any:
        return "\n".join(pieces(text))

    for count in (1, PIECE_LINES - 1, PIECE_LINES, PIECE_LINES + 1, 5 * PIECE_LINES):
        text = "\n".join(f"line {i}" for i in range(count))
        found = list(pieces(text))
        assert joined(text) == text
        assert len(found) == -(-count // PIECE_LINES)
        grown = list(pieces(text + "\nmore"))
        assert grown[: len(found) - 1] == found[:-1], "an append leaves all but the last"
    assert list(pieces("")) == [""]


@pytest.mark.parametrize("mark", cases(["\u2028", "\x85", "\x0c", "\x1c", "\x0b"], default=["\u2028"]), ids=ascii)
@asynchronous
async def test_unusual_line_ends_do_not_lose_text(mark: str) -> None:
    """Python takes them for line ends, Markdown does not."""
    text = f"one{mark}two\n\nthree{mark}four\n\n```\nfive{mark}six\nseven\n```\n\nlast{mark}words\n\nthe end"
    growing = GrowingMarkdown()
    async with page() as pilot:
        await put(pilot, growing)
        for part in cuts(text, seed=5):
            await growing.append(part)
        await growing.settle()
        (shown,) = await lines(pilot, growing)
        words = "\n".join(shown)
        for word in ("one", "two", "three", "four", "five", "six", "seven", "last", "words", "the end"):
            assert words.count(word) == 1, (word, words.strip())
