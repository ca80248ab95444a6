"""The screen that chooses a model: the demo, one of the Hub cache, or one to download now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, OptionList, ProgressBar, Static
from textual.widgets.option_list import Option

from mlxmtp.terminal import visible
from mlxmtp.units import size
from mlxmtp.worker.client import EngineClient, EngineStartError, MakeCommand
from mlxmtp.worker.messages import (
    CachedModel,
    Died,
    Download,
    Downloaded,
    Downloading,
    Event,
    Failed,
    ListModels,
    Models,
)
from mlxmtp.worker.process import StartTransport
from mlxmtp_tui.recommended import RECOMMENDED, RecommendedModel

DEMO = "demo"
NAME = 40
"""Columns of a model's name."""


@dataclass(frozen=True)
class ModelChoice:
    """The chosen model; None for the bundled demo."""

    model: str | None


class ModelPicker(ModalScreen[ModelChoice | None]):
    """Lists and downloads models by an engine process of its own: a download ends with its process.

    Args:
        start: starts the process.
    """

    BINDINGS: ClassVar = [Binding("escape", "cancel", "back, or cancel the download")]

    def __init__(self, start: StartTransport) -> None:
        super().__init__()
        self._client = EngineClient(start, self._on_event)
        self._downloading: str | None = None
        self._models: Models | None = None
        # Held here: the engine may report while the screen is put up or taken down, when a query finds nothing.
        self._options = OptionList(id="models")
        self._text = Static("", id="download-text", markup=False)
        self._bar = ProgressBar(id="download-bar")
        self._hint = Static("enter chooses · esc goes back", classes="hint", id="picker-hint")

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static("Choose a model", classes="heading")
            yield self._options
            yield Input(placeholder="or type a folder's path or a Hub repo (owner/name)", id="path", compact=True)
            yield self._text
            yield self._bar
            yield self._hint

    async def on_mount(self) -> None:
        self._bar.display = self._text.display = False
        self._list(None)
        self._options.focus()
        await self._send(ListModels)

    async def on_unmount(self) -> None:
        await self._client.kill()

    def action_cancel(self) -> None:
        if self._downloading:
            self.run_worker(self._cancel_download())
        else:
            self.dismiss(None)

    @on(OptionList.OptionSelected)
    async def option_selected(self, event: OptionList.OptionSelected) -> None:
        name = event.option.id or DEMO
        recommended = next((model for model in RECOMMENDED if f"get {model.repo}" == name), None)
        if recommended:
            await self._download(recommended.repo, recommended.head)
        else:
            self.dismiss(ModelChoice(None if name == DEMO else name))

    @on(Input.Submitted)
    def typed(self, event: Input.Submitted) -> None:
        if text := event.value.strip():
            self.dismiss(ModelChoice(None if text == DEMO else text))

    async def _download(self, repo: str, head: str | None) -> None:
        if self._downloading:
            return
        self._downloading = repo
        self._bar.display = True
        self._bar.update(total=None, progress=0)
        self._say(f"{repo}: asking the Hub …")
        self._hint.update("esc cancels; what has come is kept for the next try")
        await self._send(lambda id: Download(id, repo, head))

    async def _cancel_download(self) -> None:
        repo, self._downloading = self._downloading, None
        await self._client.kill()
        self._show_idle(f"{repo}: cancelled; the next download goes on from here")

    async def _send(self, command: MakeCommand) -> None:
        try:
            await self._client.start()
        except EngineStartError as error:
            self._show_idle(str(error))
            return
        self._client.send(command)

    def _on_event(self, event: Event) -> None:
        match event:
            case Models():
                self._list(event)
            case Downloading():
                self._bar.update(total=max(event.total, 1), progress=event.done)
                self._say(f"{event.repo}: {size(event.done)} of {size(event.total)}")
            case Downloaded():
                if event.warning:
                    self.app.notify(visible(event.warning), severity="warning", timeout=15, markup=False)
                while self.app.screen is not self:
                    self.app.pop_screen()
                self.dismiss(ModelChoice(event.repo))
            case Failed():
                self._list(self._models, searching=False)
                self._show_idle(event.message)
            case Died():
                self._list(self._models, searching=False)
                self._show_idle(
                    f"the engine cannot be understood: {event.garbled}"
                    if event.garbled
                    else f"the engine has died: {event.last or event.code}"
                )

    def _show_idle(self, text: str) -> None:
        self._downloading = None
        if not self.is_running:
            return
        self._bar.display = False
        self._hint.update("enter chooses · esc goes back")
        self._say(text)

    def _say(self, text: str) -> None:
        if self.is_running:
            self._text.update(visible(text))
            self._text.display = bool(text)

    def _list(self, models: Models | None, *, searching: bool = True) -> None:
        if not self.is_running:
            return
        self._models = models
        options = self._options
        highlighted = options.highlighted
        options.clear_options()
        options.add_option(_heading("Here"))
        options.add_option(Option(_row("the bundled demo", 25_000_000, "head", "tiny, to try things"), id=DEMO))
        cached = models.models if models else []
        for model in cached:
            options.add_option(Option(_cached(model, models), id=model.name, disabled=model.support == "refused"))
        if models is None and searching:
            options.add_option(Option("  looking into the Hub cache …", disabled=True))
        room = f" (this machine can use {size(models.memory_limit)})" if models else ""
        options.add_option(_heading(f"To download{room}"))
        names = {model.name for model in cached}
        for recommended in RECOMMENDED:
            if recommended.repo not in names:
                options.add_option(Option(_downloadable(recommended, models), id=f"get {recommended.repo}"))
        options.highlighted = 1 if highlighted is None else highlighted


def _heading(text: str) -> Option:
    return Option(Content.styled(text, "bold $accent"), disabled=True)


def _cached(model: CachedModel, models: Models | None) -> Content:
    if model.support == "refused":
        return _row(model.name, model.nbytes, "", model.reason)
    head = "head" if model.support == "speculates" else "no head"
    return _row(model.name, model.nbytes, head, _size_warning(model.nbytes, models))


def _downloadable(model: RecommendedModel, models: Models | None) -> Content:
    nbytes = int(model.gigabytes * 1e9)
    return _row(model.repo, nbytes, "head", _size_warning(nbytes, models) or model.about)


def _size_warning(nbytes: int, models: Models | None) -> str:
    if models is None or nbytes <= models.memory_limit:
        return ""
    return "too large here"


def _row(name: str, nbytes: int, head: str, about: str) -> Content:
    name = visible(name)
    short = name if len(name) <= NAME else "…" + name[-NAME + 1 :]
    figures = f"  {short:{NAME}} {size(nbytes) if nbytes else '':>8}  {head:7}  "
    return Content.assemble(figures, (visible(about).split("\n")[0], "dim"))
