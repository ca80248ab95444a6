"""Where the user types: several lines, a history, completion of commands and paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from mlxmtp_tui import commands, files

ALL = 1_000_000
"""Pages: more than any conversation has."""
LARGE_PASTE = 20_000
"""Characters of a paste that is shown as a mark: drawing more at once would hold up the keys."""


class Completions(OptionList):
    """What the word at the cursor can become."""

    can_focus = False

    def offer(self, choices: list[tuple[str, str]]) -> None:
        """Show (text, explanation) pairs; nothing where there are none. The bar stays on its row if that is left."""
        before = self.chosen
        self.clear_options()
        self.display = bool(choices)
        width = max((len(text) for text, _ in choices), default=0)
        for text, explained in choices:
            self.add_option(Option(Content(f"{text:{width}}  {explained}".rstrip()), id=text))
        if choices:
            self.highlighted = next((i for i, (text, _) in enumerate(choices) if text == before), 0)

    @property
    def chosen(self) -> str | None:
        """The choice under the bar, while there are any."""
        if not self.display or self.highlighted is None:
            return None
        return self.get_option_at_index(self.highlighted).id


class Prompt(TextArea):
    """Enter sends; ctrl+j, shift+enter, or enter after a backslash make a new line."""

    @dataclass
    class Submitted(Message):
        text: str

    @dataclass
    class ScrollRequested(Message):
        """The conversation is to scroll by so many pages, forward if positive."""

        pages: int

    class LeaveRequested(Message):
        """ctrl+d in an empty prompt."""

    def __init__(self, completions: Completions) -> None:
        super().__init__(
            placeholder="Ask something · / commands · @ files", soft_wrap=True, show_line_numbers=False,
            tab_behavior="focus", compact=True, highlight_cursor_line=False,
        )  # fmt: skip
        self.past: list[str] = []
        self._completions = completions
        self._offered = "", (0, 0)
        self._at: int | None = None
        self._draft = ""
        self._pastes: dict[str, str] = {}
        self._taken = "", dict[str, str]()

    def fill(self, text: str) -> None:
        """Replace what is typed; the cursor goes to its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def recall(self, text: str) -> None:
        """Put a text there; what was being typed is one step down."""
        self._draft, self._at = self.text, max(len(self.past) - 1, 0)
        self.fill(text)

    def take(self) -> str:
        """What was typed, pastes included; the prompt is empty afterwards."""
        text = self.text
        self._taken = text, dict(self._pastes)
        for mark, content in self._pastes.items():
            text = text.replace(mark, content)
        self._pastes.clear()
        self._at = None
        self.text = ""
        return text

    def put_back(self) -> None:
        """What was taken could not be sent."""
        text, self._pastes = self._taken
        self.fill(text)

    async def _on_key(self, event: events.Key) -> None:
        handle: dict[str, Callable[[], bool]] = {
            "enter": self._enter,
            "ctrl+j": self._new_line,
            "shift+enter": self._new_line,
            "alt+enter": self._new_line,
            "tab": self._complete,
            "up": lambda: self._move(-1),
            "down": lambda: self._move(1),
            "escape": self._close_completions,
            "ctrl+d": self._leave,
            "pageup": lambda: self._scroll(-1),
            "pagedown": lambda: self._scroll(1),
            "ctrl+home": lambda: self._scroll(-ALL),
            "ctrl+end": lambda: self._scroll(ALL),
        }
        if event.key in handle and handle[event.key]():
            event.stop()
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        event.prevent_default()
        event.stop()
        if len(text) > LARGE_PASTE:
            mark = f"[pasted {len(text):,} characters #{len(self._pastes) + 1}]"
            self._pastes[mark] = text
            text = mark
        self.insert(text)

    def on_text_area_changed(self) -> None:
        self._offer()

    def _offer(self) -> None:
        """Show what fits the text; keys can come before the message that it has changed. What was closed stays so."""
        text, cursor = now = self.text, self.cursor_location
        moved = cursor != self._offered[1] and self._completions.display
        if text != self._offered[0] or moved:
            self._offered = now
            self._completions.offer(self._choices())

    def _enter(self) -> bool:
        self._offer()
        word, chosen = self._word(), self._completions.chosen
        whole = word[1:] in commands.BY_NAME if word.startswith("/") else word in files.completions(word)
        if chosen and not whole:
            self._complete()
            if not word.startswith("/"):
                return True
        row, column = self.cursor_location
        if self.document.get_line(row)[:column].endswith("\\"):
            self.delete((row, column - 1), (row, column))
            return self._new_line()
        self._completions.offer([])
        self.post_message(self.Submitted(self.take()))
        return True

    def _new_line(self) -> bool:
        self.insert("\n")
        return True

    def _complete(self) -> bool:
        self._offer()
        chosen = self._completions.chosen
        if chosen is None:
            return False
        row, column = self.cursor_location
        more = "" if chosen.endswith("/") else " "
        self.replace(chosen + more, (row, column - len(self._word())), (row, column))
        return True

    def _move(self, by: int) -> bool:
        self._offer()
        if self._completions.chosen is not None:
            (self._completions.action_cursor_up if by < 0 else self._completions.action_cursor_down)()
            return True
        row, _ = self.cursor_location
        if row != (0 if by < 0 else self.document.line_count - 1) or not self.past:
            return False
        at = len(self.past) if self._at is None else self._at
        if at == len(self.past):
            self._draft = self.text
        at = min(max(at + by, 0), len(self.past))
        self._at = at
        self.fill(self.past[at] if at < len(self.past) else self._draft)
        if by < 0:
            self.move_cursor((0, 0))
        return True

    def _close_completions(self) -> bool:
        self._offer()
        shown = self._completions.chosen is not None
        self._completions.offer([])
        return shown

    def _scroll(self, pages: int) -> bool:
        self.post_message(self.ScrollRequested(pages))
        return True

    def _leave(self) -> bool:
        if not self.text:
            self.post_message(self.LeaveRequested())
        return not self.text

    def _word(self) -> str:
        """The word that ends at the cursor."""
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        if '@"' in before and before.count('"') % 2:
            return before[before.rindex('@"') :]
        return before.split(" ")[-1] if before else ""

    def _choices(self) -> list[tuple[str, str]]:
        word = self._word()
        row, column = self.cursor_location
        if word.startswith("/") and (row, column) == (0, len(word)):
            return [(f"/{command.name}", command.help) for command in commands.completions(word)]
        if word.startswith("@"):
            return [(found, "") for found in files.completions(word) if found != word]
        return []
