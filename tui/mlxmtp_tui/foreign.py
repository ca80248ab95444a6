"""Text and links that come from models and files: the terminal and the desktop do nothing that they ask for."""

import re

from rich.segment import Segment
from textual.color import Color
from textual.filter import LineFilter

from mlxmtp.terminal import CONTROL

WEB_LINK = re.compile(r"https?://", re.IGNORECASE)
"""How a link begins that a click may open. Others start programs or open files."""


class ControlFilter(LineFilter):
    """Drops control characters from the lines of all widgets.

    Widgets show them by `visible`, which takes columns and so comes before the layout. This is for what reaches a line
    in another way: an entity of Markdown, a paste into the prompt. A control character has no width.
    """

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:  # noqa: ARG002
        return [
            Segment(CONTROL.sub("", text), style, control) if CONTROL.search(text) else segment
            for segment in segments
            for text, style, control in (segment,)
        ]
