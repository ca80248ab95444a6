"""The line under the prompt: what the engine does, and the statistics where the panel is folded away."""

from __future__ import annotations

from textual.widgets import Static

from mlxmtp.terminal import visible
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.widgets.panel import head_lines, one_line, shortened

STATUS_TEXTS = {
    "starting": "starting the engine …",
    "choosing": "no model · /model chooses one",
    "loading": "loading …",
    "ready": "",
    "answering": "answering · esc stops",
    "stopping": "stopping …",
    "measuring": "measuring · esc stops",
    "gone": "no engine · ctrl+r starts it",
}
MODEL_WIDTH = 40
"""Columns that the name of a model takes while it loads."""


class StatusLine(Static):
    """One line, redrawn when the state has changed."""

    def __init__(self) -> None:
        super().__init__(id="status", markup=False)

    def draw(self, chat: Chat, *, folded: bool) -> None:
        """Draw the line; `folded` adds the panel's figures."""
        self.update(status_text(chat, folded=folded), layout=False)


def status_text(chat: Chat, *, folded: bool) -> str:
    """The status of the engine; then the statistics or the model where the panel is folded, else a hint."""
    text = STATUS_TEXTS[chat.state.status]
    if silence_s := chat.state.silence_s:
        text = f"the engine has said nothing for {silence_s:.0f} s · ctrl+r restarts it"
    elif chat.state.status == "loading":
        check = chat.state.check
        text = f"loading {shortened(chat.model_name, MODEL_WIDTH)} …" + (f" {check.text} · esc stops" if check else "")
    if not folded:
        return text or f"{settings_line(chat)} · f1 help"
    model = " · ".join([visible(chat.model_name), *head_lines(chat.loaded, chat.settings)])
    return " · ".join(part for part in (text, one_line(chat.state, chat.loaded) or model) if part)


def settings_line(chat: Chat) -> str:
    """The settings of the next turn, as "demo · MTP auto · temp 0.6 (model's)"; "yours": set here or kept."""
    settings = chat.settings
    head = chat.loaded is None or chat.loaded.head
    depth = f"MTP {'auto' if settings.depth is None else settings.depth}" if head and settings.depth != 0 else "plain"
    parts = [shortened(chat.model_name, MODEL_WIDTH), depth]
    recommended = " (model's)" if settings.temperature else ""  # without a choice or a recommendation it is 0
    parts += [f"temp {settings.temperature:g}" + (" (yours)" if "temperature" in chat.chosen else recommended)]
    parts += [f"seed {settings.seed}"] if settings.seed is not None else []
    parts += [f"thinking {'on' if settings.thinking else 'off'}"] if settings.thinking is not None else []
    return " · ".join(parts)
