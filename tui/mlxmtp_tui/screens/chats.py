"""The screen that chooses a saved chat."""

from pathlib import Path
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from mlxmtp.terminal import visible
from mlxmtp_tui.formatting import MUTED, plural
from mlxmtp_tui.sessions import SavedChat

TITLE = 48
"""Columns of a title."""


class ChatPicker(ModalScreen[Path | None]):
    """Lists saved chats, the newest first; its result is the file of the chosen one."""

    BINDINGS: ClassVar = [Binding("escape", "dismiss(None)", "back")]

    def __init__(self, chats: list[SavedChat]) -> None:
        super().__init__()
        self._chats = chats

    def compose(self) -> ComposeResult:
        with Vertical(id="chats"):
            yield Static("Go on with a chat", classes="heading")
            yield OptionList(*(Option(_row(chat), id=str(i)) for i, chat in enumerate(self._chats)))
            yield Static("enter chooses · esc goes back", classes="hint")

    def on_mount(self) -> None:
        self.query_one(OptionList).focus()

    @on(OptionList.OptionSelected)
    def chosen(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._chats[int(event.option.id or 0)].file)


def _row(chat: SavedChat) -> Content:
    title = visible(chat.title)
    title = title if len(title) <= TITLE else title[: TITLE - 1] + "…"
    about = f"{chat.changed:%Y-%m-%d %H:%M}  {plural(chat.turns, 'turn')}  {visible(chat.model)}"
    return Content.assemble(f"{title or 'untitled':{TITLE}}  ", (about, MUTED))
