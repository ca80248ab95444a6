"""What the slash commands do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlxmtp.errors import MlxmtpError, OptionError
from mlxmtp.limits import MAX_DEPTH
from mlxmtp_tui import commands, sessions
from mlxmtp_tui.conversation import as_markdown
from mlxmtp_tui.widgets.prompt import Prompt

if TYPE_CHECKING:
    from mlxmtp_tui.app import ChatApp


class SlashCommands:
    """A method `command_NAME` for each; it takes the text behind the name."""

    def __init__(self, app: ChatApp) -> None:
        self._app = app

    def __call__(self, name: str, arguments: str = "") -> None:
        """Carry out a command."""
        if name not in commands.BY_NAME:
            close = [command.usage for command in commands.completions("/" + name[:1])]
            hint = f"; {', '.join(close)}?" if close else ""
            self._app.say(f"there is no command /{name}{hint} // sends a text that begins with a slash", error=True)
            return
        try:
            getattr(self, f"command_{name}")(arguments)
        except MlxmtpError as error:
            self._app.say(str(error), error=True)
        except OSError as error:
            told = [str(part) for part in (error.filename, error.strerror) if part]
            self._app.say(": ".join(told) or str(error), error=True)

    def command_help(self, arguments: str) -> None:
        from mlxmtp_tui.screens.help import Help

        if isinstance(self._app.screen, Help):
            self._app.pop_screen()
        else:
            self._app.push_screen(Help())

    def command_model(self, arguments: str) -> None:
        if arguments:
            self._app.chat.load(None if arguments == "demo" else arguments)
            return
        from mlxmtp_tui.screens.picker import Choice, Picker

        def chosen(choice: Choice | None) -> None:
            if choice:
                self._app.chat.load(choice.model)

        if not isinstance(self._app.screen, Picker):
            self._app.push_screen(Picker(self._app.start_engine), chosen)

    def command_clear(self, arguments: str) -> None:
        self._app.chat.clear()

    def command_system(self, arguments: str) -> None:
        if not arguments:
            self._app.say(self._app.chat.conversation.system or "there is no system prompt; /system TEXT sets one")
            return
        self._app.chat.instruct("" if arguments == "off" else arguments)
        self._app.say(
            "no system prompt any more" if arguments == "off" else "the system prompt holds from the next turn on"
        )

    def command_depth(self, arguments: str) -> None:
        if not arguments:
            self._app.say(f"depth {'auto' if self._app.chat.settings.depth is None else self._app.chat.settings.depth}")
            return
        depth = None if arguments == "auto" else _whole("depth", arguments, 0, MAX_DEPTH)
        loaded = self._app.chat.loaded
        if depth and loaded and not loaded.head:
            raise OptionError(f"depth {depth} needs a head: {loaded.plain_because}")
        self._app.chat.set(depth=depth)

    def command_temp(self, arguments: str) -> None:
        if arguments:
            self._app.chat.set(temperature=_temperature(arguments))
        self._app.say(f"temperature {self._app.chat.settings.temperature:g}")

    def command_seed(self, arguments: str) -> None:
        if arguments:
            self._app.chat.set(seed=None if arguments == "off" else _whole("seed", arguments, 0, 2**64 - 1))
        self._app.say("no seed" if self._app.chat.settings.seed is None else f"seed {self._app.chat.settings.seed}")

    def command_max(self, arguments: str) -> None:
        if arguments:
            self._app.chat.set(max_tokens=_whole("max", arguments, 1, 10**9))
        self._app.say(f"at most {self._app.chat.settings.max_tokens:,} tokens an answer")

    def command_think(self, arguments: str) -> None:
        wishes: dict[str, Any] = {"on": True, "off": False, "auto": None}
        if arguments == "show":
            if transcript := self._app.transcript:
                transcript.unfold(unfolded=not transcript.unfolded)
            return
        if arguments and arguments not in wishes:
            raise OptionError(f"/think {arguments}: expected on, off, auto or show")
        if arguments:
            self._app.chat.set(thinking=wishes[arguments])
        now = next(name for name, wish in wishes.items() if wish is self._app.chat.settings.thinking)
        mode = (
            ""
            if not self._app.chat.loaded or self._app.chat.loaded.has_thinking
            else "; this model has no thinking mode"
        )
        self._app.say(f"thinking {now}{mode}")

    def command_stats(self, arguments: str) -> None:
        from mlxmtp_tui.app import VIEWS

        if arguments and arguments not in VIEWS:
            raise OptionError(f"/stats {arguments}: expected {', '.join(VIEWS)}")
        views = [view for view in VIEWS if not (self._app.narrow and view == "live")]
        at = views.index(self._app.stats_view) + 1 if self._app.stats_view in views else 0
        self._app.stats_view = next((v for v in VIEWS if v == arguments), views[at % len(views)])
        self._app.state_changed()

    def command_bench(self, arguments: str) -> None:
        self._app.chat.measure()

    def command_retry(self, arguments: str) -> None:
        self._app.chat.retry()

    def command_edit(self, arguments: str) -> None:
        if typed := self._app.chat.take_back():
            self._app.query_one(Prompt).recall(typed)

    def command_copy(self, arguments: str) -> None:
        answer = self._app.chat.conversation.last_answer
        if answer is None:
            raise OptionError("there is no answer to copy yet")
        what, _, number = arguments.partition(" ")
        if not what:
            self._app.copy(answer.text)
            return
        if what != "code":
            raise OptionError(f"/copy {arguments}: expected /copy, /copy code or /copy code N")
        blocks = code_blocks(answer.text)
        if not blocks:
            raise OptionError("there is no code block in the last answer")
        self._app.copy(blocks[_whole("code block", number, 1, len(blocks)) - 1 if number else -1])

    def command_save(self, arguments: str) -> None:
        if not arguments and not self._app.chat.has_session:
            self._app.say("there is nothing to save yet; a chat is saved from its first message on")
            return
        session = self._app.chat.session
        if arguments:
            session.title(arguments)
        self._app.say(session.problem or f"saved in {session.file}", error=bool(session.problem))

    def command_load(self, arguments: str) -> None:
        if arguments:
            self._go_on(sessions.find(arguments))
            return
        from mlxmtp_tui.screens.chats import Chats

        chats = sessions.saved()
        if not chats:
            raise sessions.SessionError(f"no saved chat in {sessions.folder()}")
        self._app.push_screen(Chats(chats), lambda file: self._go_on(file) if file else None)

    def _go_on(self, file: Path) -> None:
        try:
            if self._app.chat.has_session and file.resolve() == self._app.chat.session.file.resolve():
                return
            self._app.chat.open(*sessions.Session.resume(file))
        except sessions.SessionError as error:
            self._app.say(str(error), error=True)

    def command_export(self, arguments: str) -> None:
        try:
            file = Path(arguments or f"chat-{self._app.chat.session.id}.md").expanduser()
        except RuntimeError as error:
            raise OptionError(f"{arguments}: {error}") from error
        if file.exists():
            raise OptionError(f"{file} exists; give another name")
        file.write_text(as_markdown(self._app.chat.conversation, self._app.chat.model_name), encoding="utf-8")
        self._app.say(f"written to {file.absolute()}")

    def command_exit(self, arguments: str) -> None:
        self._app.exit()


def code_blocks(text: str) -> list[str]:
    """The contents of a text's fences, in order."""
    from markdown_it import MarkdownIt

    return [token.content for token in MarkdownIt("commonmark").parse(text) if token.type in ("fence", "code_block")]


def _whole(name: str, text: str, least: int, most: int) -> int:
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
