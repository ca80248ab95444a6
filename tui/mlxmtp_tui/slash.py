"""The handlers of the slash commands."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.app import App
from textual.reactive import var

from mlxmtp.errors import MlxmtpError, OptionError
from mlxmtp.limits import MAX_DEPTH
from mlxmtp.terminal import visible
from mlxmtp.worker.process import StartTransport
from mlxmtp_tui import clipboard, commands, config, sessions
from mlxmtp_tui.chat import Chat
from mlxmtp_tui.conversation import as_markdown
from mlxmtp_tui.widgets.panel import StatsView
from mlxmtp_tui.widgets.prompt import PromptInput

if TYPE_CHECKING:
    from mlxmtp_tui.widgets.transcript import Transcript

STATS_VIEWS: tuple[StatsView, ...] = ("live", "turns", "line")
REPEAT_ERROR_S = 10.0
"""Least seconds between two notifications of one error: a full disk is an error at every save."""


class SlashCommandApp(App[None]):
    """The slash commands of `ChatApp`: a method `command_NAME` for each; it takes the text after the name.

    Args:
        start: starts an engine process, for the model picker.
    """

    chat: Chat
    stats_view: var[StatsView] = var("live", init=False)

    def __init__(self, start: StartTransport) -> None:
        super().__init__()
        self.start_engine = start
        self.transcript: Transcript | None = None
        self.narrow = False
        self._errors: dict[str, float] = {}

    def say(self, text: str, *, error: bool = False) -> None:
        """Notify the user; of one error, not again within `REPEAT_ERROR_S`."""
        now = time.monotonic()
        if error and now - self._errors.get(text, float("-inf")) < REPEAT_ERROR_S:
            return
        self._errors[text] = now
        self.notify(
            visible(text), severity="error" if error else "information", timeout=12 if error else 4, markup=False
        )

    def copy(self, text: str) -> None:
        """Copy to the clipboard by the platform's program, else by the terminal."""
        if not clipboard.copy(text):
            self.copy_to_clipboard(text)
        self.say("copied")

    def slash(self, name: str, arguments: str = "") -> None:
        """Execute a command; errors become notifications."""
        if name not in commands.BY_NAME:
            similar = [command.usage for command in commands.completions("/" + name[:1])]
            hint = f"; {', '.join(similar)}?" if similar else ""
            self.say(f"there is no command /{name}{hint} // sends a text that begins with a slash", error=True)
            return
        try:
            getattr(self, f"command_{name}")(arguments)
        except MlxmtpError as error:
            self.say(str(error), error=True)
        except OSError as error:
            details = [str(detail) for detail in (error.filename, error.strerror) if detail]
            self.say(": ".join(details) or str(error), error=True)

    def command_help(self, arguments: str) -> None:
        from mlxmtp_tui.screens.help import HelpScreen

        if isinstance(self.screen, HelpScreen):
            self.pop_screen()
        else:
            self.push_screen(HelpScreen())

    def command_model(self, arguments: str) -> None:
        if arguments:
            self.chat.load(None if arguments == "demo" else arguments)
            return
        from mlxmtp_tui.screens.picker import ModelChoice, ModelPicker

        def chosen(choice: ModelChoice | None) -> None:
            if choice:
                self.chat.load(choice.model)

        if not isinstance(self.screen, ModelPicker):
            self.push_screen(ModelPicker(self.start_engine), chosen)

    def command_clear(self, arguments: str) -> None:
        self.chat.clear()

    def command_system(self, arguments: str) -> None:
        if not arguments:
            self.say(self.chat.conversation.system or "there is no system prompt; /system TEXT sets one")
            return
        self.chat.set_system("" if arguments == "off" else arguments)
        self.say("no system prompt any more" if arguments == "off" else "the system prompt holds from the next turn on")

    def command_depth(self, arguments: str) -> None:
        if not arguments:
            self.say(f"depth {'auto' if self.chat.settings.depth is None else self.chat.settings.depth}")
            return
        depth = None if arguments == "auto" else _whole_number("depth", arguments, 0, MAX_DEPTH)
        loaded = self.chat.loaded
        if depth and loaded and not loaded.head:
            raise OptionError(f"depth {depth} needs a head: {loaded.plain_because}")
        self.chat.change_settings(depth=depth)

    def command_temp(self, arguments: str) -> None:
        if arguments:
            self.chat.change_settings(temperature=_temperature(arguments))
        self.say(f"temperature {self.chat.settings.temperature:g}")

    def command_seed(self, arguments: str) -> None:
        if arguments:
            self.chat.change_settings(
                seed=None if arguments == "off" else _whole_number("seed", arguments, 0, 2**64 - 1)
            )
        self.say("no seed" if self.chat.settings.seed is None else f"seed {self.chat.settings.seed}")

    def command_max(self, arguments: str) -> None:
        if arguments:
            self.chat.change_settings(max_tokens=_whole_number("max", arguments, 1, 10**9))
        self.say(f"at most {self.chat.settings.max_tokens:,} tokens an answer")

    def command_think(self, arguments: str) -> None:
        modes: dict[str, Any] = {"on": True, "off": False, "auto": None}
        if arguments == "show":
            if self.transcript:
                self.transcript.toggle_thinking()
            return
        if arguments and arguments not in modes:
            raise OptionError(f"/think {arguments}: expected on, off, auto or show")
        if arguments:
            self.chat.change_settings(thinking=modes[arguments])
        name = next(name for name, mode in modes.items() if mode is self.chat.settings.thinking)
        loaded = self.chat.loaded
        missing = "; this model has no thinking mode" if loaded and not loaded.has_thinking else ""
        self.say(f"thinking {name}{missing}")

    def command_keep(self, arguments: str) -> None:
        if arguments not in ("", "off"):
            raise OptionError(f"/keep {arguments}: expected /keep or /keep off")
        kept = config.save(self.chat.chosen if not arguments else {})
        words = ", ".join(f"{name} {value}" for name, value in kept.items())
        self.say(f"kept for the next starts: {words}" if kept else "nothing is kept; models' own settings hold")

    def command_stats(self, arguments: str) -> None:
        if arguments and arguments not in STATS_VIEWS:
            raise OptionError(f"/stats {arguments}: expected {', '.join(STATS_VIEWS)}")
        views = [view for view in STATS_VIEWS if not (self.narrow and view == "live")]
        next_view = views.index(self.stats_view) + 1 if self.stats_view in views else 0
        self.stats_view = next((v for v in STATS_VIEWS if v == arguments), views[next_view % len(views)])

    def command_bench(self, arguments: str) -> None:
        self.chat.measure()

    def command_retry(self, arguments: str) -> None:
        self.chat.retry()

    def command_edit(self, arguments: str) -> None:
        if typed := self.chat.undo():
            self.query_one(PromptInput).recall(typed)

    def command_copy(self, arguments: str) -> None:
        answer = self.chat.conversation.last_answer
        if answer is None:
            raise OptionError("there is no answer to copy yet")
        what, _, number = arguments.partition(" ")
        if not what:
            self.copy(answer.text)
            return
        if what != "code":
            raise OptionError(f"/copy {arguments}: expected /copy, /copy code or /copy code N")
        blocks = code_blocks(answer.text)
        if not blocks:
            raise OptionError("there is no code block in the last answer")
        self.copy(blocks[_whole_number("code block", number, 1, len(blocks)) - 1 if number else -1])

    def command_save(self, arguments: str) -> None:
        if not arguments and not self.chat.log.has_session:
            self.say("there is nothing to save yet; a chat is saved from its first message on")
            return
        session = self.chat.log.session
        if arguments:
            session.write_title(arguments)
        self.say(session.problem or f"saved in {session.file}", error=bool(session.problem))

    def command_load(self, arguments: str) -> None:
        if arguments:
            self._go_on(sessions.find(arguments))
            return
        from mlxmtp_tui.screens.chats import ChatPicker

        chats = sessions.saved()
        if not chats:
            raise sessions.SessionError(f"no saved chat in {sessions.folder()}")
        self.push_screen(ChatPicker(chats), lambda file: self._go_on(file) if file else None)

    def _go_on(self, file: Path) -> None:
        try:
            if self.chat.log.has_session and file.resolve() == self.chat.log.session.file.resolve():
                return
            self.chat.open(*sessions.Session.resume(file))
        except sessions.SessionError as error:
            self.say(str(error), error=True)

    def command_export(self, arguments: str) -> None:
        try:
            file = Path(arguments or f"chat-{self.chat.log.session.id}.md").expanduser()
        except RuntimeError as error:
            raise OptionError(f"{arguments}: {error}") from error
        if file.exists():
            raise OptionError(f"{file} exists; give another name")
        file.write_text(as_markdown(self.chat.conversation, self.chat.model_name), encoding="utf-8")
        self.say(f"written to {file.absolute()}")

    def command_exit(self, arguments: str) -> None:
        self.exit()


def code_blocks(text: str) -> list[str]:
    """The contents of the code blocks of a Markdown text, in order."""
    from markdown_it import MarkdownIt

    return [token.content for token in MarkdownIt("commonmark").parse(text) if token.type in ("fence", "code_block")]


def _whole_number(name: str, text: str, least: int, most: int) -> int:
    if not text.strip().isdecimal() or not least <= int(text) <= most:
        raise OptionError(f"{name} is {text!r}; expected a whole number from {least} to {most:,}")
    return int(text)


def _temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not (value == 0 or 1e-6 <= value < 100):
        raise OptionError(f"temp is {text!r}; expected 0 (greedy) or a number from 0.000001 to 100")
    return value
