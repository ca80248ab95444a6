"""The help screen: keys and commands."""

from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Static

from mlxmtp_tui.commands import COMMANDS

WIDTH = 31
"""Columns of the keys and commands."""
KEYS = (
    ("enter", "send"),
    ("ctrl+j, shift+enter, \\ enter", "new line"),
    ("esc", "stop, and keep what came"),
    ("ctrl+c", "copy the selection, else stop, else clear; twice: leave"),
    ("ctrl+d", "leave, from an empty prompt"),
    ("up, down", "earlier prompts, at the first and last line"),
    ("tab", "complete a command or a path"),
    ("ctrl+y", "copy the last answer"),
    ("ctrl+r", "answer again; restart an engine that is gone or hangs"),
    ("ctrl+o", "take the last message back to change it"),
    ("ctrl+t", "unfold or fold thinking"),
    ("ctrl+s", "statistics: live, over the turns, one line"),
    ("page up, page down", "scroll; ctrl+home and ctrl+end go to the ends"),
    ("ctrl+p", "all commands and themes"),
    ("f1", "this help"),
)


class HelpScreen(ModalScreen[None]):
    """Keys and commands; any key that users try closes it."""

    BINDINGS: ClassVar = [Binding("escape,f1,q,enter", "app.pop_screen", "close")]

    def compose(self) -> ComposeResult:
        with VerticalScroll(id="help"):
            yield Static("Keys", classes="heading")
            yield Static(_table(list(KEYS)))
            yield Static("\nCommands", classes="heading")
            yield Static(_table([(command.usage, command.help) for command in COMMANDS]))
            yield Static("@path puts a file into the prompt. // sends a text that begins with a slash.", classes="hint")


def _table(rows: list[tuple[str, str]]) -> Content:
    return Content("\n").join(Content.assemble((f"{left:{WIDTH}}", "$accent"), right) for left, right in rows)
