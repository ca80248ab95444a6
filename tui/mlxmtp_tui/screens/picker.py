"""Choosing a model: the demo, what is in the Hub cache, and what can be downloaded, here and now."""

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
from mlxmtp_tui.recommended import RECOMMENDED, Recommended

DEMO = "demo"
NAME = 40


@dataclass(frozen=True)
class Choice:
    """model None: the bundled demo."""

    model: str | None


class Picker(ModalScreen[Choice | None]):
    """Asks an engine process of its own, so that a download ends with it.

    Args:
        start: starts one.
    """

    BINDINGS: ClassVar = [Binding("escape", "cancel", "back, or cancel the download")]

    def __init__(self, start: StartTransport) -> None:
        super().__init__()
        self._client = EngineClient(start, self._on_event)
        self._downloading: str | None = None
        self._models: Models | None = None

    def compose(self) -> ComposeResult:
        with Vertical(id="picker"):
            yield Static("Choose a model", classes="heading")
            yield OptionList(id="models")
            yield Input(placeholder="or type a folder's path or a Hub repo (owner/name)", id="path", compact=True)
            yield Static("", id="download-text", markup=False)
            yield ProgressBar(id="download-bar")
            yield Static("enter chooses · esc goes back", classes="hint", id="picker-hint")

    async def on_mount(self) -> None:
        self.query_one(ProgressBar).display = self.query_one("#download-text").display = False
        self._fill(None)
        self.query_one(OptionList).focus()
        await self._ask(ListModels)

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
        wanted = next((one for one in RECOMMENDED if f"get {one.repo}" == name), None)
        if wanted:
            await self._download(wanted.repo, wanted.head)
        else:
            self.dismiss(Choice(None if name == DEMO else name))

    @on(Input.Submitted)
    def typed(self, event: Input.Submitted) -> None:
        if text := event.value.strip():
            self.dismiss(Choice(None if text == DEMO else text))

    async def _download(self, repo: str, head: str | None) -> None:
        if self._downloading:
            return
        self._downloading = repo
        self.query_one(ProgressBar).display = True
        self.query_one(ProgressBar).update(total=None, progress=0)
        self._say(f"{repo}: asking the Hub …")
        self.query_one("#picker-hint", Static).update("esc cancels; what has come is kept for the next try")
        await self._ask(lambda id: Download(id, repo, head))

    async def _cancel_download(self) -> None:
        repo, self._downloading = self._downloading, None
        await self._client.kill()
        self._idle(f"{repo}: cancelled; the next download goes on from here")

    async def _ask(self, command: MakeCommand) -> None:
        try:
            await self._client.start()
        except EngineStartError as error:
            self._idle(str(error))
            return
        self._client.send(command)

    def _on_event(self, event: Event) -> None:
        match event:
            case Models():
                self._fill(event)
            case Downloading():
                self.query_one(ProgressBar).update(total=max(event.total, 1), progress=event.done)
                self._say(f"{event.repo}: {size(event.done)} of {size(event.total)}")
            case Downloaded():
                if event.warning:
                    self.app.notify(event.warning, severity="warning", timeout=15, markup=False)
                while self.app.screen is not self:
                    self.app.pop_screen()
                self.dismiss(Choice(event.repo))
            case Failed():
                self._fill(self._models, looking=False)
                self._idle(event.message)
            case Died():
                self._fill(self._models, looking=False)
                self._idle(
                    f"the engine cannot be understood: {event.garbled}"
                    if event.garbled
                    else f"the engine has died: {event.last or event.code}"
                )

    def _idle(self, text: str) -> None:
        self._downloading = None
        if not self.is_running:
            return
        self.query_one(ProgressBar).display = False
        self.query_one("#picker-hint", Static).update("enter chooses · esc goes back")
        self._say(text)

    def _say(self, text: str) -> None:
        if self.is_running:
            self.query_one("#download-text", Static).update(text)
            self.query_one("#download-text").display = bool(text)

    def _fill(self, models: Models | None, *, looking: bool = True) -> None:
        if not self.is_running:
            return
        self._models = models
        options = self.query_one(OptionList)
        at = options.highlighted
        options.clear_options()
        options.add_option(_heading("Here"))
        options.add_option(Option(_row("the bundled demo", 25_000_000, "head", "tiny, to try things"), id=DEMO))
        found = models.models if models else []
        options.add_options([Option(_cached(one, models), id=one.name, disabled=_refused(one)) for one in found])
        if models is None and looking:
            options.add_option(Option("  looking into the Hub cache …", disabled=True))
        room = f" (this machine can use {size(models.memory_limit)})" if models else ""
        options.add_option(_heading(f"To download{room}"))
        have = {one.name for one in found}
        for one in RECOMMENDED:
            if one.repo not in have:
                options.add_option(Option(_remote(one, models), id=f"get {one.repo}"))
        options.highlighted = 1 if at is None else at


def _heading(text: str) -> Option:
    return Option(Content.styled(text, "bold $accent"), disabled=True)


def _refused(one: CachedModel) -> bool:
    return one.support == "refused"


def _cached(one: CachedModel, models: Models | None) -> Content:
    if _refused(one):
        return _row(one.name, one.nbytes, "", one.reason)
    return _row(one.name, one.nbytes, "head" if one.support == "speculates" else "no head", _fits(one.nbytes, models))


def _remote(one: Recommended, models: Models | None) -> Content:
    nbytes = int(one.gigabytes * 1e9)
    return _row(one.repo, nbytes, "head", _fits(nbytes, models) or one.about)


def _fits(nbytes: int, models: Models | None) -> str:
    if models is None or nbytes <= models.memory_limit:
        return ""
    return "too large here"


def _row(name: str, nbytes: int, head: str, about: str) -> Content:
    short = name if len(name) <= NAME else "…" + name[-NAME + 1 :]
    figures = f"  {short:{NAME}} {size(nbytes) if nbytes else '':>8}  {head:7}  "
    return Content.assemble(figures, (about.split("\n")[0], "dim"))
