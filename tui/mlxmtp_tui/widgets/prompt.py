"""The prompt: several lines, a history, completion of commands and paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from textual import events
from textual.content import Content
from textual.message import Message
from textual.widgets import OptionList, TextArea
from textual.widgets.option_list import Option

from mlxmtp.terminal import visible
from mlxmtp_tui import arguments, commands, files

ALL_PAGES = 1_000_000
"""More pages than any conversation has."""
LARGE_PASTE = 20_000
"""Characters of a paste from which on a placeholder is shown: drawing more would delay the keys."""


class Completions(OptionList):
    """A list of completions of the word at the cursor."""

    can_focus = False

    def offer(self, choices: list[tuple[str, str]]) -> None:
        """Show (text, explanation) pairs; hide the list without any. The same text stays highlighted."""
        before = self.chosen
        self.clear_options()
        self.display = bool(choices)
        width = max((len(visible(text)) for text, _ in choices), default=0)
        for text, explanation in choices:
            self.add_option(Option(Content(f"{visible(text):{width}}  {explanation}".rstrip()), id=text))
        if choices:
            self.highlighted = next((i for i, (text, _) in enumerate(choices) if text == before), 0)

    @property
    def chosen(self) -> str | None:
        """The highlighted completion; None while the list is hidden."""
        if not self.display or self.highlighted is None:
            return None
        return self.get_option_at_index(self.highlighted).id


class PromptInput(TextArea):
    """Enter sends; ctrl+j, shift+enter, or enter after a backslash make a new line."""

    @dataclass
    class Submitted(Message):
        text: str

    @dataclass
    class ScrollRequested(Message):
        """The conversation has to scroll by `pages`, forward if positive."""

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
        self._offered = "", (0, 0)  # text and cursor that the completions are for
        self._picked = False  # the highlighted completion was chosen with the arrows
        self._past_index: int | None = None  # of the earlier prompt that is shown
        self._draft = ""  # what was typed before an earlier prompt was shown
        self._pastes: dict[str, str] = {}  # by their placeholders
        self._submitted = "", dict[str, str]()  # the last prompt and its pastes

    def fill(self, text: str) -> None:
        """Replace the text; the cursor goes to its end."""
        self.text = text
        self.move_cursor(self.document.end)

    def recall(self, text: str) -> None:
        """Show a text as if it came from the history: the down key brings back the present text."""
        self._draft, self._past_index = self.text, max(len(self.past) - 1, 0)
        self.fill(text)

    def take(self) -> str:
        """Empty the prompt. Returns its text, with the pastes in place of their placeholders."""
        text = self.text
        self._submitted = text, dict(self._pastes)
        for placeholder, content in self._pastes.items():
            text = text.replace(placeholder, content)
        self._pastes.clear()
        self._past_index = None
        self.text = ""
        return text

    def put_back(self) -> None:
        """Undo `take`: the text could not be sent."""
        text, self._pastes = self._submitted
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
            "ctrl+home": lambda: self._scroll(-ALL_PAGES),
            "ctrl+end": lambda: self._scroll(ALL_PAGES),
        }
        if event.key in handle and handle[event.key]():
            event.stop()
            event.prevent_default()

    async def _on_paste(self, event: events.Paste) -> None:
        text = event.text.replace("\r\n", "\n").replace("\r", "\n")
        event.prevent_default()
        event.stop()
        if len(text) > LARGE_PASTE:
            placeholder = f"[pasted {len(text):,} characters #{len(self._pastes) + 1}]"
            self._pastes[placeholder] = text
            text = placeholder
        self.insert(text)

    def on_text_area_changed(self) -> None:
        self._offer()

    def _offer(self) -> None:
        """Update the completions, unless text and cursor are the same: a closed list stays closed.

        Keys call it too: they can come before the message that the text has changed.
        """
        text, cursor = now = self.text, self.cursor_location
        moved = cursor != self._offered[1] and self._completions.display
        if text != self._offered[0] or moved:
            self._offered, self._picked = now, False
            self._completions.offer(self._choices())

    def _enter(self) -> bool:
        self._offer()
        word, chosen = self._word(), self._completions.chosen
        if self._argument() and not self._picked:
            chosen = None
        complete = word[1:] in commands.BY_NAME if word.startswith("/") else word in files.completions(word)
        if chosen and not complete:
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
        end = "" if chosen.endswith("/") else " "
        self.replace(chosen + end, (row, column - len(self._word())), (row, column))
        return True

    def _move(self, by: int) -> bool:
        """Move in the completions, or in the history from the first or last line."""
        self._offer()
        if self._completions.chosen is not None:
            self._picked = True
            (self._completions.action_cursor_up if by < 0 else self._completions.action_cursor_down)()
            return True
        row, _ = self.cursor_location
        if row != (0 if by < 0 else self.document.line_count - 1) or not self.past:
            return False
        index = len(self.past) if self._past_index is None else self._past_index
        if index == len(self.past):
            self._draft = self.text
        index = min(max(index + by, 0), len(self.past))
        self._past_index = index
        self.fill(self.past[index] if index < len(self.past) else self._draft)
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
        """The word that ends at the cursor; a quoted mention is one word."""
        row, column = self.cursor_location
        before = self.document.get_line(row)[:column]
        if '@"' in before and before.count('"') % 2:
            return before[before.rindex('@"') :]
        return before.split(" ")[-1] if before else ""

    def _argument(self) -> tuple[str, str] | None:
        """The command and the beginning of its argument, where the cursor is at its end."""
        at_end = self.cursor_location == self.document.end
        return arguments.argument(self.text) if at_end else None

    def _choices(self) -> list[tuple[str, str]]:
        word = self._word()
        row, column = self.cursor_location
        if found := self._argument():
            return arguments.completions(*found)
        if word.startswith("/") and (row, column) == (0, len(word)):
            return [(f"/{command.name}", command.help) for command in commands.completions(word)]
        if word.startswith("@"):
            return [(path, "") for path in files.completions(word) if path != word]
        return []
